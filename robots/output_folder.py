"""What is in the folder that a verb is to write to."""

from pathlib import Path


def contents(folder: Path) -> list[str]:
    """The names in it, sorted; none where there is no folder.

    Without what a kill leaves of a first write that had only begun, so that the same command goes on: temporary files
    (`.NAME.tmp`, see `volar.datasets.durable_file`), and folders with nothing else in them.
    """
    if not folder.is_dir():
        return []
    return sorted(item.name for item in folder.iterdir() if not _begun(item))


def _begun(item: Path) -> bool:
    if item.is_dir() and not item.is_symlink():
        return all(_begun(inner) for inner in item.iterdir())
    return item.name.startswith(".") and item.name.endswith(".tmp")
