"""The checkpoints of a training run, for a curve of success against training."""

from pathlib import Path

from volar.robots.errors import VolarError
from volar.robots.policies import find_policy


def checkpoint_policies(path: Path) -> dict[int, Path]:
    """Training step -> policy directory, in order, of the run that `path` is, is in, or is a checkpoint of.

    Raises `VolarError` when there is no folder of checkpoints (`volar-train` leaves OUTPUT/checkpoints/000100 ...).
    """
    here = path.resolve()
    for folder in (here / "checkpoints", here, *here.parents[:2]):
        steps = [item for item in folder.iterdir() if item.name.isdigit()] if folder.is_dir() else []
        if steps:
            return {int(item.name): find_policy(item) for item in sorted(steps, key=lambda item: int(item.name))}
    raise VolarError(
        f"checkpoints=all needs a training run, and {path} has no checkpoints; give policy=OUTPUT of volar-train"
    )
