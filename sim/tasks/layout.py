"""Where things may start: random layouts in table coordinates, apart from each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import VolarError
from volar.robots.spec import RobotSpec
from volar.sim.colors import COLORS
from volar.sim.props import PLATE_HALF_HEIGHT_M
from volar.sim.scene import BLOCK_ON_TABLE_Z_M, Placement

Vector = NDArray[np.float64]

# Where blocks may lie [m]; all of it is seen by the front camera and reached with fingers down.
BLOCKS_LOW, BLOCKS_HIGH = np.array([0.37, -0.20]), np.array([0.60, 0.20])
# The strip before the fixtures (drawers, levers), which leaves them room to move.
STRIP_LOW, STRIP_HIGH = np.array([0.31, -0.20]), np.array([0.38, 0.20])
YAW_MAX_RAD = 0.3
# The open hand's fingers reach 0.060 m from its centre along y and a neighbour turned by 0.3 rad 0.025 m.
BLOCK_DISTANCE_M = 0.095
PLATE_DISTANCE_M = 0.12
JOINT_NOISE_RAD = 0.02
_ATTEMPTS = 2000
_TRIES = 100  # of one thing's place, before all begin again

# Fixtures: how far apart the two of a kind stand.
DRAWER_X_M, DRAWER_Y_M = 0.705, 0.095
LEVER_X_M, LEVER_Y_M = 0.56, 0.12


class NoLayout(VolarError):
    """Rejection sampling found no layout; names the seed where it is known."""


@dataclass(frozen=True)
class Area:
    """Where one thing may be: a box [m] for its centre, and the radius [m] that no other thing's may meet."""

    low: Vector
    high: Vector
    radius_m: float


BLOCK = Area(BLOCKS_LOW, BLOCKS_HIGH, BLOCK_DISTANCE_M / 2)
BLOCK_BEFORE_FIXTURES = Area(STRIP_LOW, STRIP_HIGH, BLOCK_DISTANCE_M / 2)


def sample_placement(rng: np.random.Generator, robot: RobotSpec) -> Placement:
    """Blocks and plate apart from each other, the arm near home, the gripper open. Raises `NoLayout`."""
    for _ in range(_ATTEMPTS):
        centres = rng.uniform(BLOCKS_LOW, BLOCKS_HIGH, (len(COLORS) + 1, 2))  # the plate is the last
        gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + np.eye(len(centres))  # (5, 5)
        if gaps[:-1, :-1].min() >= BLOCK_DISTANCE_M and gaps[-1].min() >= PLATE_DISTANCE_M:
            break
    else:
        raise NoLayout(f"no layout of {len(COLORS)} blocks and a plate in {_ATTEMPTS} attempts")
    return _placement(rng, robot, centres[:-1], np.array([*centres[-1], PLATE_HALF_HEIGHT_M]))


def sample_blocks(
    rng: np.random.Generator, robot: RobotSpec, block: Area = BLOCK, others: Sequence[Area] = ()
) -> tuple[Placement, Vector]:
    """As `sample_placement`, without a plate: the blocks in their area and each other thing in its own.

    Returns the centres (N, 2) of the others too, for the task to name. Raises `NoLayout`.
    """
    centres = scatter(rng, [*others, *(block for _ in COLORS)])  # the larger things first
    return _placement(rng, robot, centres[len(others) :], np.full(3, np.nan)), centres[: len(others)]


def scatter(rng: np.random.Generator, areas: Sequence[Area]) -> Vector:
    """A centre (N, 2) for each area, none within the sum of two radii of another. Raises `NoLayout`."""
    radii = np.array([area.radius_m for area in areas])
    for _ in range(_ATTEMPTS):
        centres = np.empty((0, 2))
        for i, area in enumerate(areas):
            tries = rng.uniform(area.low, area.high, (_TRIES, 2))
            gaps = np.linalg.norm(tries[:, None] - centres[None], axis=-1)  # (tries, placed)
            free = (gaps >= radii[:i] + radii[i]).all(axis=1)
            if not free.any():
                break
            centres = np.vstack([centres, tries[int(np.argmax(free))]])
        else:
            return centres
    raise NoLayout(f"no layout of {len(areas)} things in {_ATTEMPTS} attempts")


def sample_colors(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """That many different colours, in random order."""
    return tuple(COLORS[i] for i in rng.permutation(len(COLORS))[:count])


def corridor_free(
    start: Vector, direction: Vector, others: Sequence[tuple[Vector, float]], behind_m: float, ahead_m: float
) -> bool:
    """Nothing lies where a block will go nor where the hand goes down behind it.

    `start` (3,): the block; `direction` (3,): horizontal unit vector; `others`: centre (3,) and radius of each thing;
    `behind_m`, `ahead_m`: how far the fingers start behind the block's centre and how far that moves [m].
    """
    for other, radius in others:
        offset = (other - start)[:2]
        along = float(offset @ direction[:2])
        across = float(np.linalg.norm(offset - along * direction[:2]))
        # Block (half 0.025 m turned) ahead; fingers (0.012 m) behind: both with 0.01 m to spare.
        if across < 0.035 + radius and -behind_m - 0.035 - radius < along < ahead_m + 0.045 + radius:
            return False
    return True


def _placement(rng: np.random.Generator, robot: RobotSpec, blocks: Vector, plate: Vector) -> Placement:
    heights = np.full((len(COLORS), 1), BLOCK_ON_TABLE_Z_M)
    return Placement(
        blocks=np.hstack([blocks, heights]),
        yaw=rng.uniform(-YAW_MAX_RAD, YAW_MAX_RAD, len(COLORS)),
        plate=plate,
        q=np.array(robot.home) + rng.uniform(-JOINT_NOISE_RAD, JOINT_NOISE_RAD, robot.joints),
        gripper_width_m=robot.gripper_width_max,
    )
