"""Reads LeRobotDataset folders, v3 and v2.1: Volar's own, and others with images or videos."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from volar.datasets.episode import MISSING_CAMERAS, POINTS_SHAPE, Episode, with_every_point
from volar.datasets.lerobot_layout import (
    CODEBASE_VERSION,
    CONTRACT,
    EPISODES_PATH,
    FRAMES,
    IMAGE_PREFIX,
    INFO,
    POINTS,
    POINTS_VALID,
    ROWS,
    TASKS,
    WRITER,
    DatasetError,
    decode_image,
    height_and_width,
    is_depth,
    parquet_file,
)
from volar.datasets.lerobot_meta import checked_info, episode_rows, tasks_of
from volar.datasets.lerobot_v21 import EPISODES, VERSIONS, v21_rows, v21_tasks
from volar.datasets.lerobot_v21 import TASKS as V21_TASKS
from volar.robots.contract import PolicyContract, differences


@dataclass(frozen=True)
class DatasetInfo:
    """What `meta/` says about a dataset.

    `episodes`: one dict for each episode, in order, with LeRobot's columns (no statistics).
    `tasks`: instruction of each `task_index`.
    """

    root: Path
    fps: float
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
        return {name: height_and_width(self.features[key]) for name, key in self.camera_keys.items()}

    @property
    def camera_keys(self) -> dict[str, str]:
        """Camera name -> feature: `front` of `observation.images.front`, `image` of `observation.image`.

        Depth maps are no cameras: their numbers are distances, not colours.
        """
        images = {key: feature for key, feature in self.features.items() if feature["dtype"] in ("image", "video")}
        keys = [key for key, feature in images.items() if not is_depth(feature)]
        return {key.removeprefix(IMAGE_PREFIX).removeprefix("observation."): key for key in keys}

    def size(self, key: str) -> int:
        """Length of a vector feature. Raises `DatasetError` naming the features there are."""
        if key not in self.features:
            raise DatasetError(f"{self.root} has no feature {key!r} (features: {', '.join(sorted(self.features))})")
        return int(self.features[key]["shape"][0])

    def data_file(self, episode: dict[str, Any]) -> Path:
        return self.root / self.data_path.format(**_place(episode, "data"))

    def video_file(self, episode: dict[str, Any], key: str) -> Path:
        """Raises `DatasetError` when the dataset does not say where its videos are."""
        if self.video_path is None:
            raise DatasetError(f"{self.root / INFO} has videos but no video_path")
        return self.root / self.video_path.format(video_key=key, **_place(episode, f"videos/{key}"))

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
    info = readable(root / INFO, lambda p: checked_info(json.loads(p.read_text())))
    version = info.get("codebase_version")
    if version in VERSIONS:
        episodes = readable(root / EPISODES, lambda path: v21_rows(path, info))
        tasks = readable(root / V21_TASKS, v21_tasks)
    elif version == CODEBASE_VERSION:
        files = sorted((root / "meta/episodes").glob("*/*.parquet"))
        if not files:
            raise DatasetError(f"{root} has no {EPISODES_PATH.format(chunk_index=0, file_index=0)}")
        episodes = [row for path in files for row in readable(path, episode_rows)]
        episodes.sort(key=lambda row: int(row["episode_index"]))
        tasks = readable(root / TASKS, tasks_of)
    else:
        raise DatasetError(
            f"{root} is LeRobotDataset {version}; this reads {', '.join((CODEBASE_VERSION, *VERSIONS))}: "
            "convert it with LeRobot's own scripts first"
        )
    if len(episodes) != info["total_episodes"]:
        raise DatasetError(f"{root}: {INFO} says {info['total_episodes']} episodes, meta has {len(episodes)}")
    _check_episodes(root, episodes)
    return DatasetInfo(
        root=root,
        fps=info["fps"],
        features=info["features"],
        data_path=info["data_path"],
        video_path=info.get("video_path"),
        episodes=tuple(episodes),
        tasks=tasks,
    )


def _check_episodes(root: Path, episodes: list[dict[str, Any]]) -> None:
    """Raises `DatasetError` for an episode that is there twice, or has no steps."""
    numbers = Counter(int(row["episode_index"]) for row in episodes)
    twice = [number for number, count in numbers.items() if count > 1]
    if twice:
        raise DatasetError(f"{root}: meta has episode {', '.join(map(str, twice[:5]))} more than once")
    empty = [int(row["episode_index"]) for row in episodes if int(row["length"]) < 1]
    if empty:
        raise DatasetError(f"{root}: episode {', '.join(map(str, empty[:5]))} has no steps")


def load_contract(root: Path, wanted: PolicyContract | None = None) -> PolicyContract:
    """The contract of a dataset with its statistics, or of a folder of generated frames.

    `wanted`: what it has to agree with in everything but statistics and chunking. Raises `DatasetError`
    when there is no dataset or contract, or listing every field that differs, from `wanted` or from the dataset's own
    `info.json`.
    """
    info = None if (root / FRAMES).is_file() else load_info(root)
    if not (root / CONTRACT).is_file():
        raise DatasetError(
            f"{root} has no {CONTRACT}: units and frames are unknown; volar-convert source=lerobot writes one"
        )
    contract = PolicyContract.load(root / CONTRACT)
    if info is not None:
        _require_own(info, contract)
    if wanted is not None:
        found = differences(wanted, contract, ignore=("statistics", "chunk_length", "execute_steps"))
        if found:
            raise DatasetError(f"the dataset {root} does not fit: " + "; ".join(map(str, found)))
    return contract


def _require_own(info: DatasetInfo, contract: PolicyContract) -> None:
    """Raises `DatasetError` listing where a contract is of other data. Cameras may be fewer than the data's."""
    pairs: list[tuple[str, object, object]] = [
        (f"camera {c.name} (height, width)", (c.height, c.width), info.cameras.get(c.name)) for c in contract.cameras
    ]
    pairs += [
        ("states", len(contract.state_names), info.size("observation.state")),
        ("actions", contract.action.size, info.size("action")),
        ("frames a second", contract.action.rate_hz, info.fps),
    ]
    wrong = [f"{name} {said}, {INFO} {found}" for name, said, found in pairs if said != found]
    if wrong:
        fix = "put its own back, or remove it and say what its numbers mean with volar-convert source=lerobot"
        raise DatasetError(f"{info.root}: {CONTRACT} is of other data ({'; '.join(wrong)}): {fix}")


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
    for row, table in read_tables(path, episodes):
        images = {name: np.stack(list(frames(info, table, row, name))) for name in info.camera_keys}
        yield episode_of(info, table, row, images)


def read_tables(path: Path, episodes: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """The rows of each of these episodes of one data file, which is read by row group."""
    file = readable(path, parquet_file)
    groups = (readable(path, lambda _, k=k: file.read_row_group(k)) for k in range(file.num_row_groups))  # type: ignore[misc]
    alone = len(episodes) == 1 and file.metadata.num_rows == episodes[0]["length"]  # whatever `index` says: merged v2.1
    table = file.schema_arrow.empty_table()
    if "index" not in table.column_names:
        raise DatasetError(f"{path} has no column 'index' (columns: {', '.join(table.column_names)})")
    for episode in episodes:
        first, last = episode["dataset_from_index"], episode["dataset_to_index"]
        while (alone or not len(table) or table.column("index")[-1].as_py() < last - 1) and (
            group := next(groups, None)
        ) is not None:
            table = pa.concat_tables([table, group]) if len(table) else group
        start, stop = np.searchsorted(table.column("index").to_numpy(), (first, last))
        start, stop = (0, len(table)) if alone else (start, stop)
        if stop - start != episode["length"]:
            raise DatasetError(
                f"{path} has {stop - start} of {episode['length']} steps of episode {episode['episode_index']}"
            )
        yield episode, table.slice(start, stop - start)
        table = table.slice(stop)


def missing_cameras(row: dict[str, Any]) -> tuple[str, ...]:
    """Cameras that the episode of a row of `meta/episodes` lacks, see `Episode.missing_cameras`."""
    return tuple(json.loads(row.get("volar/info") or "{}").get(MISSING_CAMERAS, ()))


def episode_of(
    info: DatasetInfo, table: pa.Table, row: dict[str, Any], images: Mapping[str, NDArray[np.uint8]]
) -> Episode:
    """The episode of a row of `meta/episodes` and its rows in the data file, with those images."""
    tasks = set(vectors(table, "task_index").ravel().tolist())
    if not tasks <= set(range(len(info.tasks))):
        raise DatasetError(
            f"episode {row['episode_index']} of {info.root} has tasks {sorted(tasks)} of {len(info.tasks)}"
        )
    instructions = {info.tasks[i] for i in tasks}
    if len(instructions) != 1:
        raise DatasetError(
            f"episode {row['episode_index']} of {info.root} has several instructions: {sorted(instructions)}"
        )
    instruction = instructions.pop()
    names = table.column_names
    success = row.get("volar/success")
    if success is None:
        success = bool(table.column("next.success").to_numpy().any()) if "next.success" in names else True
    return Episode(
        images=images,
        state=vectors(table, "observation.state").astype(np.float32, copy=False),
        actions=vectors(table, "action").astype(np.float32, copy=False),
        points=points_of(table),
        instruction=instruction,
        task=row.get("volar/task") or instruction,
        success=success,
        seed=row.get("volar/seed", -1),
        info=json.loads(row.get("volar/info") or "{}"),
    )


def points_of(table: pa.Table) -> NDArray[np.float32]:
    """`Episode.points` (N, 3, 5) of data rows; NaN where they have no such labels, or not of every point."""
    known, fields = POINTS_SHAPE
    found: NDArray[np.float32] = np.zeros((len(table), 0), np.float32)
    if {POINTS, POINTS_VALID} <= set(table.column_names):
        valid = vectors(table, POINTS_VALID).astype(bool)
        found = np.where(valid, vectors(table, POINTS), np.nan).astype(np.float32)
    if found.shape[1] % fields or found.shape[1] > known * fields:
        found = found[:, :0]  # somebody else's columns of that name
    return with_every_point(found.reshape(len(table), found.shape[1] // fields, fields))


def vectors(table: pa.Table, key: str) -> NDArray[Any]:
    """A vector column as (N, D). Raises `DatasetError` naming the columns when it is not there."""
    if key not in table.column_names:
        raise DatasetError(f"no column {key!r} (columns: {', '.join(table.column_names)})")
    column = table.column(key).combine_chunks()
    scalar = not (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type))
    flat: NDArray[Any] = (column if scalar else column.flatten()).to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)


def frames(info: DatasetInfo, table: pa.Table, row: dict[str, Any], camera: str) -> Iterator[NDArray[np.uint8]]:
    """The images (H, W, 3) of a camera in an episode, each decoded when it is taken. Raises `DatasetError`."""
    key, wanted = info.camera_keys[camera], info.cameras[camera]
    if info.features[key]["dtype"] == "video":
        images = _video(info, table, row, key)
    elif key not in table.column_names:
        raise DatasetError(f"{info.root}: episode {row['episode_index']} has no column {key!r}, {INFO} has")
    else:
        images = (decode_image(_bytes(info, item.as_py())) for item in table.column(key))
    for image in images:
        if image.shape[:2] != wanted:
            raise DatasetError(f"{key} of episode {row['episode_index']} is {image.shape[:2]}, {INFO} says {wanted}")
        yield image


def _bytes(info: DatasetInfo, item: dict[str, Any]) -> bytes:
    """HuggingFace's image: its bytes, or the path of a file in the dataset. Raises `DatasetError`."""
    if item["bytes"] is not None:
        return bytes(item["bytes"])
    path = info.root / str(item["path"])
    return readable(path, Path.read_bytes)


def _video(info: DatasetInfo, table: pa.Table, row: dict[str, Any], key: str) -> Iterator[NDArray[np.uint8]]:
    from lerobot.datasets.video_utils import decode_video_frames

    path = info.video_file(row, key)
    if not path.is_file():
        raise DatasetError(f"{info.root} has no {path.relative_to(info.root)}")
    stamps = vectors(table, "timestamp")[:, 0].astype(np.float64) + row[f"videos/{key}/from_timestamp"]
    # The timestamps are float32, and LeRobot's decoder compares in float32: late in a film, one step of that is more.
    tolerance_s = max(1e-4, 2 * float(np.spacing(np.float32(stamps.max()))))
    for start in range(0, len(stamps), ROWS):
        try:
            some = stamps[start : start + ROWS].tolist()
            images = decode_video_frames(path, some, tolerance_s, "pyav", return_uint8=True)  # (n, 3, H, W)
        except Exception as error:  # FFmpeg's and LeRobot's own, of many kinds
            what = f"{path} cannot be decoded for episode {row['episode_index']}"
            raise DatasetError(f"{what}: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from error
        yield from np.ascontiguousarray(images.numpy().transpose(0, 2, 3, 1))


def _place(episode: dict[str, Any], prefix: str) -> dict[str, int]:
    """What the path templates of v3 and v2.1 want to know."""
    chunk, file = episode[f"{prefix}/chunk_index"], episode[f"{prefix}/file_index"]
    return {"chunk_index": chunk, "file_index": file, "episode_chunk": chunk, "episode_index": episode["episode_index"]}


def readable[T](path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a file. Raises `DatasetError` naming it when it is missing, cut or damaged."""
    try:
        return read(path)
    except FileNotFoundError as error:
        raise DatasetError(f"the dataset has no {path}") from error
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, StopIteration) as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DatasetError(f"{path} cannot be read, it is cut or damaged: {what}") from error
