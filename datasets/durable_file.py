"""Files that are there completely or not at all, also after a kill or a power cut."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from volar.robots.errors import VolarError


class OutputExists(VolarError):
    """The output folder already holds something."""


class DiskFull(VolarError):
    """No space left; what was complete is intact."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the system's errors while `path` is written into `DiskFull` or `VolarError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left to write {path}; free some, then continue with resume=true") from error
        raise VolarError(f"{path} cannot be written: {error.strerror}") from error


def write_durably(path: Path, data: bytes) -> None:
    """Writes under a temporary name, syncs, renames and syncs the folder. Raises `DiskFull`."""
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
