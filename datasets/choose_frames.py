"""A dataset's frames for training, in the form that fits this machine.

Decoded frames are mapped from the disk (`frame_cache.py`): the fastest, and the largest. Where the disk has no place
for them or may not be written to, images stay the PNG or JPEG that they are, in memory (`encoded_frames.py`), and are
decoded for each batch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from volar.datasets.durable_file import DiskFull, ReadOnly
from volar.datasets.encoded_frames import encoded_bytes, encoded_frames
from volar.datasets.frame_cache import DISK_RESERVE, FrameCache
from volar.datasets.lerobot_format import load_info
from volar.datasets.lerobot_layout import FRAMES, DatasetError
from volar.robots.errors import Unknown
from volar.robots.usable_cpus import processes_here

Form = Literal["auto", "decoded", "encoded"]
FORMS: tuple[Form, ...] = ("auto", "decoded", "encoded")
MEMORY_SHARE = 0.5  # of the memory that is free, for the encoded images of all processes that torchrun started here


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

    `disk_reserve`: bytes to leave free. `memory`: bytes for encoded images; by default half of what is free, shared by
    the processes on this machine. Raises `DiskFull`, `ReadOnly`, `DatasetError` when neither form fits.
    """
    if form not in FORMS:
        raise Unknown("form of frames", form, FORMS)
    if (root / FRAMES).is_file():
        return FrameCache.open(root)
    if form == "encoded":
        return encoded_frames(root, progress)
    try:
        return FrameCache.build(root, progress=progress, disk_reserve=disk_reserve)
    except (DiskFull, ReadOnly) as error:
        if form == "decoded":
            raise
        needed = encoded_bytes(load_info(root))
        processes = processes_here()  # each has images of its own
        here = memory if memory is not None else int(MEMORY_SHARE * free_memory() / processes)
        if needed > here:
            room = f"{here / 1e9:.1f}" + (f" for each of {processes} processes" if processes > 1 else "")
            raise DatasetError(
                f"{error}. Neither do its encoded images fit in memory ({needed / 1e9:.1f} GB of {room}): "
                "convert it with a smaller image_size= or fewer cameras="
            ) from error
        frames = encoded_frames(root, progress)
        say(f"{error}. Its images stay encoded, in {needed / 1e9:.2f} GB of memory")
        return frames


def free_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that programs can get, the page cache's among them, at most what its cgroups allow this process.

    Source of the forms: proc(5), cgroups(7); a line of `/proc/self/cgroup` is `number:controllers:path`.
    """
    about = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    found = [1024 * int(about["MemAvailable"].split()[0])]  # it says kB
    files = {"": (groups, "memory.max"), "memory": (groups / "memory", "memory.limit_in_bytes")}  # versions 2 and 1
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in files:
            base, name = files[controllers]
            own = base / path.lstrip("/")
            limits = [folder / name for folder in (own, *own.parents)]  # in a container, `own` may not be there
            found += [int(text) for file in limits if file.is_file() and (text := file.read_text().strip()).isdigit()]
    return min(found)
