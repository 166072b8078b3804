"""One demonstration or rollout, as arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What the rows of `Episode.points` are: the object the instruction names, where it is to go, and last the robot's own
# end effector, whose place in the image tells how the camera stands.
POINT_NAMES = ("target", "destination", "hand")
HAND_ROW = POINT_NAMES.index("hand")
# Its columns: position in the base frame [m], and where the first camera sees it, as fractions of the image's
# width and height from the top left corner (outside [0, 1] when out of view).
POINT_FIELDS = ("x", "y", "z", "u", "v")
MISSING_CAMERAS = "missing_cameras"  # the entry of `Episode.info` that names them
POINTS_SHAPE = (len(POINT_NAMES), len(POINT_FIELDS))


def with_every_point(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, K, 5), of data from before the last rows were labelled -> (N, 3, 5), NaN in those."""
    lacking = np.full((len(points), len(POINT_NAMES) - points.shape[1], len(POINT_FIELDS)), np.nan, np.float32)
    return np.concatenate([points, lacking], axis=1) if lacking.size else points


def without_places(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points (N, 3, 5) of an image that is no longer the first camera's: their positions, with NaN for u and v."""
    kept = points.copy()
    kept[..., POINT_FIELDS.index("u") :] = np.nan
    return kept


@dataclass(frozen=True)
class Episode:
    """T steps of one task. The last observation is the one the last action answered.

    `images`: camera -> uint8 (T, H, W, 3). `state`: float32 (T, S). `actions`: float32 (T, A).
    `points`: float32 (T, 3, 5), rows `POINT_NAMES`, columns `POINT_FIELDS`; NaN where there is none
    (always, for data without labels). `seed`: the environment's, or -1. `info`: what else decided it, JSON values
    (a simulation's random draws); empty where there is nothing.
    Raises `ValueError` on lengths that differ or non-finite states or actions.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    points: NDArray[np.float32]
    instruction: str
    task: str
    success: bool
    seed: int = -1
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = len(self.actions)
        if steps == 0:
            raise ValueError("an episode needs at least one step")
        arrays: dict[str, NDArray[Any]] = {"state": self.state, "points": self.points, **self.images}
        for name, array in arrays.items():
            if len(array) != steps:
                raise ValueError(f"{name} has {len(array)} steps, actions {steps}")
        if self.points.shape[1:] != POINTS_SHAPE:
            raise ValueError(f"points must be (T, {POINTS_SHAPE}), are {self.points.shape}")
        if not (np.isfinite(self.state).all() and np.isfinite(self.actions).all()):
            raise ValueError("state or actions hold a non-finite value")
        if not self.instruction.strip():
            raise ValueError("the instruction is empty")

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def missing_cameras(self) -> tuple[str, ...]:
        """Cameras that the episode's source lacks: their images are black here. Kept in `info`."""
        return tuple(self.info.get(MISSING_CAMERAS, ()))
