"""Every frame of a dataset, decoded once into arrays that are mapped into memory.

Random access to a decoded frame is a page of a file; to a PNG inside Parquet it is a decompression and a
decoding of a third of a millisecond. The cache lives in the dataset's own folder unless told otherwise, in
a folder named by the SHA-256 of the dataset's files, so it is never stale and goes when the dataset goes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.datasets.episode import POINTS_SHAPE
from volar.datasets.lerobot_format import DatasetError
from volar.datasets.lerobot_reader import DatasetInfo, load_info, read_file
from volar.robots.errors import VolarError

FORMAT = 1  # counts up when the layout below changes
FOLDER = ".volar_cache"
COMPLETE = "cache.json"


@dataclass(frozen=True)
class FrameCache:
    """N frames. `images`: camera -> uint8 (N, H, W, 3); `state`: float32 (N, S); `action`: float32 (N, A).

    `points`: float32 (N, 2, 5) as `Episode.points`, NaN where there is none. `episode_end`: int64 (N,), the
    index one past the last frame of the frame's episode. `instruction_id`: int32 (N,) into `instructions`.
    Arrays of a built cache are read-only. Raises `ValueError` on shapes that do not fit together.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    points: NDArray[np.float32]
    episode_end: NDArray[np.int64]
    instruction_id: NDArray[np.int32]
    instructions: tuple[str, ...]

    def __post_init__(self) -> None:
        arrays = {name: getattr(self, name) for name in ("state", "points", "episode_end", "instruction_id")}
        for name, array in (arrays | dict(self.images)).items():
            if len(array) != len(self):
                raise ValueError(f"{name} has {len(array)} frames, action {len(self)}")
        if self.points.shape[1:] != POINTS_SHAPE:
            raise ValueError(f"points must be (N, {POINTS_SHAPE}), are {self.points.shape}")
        if len(self) and not (self.episode_end > np.arange(len(self))).all():
            raise ValueError("episode_end must lie behind every frame")

    def __len__(self) -> int:
        """N."""
        return len(self.action)

    @staticmethod
    def from_arrays(
        images: Mapping[str, NDArray[np.uint8]],
        state: NDArray[np.float32],
        action: NDArray[np.float32],
        points: NDArray[np.float32],
        instruction_id: NDArray[np.int32],
        instructions: Iterable[str],
        episode_end: NDArray[np.int64] | None = None,
    ) -> "FrameCache":
        """From frames in memory; without `episode_end` every frame is an episode of its own."""
        if episode_end is None:
            episode_end = np.arange(1, len(action) + 1, dtype=np.int64)
        return FrameCache(images, state, action, points, episode_end, instruction_id, tuple(instructions))

    @staticmethod
    def build(
        root: Path,
        cache_dir: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        workers: int | None = None,
    ) -> "FrameCache":
        """The cache of a dataset; decodes it if there is none yet.

        `cache_dir`: holds it instead of the dataset's folder. `progress(done, total)`: frames, called from
        this thread. `workers`: decoding threads, by default one for each CPU this process may use.
        Raises `DatasetError` on a dataset that cannot be read.
        """
        info = load_info(root)
        folder = (cache_dir or root / FOLDER) / _key(info)
        if not (folder / COMPLETE).is_file():
            _decode(info, folder, progress, workers or len(os.sched_getaffinity(0)))
        return FrameCache.open(folder)

    @staticmethod
    def open(folder: Path) -> "FrameCache":
        """A cache folder that `build` made."""
        if not (folder / COMPLETE).is_file():
            raise DatasetError(f"{folder} is no complete frame cache; FrameCache.build makes one")
        about = json.loads((folder / COMPLETE).read_text())
        small = {name: np.load(folder / f"{name}.npy") for name in about["small"]}
        for array in small.values():
            array.flags.writeable = False
        images = {name: np.load(folder / "images" / f"{name}.npy", mmap_mode="r") for name in about["cameras"]}
        return FrameCache(images=images, instructions=tuple(about["instructions"]), **small)


def _key(info: DatasetInfo) -> str:
    """SHA-256 over the names and bytes of everything the cache is made from."""
    digest = hashlib.sha256(f"frame cache {FORMAT}".encode())
    paths = [info.root / "meta/info.json", info.root / "meta/tasks.parquet"]
    for pattern in ("meta/episodes/*/*.parquet", "data/*/*.parquet", "videos/*/*/*.mp4"):
        paths += sorted(info.root.glob(pattern))
    for path in paths:
        digest.update(path.relative_to(info.root).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _decode(info: DatasetInfo, folder: Path, progress: Callable[[int, int], None] | None, workers: int) -> None:
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (temporary / "images").mkdir(parents=True)
        cache = _allocate(info, temporary)
        files = info.by_file()
        # Threads suffice: OpenCV decodes outside the interpreter lock.
        with ThreadPoolExecutor(workers) as pool:
            done = 0
            for frames in pool.map(lambda item: _decode_file(info, cache, *item), files):
                done += frames
                if progress is not None:
                    progress(done, info.frames)
        for array in cache.images.values():
            array.flush()  # type: ignore[attr-defined]
        small = ("state", "action", "points", "episode_end", "instruction_id")
        for name in small:
            np.save(temporary / f"{name}.npy", getattr(cache, name))
        about = {"cameras": list(cache.images), "small": small, "instructions": list(cache.instructions)}
        (temporary / COMPLETE).write_text(json.dumps(about))
        if not folder.exists():
            temporary.rename(folder)
    except OSError as error:
        raise VolarError(
            f"the frame cache {folder} cannot be written ({error.strerror}); choose another place"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for other in folder.parent.iterdir():  # of what the dataset was before
        if other != folder and folder.parent.name == FOLDER and other.suffix != ".tmp":
            shutil.rmtree(other, ignore_errors=True)


def _allocate(info: DatasetInfo, folder: Path) -> FrameCache:
    n = info.frames
    starts = [e["dataset_from_index"] for e in info.episodes]
    if starts != [0, *(e["dataset_to_index"] for e in info.episodes[:-1])]:
        raise DatasetError(f"{info.root}: the episodes do not follow each other without gaps")
    images: dict[str, Any] = {
        name: np.lib.format.open_memmap(folder / "images" / f"{name}.npy", "w+", np.uint8, (n, *size, 3))  # type: ignore[no-untyped-call]
        for name, size in info.cameras.items()
    }
    ends = np.array([e["dataset_to_index"] for e in info.episodes], dtype=np.int64)
    return FrameCache(
        images=images,
        state=np.zeros((n, info.size("observation.state")), np.float32),
        action=np.zeros((n, info.size("action")), np.float32),
        points=np.full((n, *POINTS_SHAPE), np.nan, np.float32),
        episode_end=np.repeat(ends, [e["length"] for e in info.episodes]),
        instruction_id=np.zeros(n, np.int32),
        instructions=info.tasks,
    )


def _decode_file(info: DatasetInfo, cache: FrameCache, path: Path, rows: list[dict[str, Any]]) -> int:
    """Decodes one data file into its place; returns its frames."""
    frames = 0
    number = {text: i for i, text in enumerate(info.tasks)}
    for row, episode in zip(rows, read_file(info, path, rows), strict=True):
        place = slice(row["dataset_from_index"], row["dataset_to_index"])
        cache.state[place], cache.action[place], cache.points[place] = episode.state, episode.actions, episode.points
        cache.instruction_id[place] = number[episode.instruction]
        for name, images in episode.images.items():
            cache.images[name][place] = images
        frames += len(episode)
    return frames
