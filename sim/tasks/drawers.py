"""What the tasks with drawers share: two cabinets at the far side, of two colours, and how to open one."""

from collections.abc import Mapping

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.experts import push_along
from volar.sim.scene import Placement, SceneState
from volar.sim.tasks.layout import BLOCK_BEFORE_FIXTURES, DRAWER_X_M, DRAWER_Y_M, sample_blocks, sample_colors
from volar.sim.tasks.task import Vector

PULL = np.array([-1.0, 0.0, 0.0])
# The closed fingers go down between bar and front, which leaves them 0.014 m on both sides.
_BEHIND_BAR_M = 0.0275
_DESCENT_M = 0.026


def sample_drawers(
    rng: np.random.Generator, robot: RobotSpec, low_m: float, high_m: float
) -> tuple[tuple[str, str], Placement]:
    """Two cabinets side by side, each open by an amount drawn between the two, and blocks before them.

    Returns their colours, the first of which is the one to act on.
    """
    color, other = sample_colors(rng, 2)
    placement, _ = sample_blocks(rng, robot, BLOCK_BEFORE_FIXTURES)
    side = rng.choice([-1.0, 1.0])
    props: dict[str, Vector] = {}
    joints: dict[str, float] = {}
    for name, y in ((color, side * DRAWER_Y_M), (other, -side * DRAWER_Y_M)):
        x, dy = DRAWER_X_M + rng.uniform(-0.01, 0.01), rng.uniform(-0.015, 0.015)
        props[f"drawer_{name}"] = np.array([x, y + dy, 0.0, 0.0])
        joints[f"drawer_{name}"] = float(rng.uniform(low_m, high_m))
    return (color, other), placement.with_props(props, joints)


def bar(props: Mapping[str, Vector], color: str) -> Vector:
    """The middle of a drawer's bar (3,) [m]."""
    return props[f"drawer_{color}"]


def pull(state: SceneState, color: str) -> Vector:
    """The action (7,) that opens a drawer: fingers down behind its bar, then towards the robot."""
    return push_along(state, bar(state.props, color), PULL, behind_m=_BEHIND_BAR_M, touching_m=_DESCENT_M)
