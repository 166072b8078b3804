"""Writes LeRobotDataset v3, one durable shard after the other.

A shard is one data file and one file of `meta/episodes`, written in that order, each under a temporary name,
synced and renamed; the second makes the shard count. The data file grows with each episode, so that a few of its
frames are in memory at a time. `info.json` comes last of all, so a folder without it
is not finished. What is in the files depends on the episodes only: not on who encoded them, nor on how
often the writing was interrupted. With `video`, cameras are in one MP4 a shard, written before the other two; such
a shard is written when it is full or at the end, since what a video has lost cannot be encoded again.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from volar.datasets.dataset_statistics import dataset_statistics
from volar.datasets.durable_file import OutputExists, write_durably
from volar.datasets.episode import Episode
from volar.datasets.lerobot_format import readable
from volar.datasets.lerobot_layout import (
    CONTRACT,
    DATA_PATH,
    EPISODES_PATH,
    IMAGE_PREFIX,
    INFO,
    STATS,
    TASKS,
    WRITER,
    DatasetError,
    EncodedEpisode,
    arrow_schema,
    decode_stream,
    encode_episode,
    features,
    frames_per_second,
    parquet_file,
)
from volar.datasets.lerobot_meta import episode_row, episodes_file, info_of, shard_place, tasks_file
from volar.datasets.open_shard import OpenShard, first_rows
from volar.datasets.video_files import VIDEO_PATH
from volar.robots.contract import PolicyContract, differences
from volar.robots.errors import VolarError
from volar.robots.output_folder import contents


class EpisodeWriter:
    """Appends episodes to a dataset; made by `create` or `resume`, ended by `finalize`.

    `append` takes an `Episode`, the bytes `encode_episode` made of it in another process, or what `encode_frames` made
    of its frames. At most the
    episodes of the open shard are lost by a kill; `flush` makes those durable as well.
    """

    def __init__(self, root: Path, contract: PolicyContract, shard_episodes: int, *, video: bool = False) -> None:
        self.root, self.contract, self.shard_episodes, self.video = root, contract, shard_episodes, video
        self._rows: list[dict[str, Any]] = []  # of `meta/episodes`, of the shard being filled
        self._shard: OpenShard | None = None
        self._durable = 0  # frames of the shard being filled that are on the disk under their own name
        self._torn = False  # an episode was written in part
        self._closed_episodes = 0  # in complete shards
        self._closed_frames = 0
        self._tasks: dict[str, int] = {}  # instruction -> task_index

    @property
    def episodes(self) -> int:
        """Episodes appended so far; where to continue after `resume`."""
        return self._closed_episodes + len(self._rows)

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
        if found := contents(root):
            if not (root / WRITER).is_file():
                raise OutputExists(f"{root} holds something else ({', '.join(found[:4])}); give another output")
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
        settings = readable(root / WRITER, lambda path: dict(json.loads(path.read_text())))
        try:
            begun, old = PolicyContract.from_json(settings["contract"]), dict(settings["source"])
            writer = EpisodeWriter(root, begun, int(settings["shard_episodes"]), video=settings.get("video", False))
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{root / WRITER} is not of this version, or damaged: {error}") from error
        if contract is not None:
            found = differences(contract, writer.contract, ignore=("statistics",))
            if found:
                raise DatasetError(f"{root} was begun with another contract: " + "; ".join(map(str, found)))
        if source is not None and old != dict(source):
            keys = sorted(k for k in old.keys() | source.keys() if old.get(k) != source.get(k))
            parts = "; ".join(f"{k}: {old.get(k)!r}, now {source.get(k)!r}" for k in keys)
            raise DatasetError(f"{root} was begun with other settings ({parts}); use them, or overwrite=true")
        writer._load_shards()
        return writer

    def append(self, episode: Episode | bytes | EncodedEpisode) -> None:
        """Adds the next episode; the shard is complete when it is full. Raises `VolarError`, `DiskFull`."""
        if self._torn:
            raise VolarError(f"{self.root}: writing was interrupted; go on with EpisodeWriter.resume")
        if not isinstance(episode, EncodedEpisode):
            episode = decode_stream(encode_episode(episode, self.contract) if isinstance(episode, Episode) else episode)
        facts = episode.facts
        if self._rows and bool(facts["info"]) != bool(self._rows[0].get("volar/info")):
            raise DatasetError(f"{self.root}: all episodes must have an info, or none: it is a column of meta/episodes")
        if self._shard is None:
            self._shard = self._begin_shard()
        number, frame = self.episodes, self._frames
        task = self._tasks.setdefault(facts["instruction"], len(self._tasks))
        self._torn = True  # until it is whole
        try:
            self._shard.add(self._placed(batch, number, frame + start, task) for start, batch in _counted(episode))
        except VolarError:
            self._give_up()
            raise
        self._torn = False
        row = episode_row(facts, number, frame, episode.steps, task, self._closed_episodes // self.shard_episodes)
        self._rows.append(row | self._video_columns(frame, episode.steps))
        if len(self._rows) == self.shard_episodes:
            self._write_shard()
            self._close_shard()

    def flush(self) -> None:
        """Makes the open shard durable; it is filled up later (after an interrupt, before leaving). Not with video."""
        if self._shard is None or self.video:
            return
        if self._rows:
            self._write_shard()
        else:
            self._shard.abandon()

    def finalize(self) -> PolicyContract:
        """Writes statistics, tasks, contract and info; returns the contract with the dataset's statistics."""
        if self._torn:
            raise VolarError(f"{self.root}: writing was interrupted; go on with EpisodeWriter.resume")
        if self._rows and self._shard is not None:
            self._write_shard()
        if not self.episodes:
            raise VolarError(f"{self.root}: no episode was written")
        files = [self._path(DATA_PATH, k) for k in range(-(-self.episodes // self.shard_episodes))]
        video = (lambda shard, key: self._path(VIDEO_PATH, shard, key)) if self.video else None
        contract, stats, frames = dataset_statistics(self.contract, files, video)
        info = info_of(self.contract, self.episodes, frames, len(self._tasks), video=self.video)
        write_durably(self.root / STATS, json.dumps(stats, indent=4).encode())
        write_durably(self.root / TASKS, tasks_file(list(self._tasks)))
        write_durably(self.root / CONTRACT, (contract.to_json() + "\n").encode())
        write_durably(self.root / INFO, json.dumps(info, indent=4).encode())
        return contract

    def _path(self, template: str, shard: int, key: str = "") -> Path:
        return self.root / template.format(video_key=key, **shard_place(shard))

    @property
    def _frames(self) -> int:
        """In all episodes appended so far."""
        return int(self._rows[-1]["dataset_to_index"]) if self._rows else self._closed_frames

    def _begin_shard(self) -> OpenShard:
        """With what is durable of it already; its file is replaced when the new one is."""
        shard = self._closed_episodes // self.shard_episodes
        cameras = {IMAGE_PREFIX + camera.name: camera for camera in self.contract.cameras} if self.video else {}
        videos = {key: (camera, self._path(VIDEO_PATH, shard, key)) for key, camera in cameras.items()}
        schema, data = arrow_schema(self.contract, video=self.video), self._path(DATA_PATH, shard)
        begun = OpenShard(data, schema, videos, frames_per_second(self.contract))
        try:
            begun.add(first_rows(data, self._durable))
        except VolarError:
            begun.abandon()
            raise
        return begun

    def _write_shard(self) -> None:
        # From here on what the folder says about itself would be wrong until `finalize`.
        for name in (INFO, STATS):
            (self.root / name).unlink(missing_ok=True)
        assert self._shard is not None
        shard = self._closed_episodes // self.shard_episodes
        try:
            self._shard.commit()
            write_durably(self._path(EPISODES_PATH, shard), episodes_file(self._rows))
        except VolarError:
            self._torn = True
            self._give_up()
            raise
        self._durable, self._shard = self._frames - self._closed_frames, None

    def _give_up(self) -> None:
        """After an error of the disk: the open file is of no use, what is durable stays for `resume`."""
        if self._shard is not None:
            self._shard.abandon()
        self._shard = None
        durable = self._closed_frames + self._durable
        self._rows = [row for row in self._rows if row["dataset_to_index"] <= durable]

    def _video_columns(self, frame: int, steps: int) -> dict[str, Any]:
        """Where the episode that begins at `frame` of the dataset is in its shard's videos."""
        if not self.video:
            return {}
        fps, first = frames_per_second(self.contract), frame - self._closed_frames
        place: dict[str, Any] = shard_place(self._closed_episodes // self.shard_episodes)
        place |= {"from_timestamp": first / fps, "to_timestamp": (first + steps) / fps}
        keys = [IMAGE_PREFIX + camera.name for camera in self.contract.cameras]
        return {f"videos/{key}/{name}": value for key in keys for name, value in place.items()}

    def _close_shard(self) -> None:
        self._closed_episodes, self._closed_frames = self.episodes, self._frames
        self._durable = 0
        self._rows.clear()

    def _placed(self, batch: pa.RecordBatch, episode: int, frame: int, task: int) -> pa.Table:
        """With the columns that depend on the episode's place; `frame`: of the first row in the dataset."""
        table, rows = pa.Table.from_batches([batch]), batch.num_rows
        for name, values in (
            ("episode_index", np.full(rows, episode)),
            ("index", np.arange(frame, frame + rows)),
            ("task_index", np.full(rows, task)),
        ):
            table = table.append_column(name, pa.array(values.astype(np.int64)))
        return table

    def _load_shards(self) -> None:
        """Reads back what is durable; a last shard that is not full becomes the open one again."""
        shard = 0
        while self._path(EPISODES_PATH, shard).is_file():
            rows = readable(self._path(EPISODES_PATH, shard), lambda path: parquet_file(path).read().to_pylist())
            if self.video and len(rows) < self.shard_episodes:  # its images cannot be had back
                (self.root / INFO).unlink(missing_ok=True)
                self._path(EPISODES_PATH, shard).unlink()
                break
            self._rows = rows
            for row in rows:
                self._tasks.setdefault(row["tasks"][0], len(self._tasks))
            # The data file may hold more than these rows: it is replaced first.
            data, frames = self._path(DATA_PATH, shard), self._frames - self._closed_frames
            held, columns = readable(data, lambda path: _rows_and_columns(parquet_file(path)))
            wanted = arrow_schema(self.contract, video=self.video)
            if other := [name for name in wanted.names if columns.get(name) != wanted.field(name).type]:
                has = f"{data} is of another version: {', '.join(other)} differs from what is written now"
                raise DatasetError(f"{has}; write the rest to a dataset of its own, or begin again (overwrite=true)")
            if held < frames:
                raise DatasetError(f"{data} holds {held} frames, {self._path(EPISODES_PATH, shard)} says {frames}")
            if len(rows) < self.shard_episodes:
                self._durable = frames
                return
            self._close_shard()
            shard += 1
        # Data whose rows never came: LeRobot reads every file it finds.
        self._path(DATA_PATH, shard).unlink(missing_ok=True)
        for camera in self.contract.cameras:
            self._path(VIDEO_PATH, shard, IMAGE_PREFIX + camera.name).unlink(missing_ok=True)


def _rows_and_columns(file: pq.ParquetFile) -> tuple[int, dict[str, pa.DataType]]:
    return file.metadata.num_rows, {field.name: field.type for field in file.schema_arrow}


def _counted(episode: EncodedEpisode) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Each piece with the step at which it begins."""
    start = 0
    for batch in episode.batches():
        yield start, batch
        start += batch.num_rows
