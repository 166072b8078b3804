"""Every frame of a dataset, decoded once into arrays that are mapped into memory.

Random access to a decoded frame is a page of a file; to a PNG inside Parquet it is a decompression and a
decoding of a third of a millisecond. The cache lives in the dataset's own folder unless told otherwise, in
a folder named by the SHA-256 of the dataset's files, so it is never stale and goes when the dataset goes.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.datasets.durable_file import DiskFull, OutputExists, disk_errors, write_durably
from volar.datasets.episode import POINTS_SHAPE, with_every_point
from volar.datasets.lerobot_format import DatasetInfo, episode_of, frames, load_info, missing_cameras, read_tables
from volar.datasets.lerobot_layout import CONTRACT, FRAMES, DatasetError
from volar.robots.contract import PolicyContract
from volar.robots.output_folder import contents
from volar.robots.usable_cpus import usable_cpus

FORMAT = 2  # counts up when the layout below changes
FOLDER = ".volar_cache"
DISK_RESERVE = 2**30  # bytes that a cache leaves free: a disk filled to its end stops everything else
SMALL = ("state", "action", "points", "episode_end", "instruction_id")  # held in memory, not mapped


@dataclass(frozen=True)
class FrameCache:
    """N frames. `images`: camera -> uint8 (N, H, W, 3); `state`: float32 (N, S); `action`: float32 (N, A).

    `points`: float32 (N, 3, 5) as `Episode.points`, NaN where there is none. `episode_end`: int64 (N,), the
    index one past the last frame of the frame's episode. `instruction_id`: int32 (N,) into `instructions`.
    `camera_mask`: camera -> bool (N,), False in episodes that lack it, where its images are black; a camera that is not
    named is there in all frames. Arrays of a built cache are read-only.
    Raises `ValueError` on shapes that do not fit together.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    points: NDArray[np.float32]
    episode_end: NDArray[np.int64]
    instruction_id: NDArray[np.int32]
    instructions: tuple[str, ...]
    camera_mask: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = {name: getattr(self, name) for name in ("state", "points", "episode_end", "instruction_id")}
        arrays |= {f"camera_mask of {name}": mask for name, mask in self.camera_mask.items()}
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

    def save(self, folder: Path, contract: PolicyContract | None = None) -> None:
        """Writes generated frames to an empty or new folder, for `open`; with a contract, for `load_contract`.

        Raises `OutputExists`, `DiskFull`.
        """
        if folder.exists() and (not folder.is_dir() or contents(folder)):
            raise OutputExists(f"{folder} is not empty: choose another output, or replace it with overwrite=true")
        with disk_errors(folder):
            (folder / "images").mkdir(parents=True, exist_ok=True)
            for name, array in self.images.items():
                np.save(folder / "images" / f"{name}.npy", array)
            if contract is not None:
                contract.save(folder / CONTRACT)
            self.complete(folder)

    def complete(self, folder: Path) -> None:
        """Writes all but the images, which are there; last what makes the folder one for `open`. Raises `DiskFull`."""
        small = {f"{name}.npy": getattr(self, name) for name in SMALL}
        for name, array in (small | {_mask_file(name): mask for name, mask in self.camera_mask.items()}).items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            write_durably(folder / name, buffer.getvalue())
        about = {"cameras": list(self.images), "instructions": list(self.instructions)}
        about |= {"masked": list(self.camera_mask)} if self.camera_mask else {}
        write_durably(folder / FRAMES, json.dumps(about).encode())

    @staticmethod
    def build(
        root: Path,
        cache_dir: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        workers: int | None = None,
        disk_reserve: int = DISK_RESERVE,
    ) -> "FrameCache":
        """The cache of a dataset; decodes it if there is none yet.

        `cache_dir`: holds it instead of the dataset's folder. `progress(done, total)`: frames, called from
        this thread. `workers`: decoding threads, by default one for each CPU this process may use.
        `disk_reserve`: bytes to leave free. Raises `DatasetError` on a dataset that cannot be read, `DiskFull` before
        anything is decoded.
        """
        info = load_info(root)
        folder = (cache_dir or root / FOLDER) / _key(info)
        if not (folder / FRAMES).is_file():
            with _alone_in(folder.parent):
                if not (folder / FRAMES).is_file():  # another process may have been faster
                    _require_room(info, folder, disk_reserve)
                    _decode(info, folder, progress, workers or usable_cpus())
        return FrameCache.open(folder)

    @staticmethod
    def open(folder: Path) -> "FrameCache":
        """A cache folder that `build` made."""
        if not (folder / FRAMES).is_file():
            raise DatasetError(f"{folder} is no complete frame cache; FrameCache.build makes one")
        about = json.loads((folder / FRAMES).read_text())
        small = {name: np.load(folder / f"{name}.npy") for name in SMALL}
        small["points"] = with_every_point(small["points"])
        masks = {name: np.load(folder / _mask_file(name)) for name in about.get("masked", ())}
        for array in (*small.values(), *masks.values()):
            array.flags.writeable = False
        images = {name: np.load(folder / "images" / f"{name}.npy", mmap_mode="r") for name in about["cameras"]}
        return FrameCache(images=images, instructions=tuple(about["instructions"]), camera_mask=masks, **small)


def _mask_file(camera: str) -> str:
    return f"camera_mask.{camera}.npy"


def _key(info: DatasetInfo) -> str:
    """SHA-256 over the names and bytes of everything the cache is made from."""
    digest = hashlib.sha256(f"frame cache {FORMAT}".encode())
    paths = [info.root / "meta/info.json"]
    v3, v21 = ("meta/tasks.parquet", "meta/episodes/*/*.parquet"), ("meta/tasks.jsonl", "meta/episodes.jsonl")
    for pattern in (*v3, *v21, "data/*/*.parquet", "videos/*/*/*.mp4"):
        paths += sorted(info.root.glob(pattern))
    for path in paths:
        digest.update(path.relative_to(info.root).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits for other processes that build a cache there, and removes what a killed one left."""
    with disk_errors(folder):
        there = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in folder.glob("*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    except BaseException:
        if not there:
            with suppress(OSError):  # it holds other caches
                folder.rmdir()
        raise
    finally:
        os.close(handle)


def _require_room(info: DatasetInfo, folder: Path, reserve: int) -> None:
    there = next(path for path in folder.parents if path.exists())
    needed = info.frames * sum(3 * height * width for height, width in info.cameras.values())
    free = shutil.disk_usage(there).free
    if needed + reserve > free:
        raise DiskFull(
            f"decoded, {info.root} takes {needed / 1e9:.2f} GB; {there} has {free / 1e9:.2f} GB free, of which "
            f"{reserve / 1e9:.2f} GB are kept"
        )


def _decode(info: DatasetInfo, folder: Path, progress: Callable[[int, int], None] | None, workers: int) -> None:
    temporary = folder.with_name(f"{folder.name}.tmp")
    try:
        with disk_errors(folder):
            (temporary / "images").mkdir(parents=True)
            cache = _allocate(info, temporary)
            # Threads suffice: OpenCV decodes outside the interpreter lock.
            with ThreadPoolExecutor(workers) as pool:
                done = 0
                for count in pool.map(lambda item: _decode_file(info, cache, *item), info.by_file()):
                    done += count
                    if progress is not None:
                        progress(done, info.frames)
            for array in cache.images.values():
                array.flush()  # type: ignore[attr-defined]
            cache.complete(temporary)
            shutil.rmtree(folder, ignore_errors=True)  # what is not complete
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if folder.parent.name == FOLDER:
        for other in folder.parent.iterdir():  # of what the dataset was before
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)


def _allocate(info: DatasetInfo, folder: Path) -> FrameCache:
    n = info.frames
    starts = [e["dataset_from_index"] for e in info.episodes]
    if starts != [0, *(e["dataset_to_index"] for e in info.episodes[:-1])]:
        raise DatasetError(f"{info.root}: the episodes do not follow each other without gaps")
    images = {
        name: reserved_array(folder / "images" / f"{name}.npy", (n, *size, 3)) for name, size in info.cameras.items()
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
        camera_mask=camera_masks(info),
    )


def camera_masks(info: DatasetInfo) -> dict[str, NDArray[np.bool_]]:
    """Camera -> bool (N,), of the cameras that some episode lacks: see `FrameCache.camera_mask`."""
    lengths = [int(row["length"]) for row in info.episodes]
    lacking = [missing_cameras(row) for row in info.episodes]
    names = [name for name in info.cameras if any(name in missing for missing in lacking)]
    return {name: np.repeat([name not in missing for missing in lacking], lengths) for name in names}


def reserved_array(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A new mapped array of zeros in a .npy file, with its place on the disk; no file on failure. Raises `OSError`."""
    temporary = path.with_suffix(".tmp")
    try:
        array: NDArray[np.uint8] = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)  # type: ignore[no-untyped-call]
        # A mapped file is sparse: without its blocks reserved, a full disk would be a bus error later.
        with temporary.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return array


def _decode_file(info: DatasetInfo, cache: FrameCache, path: Path, rows: list[dict[str, Any]]) -> int:
    """Decodes one data file into its place; returns its frames."""
    done = 0
    number = {text: i for i, text in enumerate(info.tasks)}
    for row, table in read_tables(path, rows):
        episode = episode_of(info, table, row, {})
        place = slice(row["dataset_from_index"], row["dataset_to_index"])
        cache.state[place], cache.action[place], cache.points[place] = episode.state, episode.actions, episode.points
        cache.instruction_id[place] = number[episode.instruction]
        for name, array in cache.images.items():
            for k, image in enumerate(frames(info, table, row, name), place.start):
                array[k] = image
        done += len(episode)
    return done
