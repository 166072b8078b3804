"""What can be true of a scene; pure functions of positions in table coordinates [m]. Tasks compose them."""

import numpy as np
from numpy.typing import NDArray

from volar.sim.props import BOWL_RADIUS_M, BOWL_RIM_M, MAT_HALF_M, MAT_HEIGHT_M
from volar.sim.scene import BLOCK_HALF_M, BLOCK_ON_PLATE_Z_M, BLOCK_ON_TABLE_Z_M

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


def on_block(upper: Vector, lower: Vector, within_m: float = 0.02, tolerance_m: float = 0.01) -> bool:
    """One block's centre (3,) is over another's, so that it does not tip, and as high as when it lies on it."""
    height = upper[2] - lower[2]
    return near_horizontally(upper, lower, within_m) and bool(abs(height - 2 * BLOCK_HALF_M) <= tolerance_m)


def on_mat(block: Vector, mat: Vector, tolerance_m: float = 0.01) -> bool:
    """A block's centre (3,) is over a mat, the middle of whose underside is given (3,), and lies on it."""
    over = (np.abs(block - mat)[:2] <= MAT_HALF_M).all()
    return bool(over and abs(block[2] - mat[2] - MAT_HEIGHT_M - BLOCK_HALF_M) <= tolerance_m)


def in_bowl(block: Vector, bowl: Vector) -> bool:
    """A block's centre (3,) is between the walls of a bowl, the middle of whose underside is given (3,), and so low
    that it rests in it: above the rim by a quarter of its edge at most."""
    height = block[2] - bowl[2]
    return near_horizontally(block, bowl, BOWL_RADIUS_M) and bool(0.0 < height <= BOWL_RIM_M + BLOCK_HALF_M / 2)


def inside(point: Vector, low: Vector, high: Vector) -> bool:
    """A point (3,) is in the box between the corners `low` and `high` (3,)."""
    return bool((point >= low).all() and (point <= high).all())


def opened(joint_m: float, at_least_m: float) -> bool:
    """A drawer is open by at least that much."""
    return joint_m >= at_least_m


def closed(joint_m: float, at_most_m: float = 0.01) -> bool:
    """A drawer is open by at most that much."""
    return joint_m <= at_most_m


def pressed(joint_m: float, at_least_m: float) -> bool:
    """A button is down by at least that much; its joint is negative when it is."""
    return joint_m <= -at_least_m


def turned(angle_rad: float, side: str, at_least_rad: float) -> bool:
    """A lever is turned to that side, `left` or `right`, by at least that angle; to the right is positive."""
    return (angle_rad if side == "right" else -angle_rad) >= at_least_rad
