"""A folder takes another's place, and a kill at any time costs neither."""

import os
import shutil
from pathlib import Path


def replace_folder(final: Path, new: Path) -> None:
    """Moves the complete folder `new` to `final`; what is there goes aside first, as `FINAL.old`, and then."""
    for path in sorted(new.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    old = _aside(final)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def put_back(final: Path) -> None:
    """Ends what a kill has left of `replace_folder`: `final` is there again, if it ever was."""
    old = _aside(final)
    if old.exists() and not final.exists():
        old.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _aside(final: Path) -> Path:
    return final.with_name(f"{final.name}.old")
