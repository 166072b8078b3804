"""A dataset's frames for training, in the form that fits this machine.

Decoded frames are mapped from the disk (`frame_cache.py`): the fastest, and the largest. Where the disk has no place
for them, images stay the PNG or JPEG that they are, in memory (`encoded_frames.py`), and are decoded for each batch.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from volar.datasets.durable_file import DiskFull
from volar.datasets.encoded_frames import encoded_bytes, encoded_frames
from volar.datasets.frame_cache import DISK_RESERVE, FrameCache
from volar.datasets.lerobot_format import load_info
from volar.datasets.lerobot_layout import FRAMES, DatasetError
from volar.robots.errors import Unknown

Form = Literal["auto", "decoded", "encoded"]
FORMS: tuple[Form, ...] = ("auto", "decoded", "encoded")
MEMORY_SHARE = 0.5  # of the memory that is free, for encoded images


def choose_frames(
    root: Path,
    form: Form = "auto",
    *,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = print,
    disk_reserve: int = DISK_RESERVE,
    memory: int | None = None,
) -> FrameCache:
    """Of a dataset, or of generated frames. `auto`: decoded where that fits the disk, else encoded, which is said.

    `disk_reserve`: bytes to leave free. `memory`: bytes for encoded images, half of
    what is free by default. Raises `DiskFull`, `DatasetError` when neither form fits.
    """
    if form not in FORMS:
        raise Unknown("form of frames", form, FORMS)
    if (root / FRAMES).is_file():
        return FrameCache.open(root)
    if form == "encoded":
        return encoded_frames(root, progress)
    try:
        return FrameCache.build(root, progress=progress, disk_reserve=disk_reserve)
    except DiskFull as error:
        if form == "decoded":
            raise
        needed = encoded_bytes(load_info(root))
        here = memory if memory is not None else int(MEMORY_SHARE * _free_memory())
        if needed > here:
            raise DatasetError(
                f"{error}. Neither do its encoded images fit in memory ({needed / 1e9:.1f} GB of {here / 1e9:.1f}): "
                "convert it with a smaller image_size= or fewer cameras="
            ) from error
        frames = encoded_frames(root, progress)
        say(f"{error}. Its images stay encoded, in {needed / 1e9:.2f} GB of memory")
        return frames


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
