"""Files that are there completely or not at all, also after a kill or a power cut."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from volar.robots.errors import VolarError


class OutputExists(VolarError):
    """The output folder already holds something."""


class DiskFull(VolarError):
    """No space left; what was complete is intact."""


class ReadOnly(VolarError):
    """A place that may not be written to."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the system's errors while `path` is written into `DiskFull`, `ReadOnly` or `VolarError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left to write {path}; free some, then continue with resume=true") from error
        kind = ReadOnly if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) else VolarError
        raise kind(f"{path} cannot be written: {error.strerror}") from error


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DurableFile:
    """A file that is written under a temporary name, in pieces, and has its own name from `commit` on.

    The system's errors in `file` are the writer's to translate: `disk_errors(path)`. Raises `DiskFull`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._temporary = path, path.with_name(f".{path.name}.tmp")
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file: BinaryIO = self._temporary.open("wb")

    def commit(self) -> None:
        """Syncs, renames and syncs the folder; leaves nothing behind when that fails. Raises `DiskFull`."""
        with disk_errors(self.path):
            try:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                self._temporary.replace(self.path)
            except OSError:
                self.abandon()
                raise
            sync(self.path.parent)

    def abandon(self) -> None:
        """Removes what was written; the file's own name keeps what it had."""
        with suppress(OSError):  # closing writes what is left to write
            self.file.close()
        self._temporary.unlink(missing_ok=True)


def write_durably(path: Path, data: bytes) -> None:
    """Writes a whole file, see `DurableFile`. Raises `DiskFull`."""
    target = DurableFile(path)
    with disk_errors(path):
        try:
            target.file.write(data)
        except OSError:
            target.abandon()
            raise
    target.commit()
