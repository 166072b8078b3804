"""Writes LeRobotDataset v3, one durable shard after the other.

A shard is one data file and one file of `meta/episodes`, written in that order, each under a temporary name,
synced and renamed; the second makes the shard count. `info.json` comes last of all, so a folder without it
is not finished. What is in the files depends on the episodes only: not on who encoded them, nor on how
often the writing was interrupted. With `video`, cameras are in one MP4 a shard, written before the other two; such
a shard is written when it is full or at the end, since what a video has lost cannot be encoded again.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from volar.datasets.durable_file import OutputExists, write_durably
from volar.datasets.episode import Episode
from volar.datasets.lerobot_format import vectors
from volar.datasets.lerobot_layout import (
    CODEBASE_VERSION,
    CONTRACT,
    DATA_PATH,
    EPISODES_PATH,
    FILES_PER_CHUNK,
    IMAGE_PREFIX,
    INFO,
    STATS,
    TASKS,
    WRITER,
    DatasetError,
    arrow_schema,
    decode_image,
    decode_stream,
    encode_episode,
    features,
    frames_per_second,
)
from volar.datasets.statistics import action_mask, field_statistics, lerobot_image_statistics, lerobot_statistics
from volar.datasets.video_files import VIDEO_PATH, decode_frames, encode_video
from volar.robots.contract import PolicyContract, differences
from volar.robots.errors import VolarError

IMAGE_SAMPLE = 256  # images of a camera, evenly over the dataset, that make its entry in stats.json


class EpisodeWriter:
    """Appends episodes to a dataset; made by `create` or `resume`, ended by `finalize`.

    `append` takes an `Episode`, or the bytes `encode_episode` made of it in another process. At most the
    episodes of the open shard are lost by a kill; `flush` makes those durable as well.
    """

    def __init__(self, root: Path, contract: PolicyContract, shard_episodes: int, *, video: bool = False) -> None:
        self.root, self.contract, self.shard_episodes, self.video = root, contract, shard_episodes, video
        self._open: list[tuple[pa.Table, dict[str, Any]]] = []  # encoded episodes of the shard being filled
        self._closed_episodes = 0  # in complete shards
        self._closed_frames = 0
        self._tasks: dict[str, int] = {}  # instruction -> task_index, over complete shards
        self._closed_tasks = 0

    @property
    def episodes(self) -> int:
        """Episodes appended so far; where to continue after `resume`."""
        return self._closed_episodes + len(self._open)

    @staticmethod
    def create(
        root: Path,
        contract: PolicyContract,
        *,
        shard_episodes: int = 25,
        source: Mapping[str, str | int | float | bool] | None = None,
        overwrite: bool = False,
        video: bool = False,
    ) -> "EpisodeWriter":
        """Starts a dataset in an empty or new folder.

        `source`: facts that decide the episodes (suite, seed, ...); `resume` refuses others.
        `overwrite`: removes the `data`, `meta` and `videos` that an `EpisodeWriter` left there, nothing else.
        `video`: cameras as H.264 instead of lossless images. Raises `OutputExists`, `DiskFull`.
        """
        frames_per_second(contract)
        features(contract, video=video)  # raises for an image size that cannot be kept
        if shard_episodes < 1:
            raise ValueError(f"shard_episodes must be at least 1, is {shard_episodes}")
        if root.exists() and not root.is_dir():
            raise OutputExists(f"{root} is a file; choose another output")
        if root.exists() and any(root.iterdir()):
            if not (root / WRITER).is_file():
                found = ", ".join(sorted(item.name for item in root.iterdir())[:4])
                raise OutputExists(f"{root} holds something else ({found}); give another output")
            if not overwrite:
                fix = "continue it with resume=true, replace it with overwrite=true, or give another output"
                raise OutputExists(f"{root} holds demonstrations: {fix}")
            for name in ("data", "videos", ".volar_cache", "meta"):  # last what says whose the folder is
                shutil.rmtree(root / name, ignore_errors=True)
        contract = replace(contract, statistics={})
        settings: dict[str, Any] = {"contract": contract.to_json(), "shard_episodes": shard_episodes}
        settings |= {"source": dict(source or {})} | ({"video": True} if video else {})
        write_durably(root / WRITER, json.dumps(settings, sort_keys=True, indent=1).encode())
        return EpisodeWriter(root, contract, shard_episodes, video=video)

    @staticmethod
    def resume(
        root: Path, contract: PolicyContract | None = None, source: Mapping[str, str | int | float | bool] | None = None
    ) -> "EpisodeWriter":
        """Continues after the last durable episode, also of a finished dataset (which is then open again).

        `contract`, `source`: when given, must be those it was created with. Raises `DatasetError`.
        """
        if not (root / WRITER).is_file():
            raise DatasetError(f"{root} holds nothing to resume: it has no {WRITER}")
        settings = json.loads((root / WRITER).read_text())
        begun = PolicyContract.from_json(settings["contract"])
        writer = EpisodeWriter(root, begun, settings["shard_episodes"], video=settings.get("video", False))
        if contract is not None:
            found = differences(contract, writer.contract, ignore=("statistics",))
            if found:
                raise DatasetError(f"{root} was begun with another contract: " + "; ".join(map(str, found)))
        old = settings["source"]
        if source is not None and old != dict(source):
            keys = sorted(k for k in old.keys() | source.keys() if old.get(k) != source.get(k))
            parts = "; ".join(f"{k}: {old.get(k)!r}, now {source.get(k)!r}" for k in keys)
            raise DatasetError(f"{root} was begun with other settings ({parts}); use them, or overwrite=true")
        writer._load_shards()
        return writer

    def append(self, episode: Episode | bytes) -> None:
        """Adds the next episode; writes the shard when it is full. Raises `VolarError`, `DiskFull`."""
        encoded = encode_episode(episode, self.contract) if isinstance(episode, Episode) else episode
        table, facts = decode_stream(encoded)
        if self._open and bool(facts["info"]) != bool(self._open[0][1]["info"]):
            raise DatasetError(f"{self.root}: all episodes must have an info, or none: it is a column of meta/episodes")
        self._open.append((table, facts))
        if len(self._open) == self.shard_episodes:
            self._write_shard()
            self._close_shard()

    def flush(self) -> None:
        """Makes the open shard durable; it is filled up later (after an interrupt, before leaving). Not with video."""
        if self._open and not self.video:
            self._write_shard()

    def finalize(self) -> PolicyContract:
        """Writes statistics, tasks, contract and info; returns the contract with the dataset's statistics."""
        if self._open:
            self._write_shard()
        if not self.episodes:
            raise VolarError(f"{self.root}: no episode was written")
        files = [self._path(DATA_PATH, k) for k in range(-(-self.episodes // self.shard_episodes))]
        columns = [n for n, f in features(self.contract).items() if f["dtype"] != "image"]  # video or not
        # Through the file, not the dataset API, which would read `chunk-000` as a partition.
        table = pa.concat_tables([pq.ParquetFile(path).read(columns) for path in files])
        state, action = vectors(table, "observation.state"), vectors(table, "action")
        contract = replace(
            self.contract,
            statistics={
                "action": field_statistics(action, action_mask(self.contract.action)),
                "observation.state": field_statistics(state),
            },
        )
        stats = {name: lerobot_statistics(_array(table, name)) for name in columns}
        stats |= self._image_statistics(files, len(table))  # type: ignore[arg-type]
        write_durably(self.root / STATS, json.dumps(stats, indent=4).encode())
        write_durably(self.root / TASKS, _tasks_file(list(self._tasks)))
        write_durably(self.root / CONTRACT, (contract.to_json() + "\n").encode())
        write_durably(self.root / INFO, json.dumps(self._info(len(table)), indent=4).encode())
        return contract

    def _info(self, frames: int) -> dict[str, Any]:
        return {
            "codebase_version": CODEBASE_VERSION,
            "fps": frames_per_second(self.contract),
            "features": features(self.contract, video=self.video),
            "total_episodes": self.episodes,
            "total_frames": frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.video else None,
            "robot_type": self.contract.robot,
            "splits": {"train": f"0:{self.episodes}"},
        }

    def _path(self, template: str, shard: int, key: str = "") -> Path:
        place = {"chunk_index": shard // FILES_PER_CHUNK, "file_index": shard % FILES_PER_CHUNK}
        return self.root / template.format(video_key=key, **place)

    def _write_shard(self) -> None:
        # From here on what the folder says about itself would be wrong until `finalize`.
        for name in (INFO, STATS):
            (self.root / name).unlink(missing_ok=True)
        shard = self._closed_episodes // self.shard_episodes
        # Instructions first seen in this shard may be numbered anew when it is written again.
        self._tasks = dict(list(self._tasks.items())[: self._closed_tasks])
        tables, rows, frame = [], [], self._closed_frames
        for i, (table, facts) in enumerate(self._open):
            placed = self._placed(table, self._closed_episodes + i, frame, facts["instruction"])
            tables.append(placed)
            rows.append(_episode_row(placed, facts, shard) | self._video_columns(shard, frame, len(table)))
            frame += len(table)
        schema = arrow_schema(self.contract, video=self.video)
        self._write_videos(shard)
        tables = [table.select(schema.names).cast(schema) for table in tables]
        write_durably(self._path(DATA_PATH, shard), _parquet(tables))
        write_durably(self._path(EPISODES_PATH, shard), _parquet([pa.Table.from_pylist(rows)]))

    def _video_columns(self, shard: int, frame: int, steps: int) -> dict[str, Any]:
        """Where the episode that begins at `frame` of the dataset is in its shard's videos."""
        if not self.video:
            return {}
        fps, first = frames_per_second(self.contract), frame - self._closed_frames
        place = {"chunk_index": shard // FILES_PER_CHUNK, "file_index": shard % FILES_PER_CHUNK}
        place |= {"from_timestamp": first / fps, "to_timestamp": (first + steps) / fps}  # type: ignore[dict-item]
        keys = [IMAGE_PREFIX + camera.name for camera in self.contract.cameras]
        return {f"videos/{key}/{name}": value for key in keys for name, value in place.items()}

    def _write_videos(self, shard: int) -> None:
        for camera in self.contract.cameras if self.video else ():
            key = IMAGE_PREFIX + camera.name
            images = (item["bytes"] for table, _ in self._open for item in table.column(key).to_pylist())
            data = encode_video(images, camera, frames_per_second(self.contract))
            write_durably(self._path(VIDEO_PATH, shard, key), data)

    def _close_shard(self) -> None:
        self._closed_episodes += len(self._open)
        self._closed_frames += sum(len(table) for table, _ in self._open)
        self._closed_tasks = len(self._tasks)
        self._open.clear()

    def _placed(self, table: pa.Table, episode: int, frame: int, instruction: str) -> pa.Table:
        task = self._tasks.setdefault(instruction, len(self._tasks))
        steps = len(table)
        for name, values in (
            ("episode_index", np.full(steps, episode)),
            ("index", np.arange(frame, frame + steps)),
            ("task_index", np.full(steps, task)),
        ):
            table = table.append_column(name, pa.array(values.astype(np.int64)))
        return table

    def _load_shards(self) -> None:
        """Reads back what is durable; a last shard that is not full becomes the open one again."""
        shard = 0
        while self._path(EPISODES_PATH, shard).is_file():
            rows = pq.ParquetFile(self._path(EPISODES_PATH, shard)).read().to_pylist()
            if self.video and len(rows) < self.shard_episodes:  # its images cannot be had back
                (self.root / INFO).unlink(missing_ok=True)
                self._path(EPISODES_PATH, shard).unlink()
                break
            # The data file may hold more than these rows: it is replaced first.
            table = pq.ParquetFile(self._path(DATA_PATH, shard)).read().replace_schema_metadata(None)
            start = 0
            for row in rows:
                part = table.slice(start, row["length"]).drop_columns(["episode_index", "index", "task_index"])
                self._open.append((part, _facts(row)))
                self._tasks.setdefault(row["tasks"][0], len(self._tasks))
                start += row["length"]
            if len(rows) < self.shard_episodes:
                return
            self._close_shard()
            shard += 1
        # Data whose rows never came: LeRobot reads every file it finds.
        self._path(DATA_PATH, shard).unlink(missing_ok=True)
        for camera in self.contract.cameras:
            self._path(VIDEO_PATH, shard, IMAGE_PREFIX + camera.name).unlink(missing_ok=True)

    def _image_statistics(self, files: list[Path], frames: int) -> dict[str, object]:
        wanted = np.unique(np.linspace(0, frames - 1, IMAGE_SAMPLE).round().astype(np.int64))
        found: dict[str, list[NDArray[np.uint8]]] = {IMAGE_PREFIX + c.name: [] for c in self.contract.cameras}
        start = 0
        for shard, path in enumerate(files):
            count = pq.ParquetFile(path).metadata.num_rows
            rows = wanted[(wanted >= start) & (wanted < start + count)] - start
            table = None if self.video else pq.ParquetFile(path).read(list(found))
            for key, images in found.items():
                if table is None:
                    images.extend(decode_frames(self._path(VIDEO_PATH, shard, key).read_bytes(), rows))
                    continue
                picked = table.column(key).take(pa.array(rows)).to_pylist()
                images.extend(decode_image(item["bytes"]) for item in picked)
            start += count
        return {key: lerobot_image_statistics(np.stack(images)) for key, images in found.items()}


def _episode_row(table: pa.Table, facts: dict[str, Any], shard: int) -> dict[str, Any]:
    """LeRobot's row of `meta/episodes`; what is Volar's own starts with `volar/`."""
    place = {"chunk_index": shard // FILES_PER_CHUNK, "file_index": shard % FILES_PER_CHUNK}
    first = table.column("index")[0].as_py()
    statistics = facts["statistics"] | {
        name: lerobot_statistics(_array(table, name)) for name in ("episode_index", "index", "task_index")
    }
    return {
        "episode_index": table.column("episode_index")[0].as_py(),
        "tasks": [facts["instruction"]],
        "length": len(table),
        **{f"data/{key}": value for key, value in place.items()},
        "dataset_from_index": first,
        "dataset_to_index": first + len(table),
        **{f"meta/episodes/{key}": value for key, value in place.items()},
        **{f"volar/{key}": facts[key] for key in ("task", "seed", "success")},
        **({"volar/info": json.dumps(facts["info"])} if facts["info"] else {}),
        **{f"stats/{key}/{name}": v for key, values in statistics.items() for name, v in values.items()},
    }


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `_episode_row`, for a shard that is filled up after a restart."""
    statistics: dict[str, dict[str, Any]] = {}
    for column, value in row.items():
        if column.startswith("stats/"):
            _, key, name = column.split("/")
            statistics.setdefault(key, {})[name] = value
    return {
        "instruction": row["tasks"][0],
        "statistics": statistics,
        **{key: row[f"volar/{key}"] for key in ("task", "seed", "success")},
        "info": json.loads(row.get("volar/info") or "{}"),
    }


def _array(table: pa.Table, name: str) -> NDArray[Any]:
    """A column as (N, D), or (N,) when it is scalar."""
    if pa.types.is_fixed_size_list(table.schema.field(name).type):
        return vectors(table, name)
    values: NDArray[Any] = table.column(name).to_numpy()
    return values


def _parquet(groups: list[pa.Table]) -> bytes:
    """One file with a row group for each table, as LeRobot writes one for each episode."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, groups[0].schema, compression="snappy", use_dictionary=False) as writer:
        for table in groups:
            writer.write_table(table)
    return bytes(sink.getvalue())


def _tasks_file(instructions: list[str]) -> bytes:
    import pandas as pd  # LeRobot reads this file as a frame indexed by the instruction

    frame = pd.DataFrame({"task_index": range(len(instructions))}, index=pd.Index(instructions, name="task"))
    data: bytes = frame.to_parquet()
    return data
