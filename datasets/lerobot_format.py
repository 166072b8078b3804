"""Reads LeRobotDataset v3 folders: Volar's own, and others with images or videos."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from volar.datasets.episode import POINTS_SHAPE, Episode
from volar.datasets.lerobot_layout import (
    CODEBASE_VERSION,
    CONTRACT,
    EPISODES_PATH,
    FRAMES,
    IMAGE_PREFIX,
    INFO,
    POINTS,
    POINTS_VALID,
    TASKS,
    WRITER,
    DatasetError,
    decode_image,
)
from volar.robots.contract import PolicyContract, differences


@dataclass(frozen=True)
class DatasetInfo:
    """What `meta/` says about a dataset.

    `episodes`: one dict for each episode, in order, with LeRobot's columns (no statistics).
    `tasks`: instruction of each `task_index`.
    """

    root: Path
    fps: int
    features: dict[str, dict[str, Any]]
    data_path: str
    video_path: str | None
    episodes: tuple[dict[str, Any], ...]
    tasks: tuple[str, ...]

    @property
    def frames(self) -> int:
        """N, over all episodes."""
        return int(self.episodes[-1]["dataset_to_index"]) if self.episodes else 0

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """Camera name -> (height, width)."""
        return {
            key.removeprefix(IMAGE_PREFIX): (int(f["shape"][0]), int(f["shape"][1]))
            for key, f in self.features.items()
            if key.startswith(IMAGE_PREFIX) and f["dtype"] in ("image", "video")
        }

    def size(self, key: str) -> int:
        """Length of a vector feature. Raises `DatasetError` naming the features there are."""
        if key not in self.features:
            raise DatasetError(f"{self.root} has no feature {key!r} (features: {', '.join(sorted(self.features))})")
        return int(self.features[key]["shape"][0])

    def data_file(self, episode: dict[str, Any]) -> Path:
        path = self.data_path.format(chunk_index=episode["data/chunk_index"], file_index=episode["data/file_index"])
        return self.root / path

    def by_file(self) -> list[tuple[Path, list[dict[str, Any]]]]:
        """Data files in order, each with its episodes."""
        files: dict[Path, list[dict[str, Any]]] = {}
        for episode in self.episodes:
            files.setdefault(self.data_file(episode), []).append(episode)
        return list(files.items())


def load_info(root: Path) -> DatasetInfo:
    """Raises `DatasetError` naming the missing or unreadable file, or the version found."""
    if not (root / INFO).is_file():
        if (root / WRITER).is_file():
            raise DatasetError(f"{root} was not finished: its collection was interrupted; continue it with resume=true")
        raise DatasetError(f"{root} is not a LeRobotDataset: it has no {INFO}")
    info = _parsed(root / INFO, lambda p: dict(json.loads(p.read_text())))
    version = info.get("codebase_version")
    if version != CODEBASE_VERSION:
        raise DatasetError(
            f"{root} is LeRobotDataset {version}, this reads {CODEBASE_VERSION}; volar-convert converts older ones"
        )
    missing = [key for key in ("fps", "features", "data_path", "total_episodes") if key not in info]
    if missing:
        raise DatasetError(f"{root / INFO} lacks {', '.join(missing)}")
    files = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise DatasetError(f"{root} has no {EPISODES_PATH.format(chunk_index=0, file_index=0)}")
    episodes = tuple(row for path in files for row in _parsed(path, episode_rows))
    if len(episodes) != info["total_episodes"]:
        raise DatasetError(f"{root}: {INFO} says {info['total_episodes']} episodes, meta/episodes has {len(episodes)}")
    return DatasetInfo(
        root=root,
        fps=int(info["fps"]),
        features=info["features"],
        data_path=info["data_path"],
        video_path=info.get("video_path"),
        episodes=episodes,
        tasks=_parsed(root / TASKS, _tasks),
    )


def load_contract(root: Path, wanted: PolicyContract | None = None) -> PolicyContract:
    """The contract of a dataset with its statistics, or of a folder of generated frames.

    `wanted`: what it has to agree with in everything but statistics and chunking. Raises `DatasetError`
    when there is no dataset or contract, or listing every field that differs.
    """
    if not (root / FRAMES).is_file():
        load_info(root)
    if not (root / CONTRACT).is_file():
        raise DatasetError(f"{root} has no {CONTRACT}: units and frames are unknown; volar-convert writes one")
    contract = PolicyContract.load(root / CONTRACT)
    if wanted is not None:
        found = differences(wanted, contract, ignore=("statistics", "chunk_length", "execute_steps"))
        if found:
            raise DatasetError(f"the dataset {root} does not fit: " + "; ".join(map(str, found)))
    return contract


def read_episodes(root: Path) -> Iterator[Episode]:
    """Every episode in order, decoded. Raises `DatasetError` on a file that is missing or cut.

    Where a dataset does not say: no labels are NaN points, the task is the instruction, the seed -1, and a
    demonstration counts as successful.
    """
    info = load_info(root)
    for path, episodes in info.by_file():
        yield from read_file(info, path, episodes)


def read_file(info: DatasetInfo, path: Path, episodes: list[dict[str, Any]]) -> Iterator[Episode]:
    """The episodes of one data file, see `DatasetInfo.by_file`."""
    table = _parsed(path, lambda p: pq.ParquetFile(p).read())
    index = table.column("index").to_numpy()
    for episode in episodes:
        start, stop = np.searchsorted(index, (episode["dataset_from_index"], episode["dataset_to_index"]))
        if stop - start != episode["length"]:
            raise DatasetError(
                f"{path} has {stop - start} of {episode['length']} steps of episode {episode['episode_index']}"
            )
        yield _episode(info, table.slice(start, stop - start), episode)


def episode_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of one file of `meta/episodes`, without the statistics columns."""
    names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
    # Through the file, not the dataset API, which would read `chunk-000` as a partition.
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read(names).to_pylist()
    return rows


def _episode(info: DatasetInfo, table: pa.Table, row: dict[str, Any]) -> Episode:
    instructions = {info.tasks[i] for i in table.column("task_index").unique().to_pylist()}
    if len(instructions) != 1:
        raise DatasetError(
            f"episode {row['episode_index']} of {info.root} has several instructions: {sorted(instructions)}"
        )
    instruction = instructions.pop()
    names = table.column_names
    points = np.full((len(table), *POINTS_SHAPE), np.nan, dtype=np.float32)
    if POINTS in names and info.size(POINTS) == points[0].size:
        valid = vectors(table, POINTS_VALID).astype(bool)
        points = np.where(valid, vectors(table, POINTS), np.nan).astype(np.float32).reshape(points.shape)
    success = row.get("volar/success")
    if success is None:
        success = bool(table.column("next.success").to_numpy().any()) if "next.success" in names else True
    return Episode(
        images={name: _images(info, table, row, IMAGE_PREFIX + name) for name in info.cameras},
        state=vectors(table, "observation.state").astype(np.float32, copy=False),
        actions=vectors(table, "action").astype(np.float32, copy=False),
        points=points,
        instruction=instruction,
        task=row.get("volar/task") or instruction,
        success=success,
        seed=row.get("volar/seed", -1),
        info=json.loads(row.get("volar/info") or "{}"),
    )


def vectors(table: pa.Table, key: str) -> NDArray[Any]:
    """A vector column as (N, D). Raises `DatasetError` naming the columns when it is not there."""
    if key not in table.column_names:
        raise DatasetError(f"no column {key!r} (columns: {', '.join(table.column_names)})")
    column = table.column(key).combine_chunks()
    flat: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)


def _images(info: DatasetInfo, table: pa.Table, row: dict[str, Any], key: str) -> NDArray[np.uint8]:
    if info.features[key]["dtype"] == "video":
        return _video(info, table, row, key)
    data = table.column(key).combine_chunks().field("bytes").to_pylist()
    images = np.stack([decode_image(d) for d in data])
    wanted = info.cameras[key.removeprefix(IMAGE_PREFIX)]
    if images.shape[1:3] != wanted:
        raise DatasetError(f"{key} of episode {row['episode_index']} is {images.shape[1:3]}, {INFO} says {wanted}")
    return images


def _video(info: DatasetInfo, table: pa.Table, row: dict[str, Any], key: str) -> NDArray[np.uint8]:
    from lerobot.datasets.video_utils import decode_video_frames

    if info.video_path is None:
        raise DatasetError(f"{info.root / INFO} has videos but no video_path")
    chunk, file = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
    path = info.root / info.video_path.format(video_key=key, chunk_index=chunk, file_index=file)
    if not path.is_file():
        raise DatasetError(f"{info.root} has no {path.relative_to(info.root)}")
    stamps = table.column("timestamp").to_numpy() + row[f"videos/{key}/from_timestamp"]
    frames = decode_video_frames(path, stamps.tolist(), 1e-4, "pyav", return_uint8=True)  # (T, 3, H, W)
    return np.ascontiguousarray(frames.numpy().transpose(0, 2, 3, 1))


def _tasks(path: Path) -> tuple[str, ...]:
    rows = pq.ParquetFile(path).read()
    # Pandas keeps its index, the instruction, in the last column.
    text = next(n for n in ("task", "__index_level_0__") if n in rows.column_names)
    order = np.argsort(rows.column("task_index").to_numpy())
    return tuple(rows.column(text).to_pylist()[i] for i in order)


def _parsed[T](path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise DatasetError(f"the dataset has no {path}") from error
    except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
        raise DatasetError(f"{path} cannot be read, it is cut or damaged: {str(error).splitlines()[0]}") from error
