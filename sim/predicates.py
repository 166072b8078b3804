"""What can be true of a scene; pure functions of positions in the base frame [m]."""

import numpy as np
from numpy.typing import NDArray

from volar.sim.scene import BLOCK_ON_PLATE_Z_M, BLOCK_ON_TABLE_Z_M

Vector = NDArray[np.float64]


def near(a: Vector, b: Vector, within_m: float) -> bool:
    """Points a (3,) and b (3,) are at most that far apart."""
    return bool(np.linalg.norm(a - b) <= within_m)


def near_horizontally(a: Vector, b: Vector, within_m: float) -> bool:
    """As `near`, heights aside."""
    return bool(np.linalg.norm(a[:2] - b[:2]) <= within_m)


def lifted(block: Vector, by_m: float) -> bool:
    """A block's centre (3,) is at least that much above where it rests on the table."""
    return bool(block[2] >= BLOCK_ON_TABLE_Z_M + by_m)


def resting_on_table(block: Vector, tolerance_m: float = 0.01) -> bool:
    """A block's centre (3,) is at the height at which it lies on the table."""
    return bool(abs(block[2] - BLOCK_ON_TABLE_Z_M) <= tolerance_m)


def on_plate(block: Vector, plate: Vector, within_m: float = 0.04, tolerance_m: float = 0.01) -> bool:
    """A block's centre (3,) is near the axis of the plate (3,) and at the height at which it lies on it."""
    return near_horizontally(block, plate, within_m) and bool(abs(block[2] - BLOCK_ON_PLATE_Z_M) <= tolerance_m)


def moved_towards(block: Vector, start: Vector, direction: Vector, by_m: float, sideways_m: float) -> bool:
    """A block has moved from `start` (3,) by at least `by_m` along the horizontal unit vector `direction` (3,),
    and by less than `sideways_m` across it."""
    moved = (block - start)[:2]
    along = float(moved @ direction[:2])
    across = float(np.linalg.norm(moved - along * direction[:2]))
    return along >= by_m and across < sideways_m


def gripper_open(width_m: float, at_least_m: float = 0.06) -> bool:
    """The fingers are at least that far apart: nothing of the suite is held."""
    return width_m >= at_least_m
