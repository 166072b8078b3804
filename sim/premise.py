"""Is a scene what its task takes for granted? Looked at before the policy sees it, and the same for every policy."""

import numpy as np
from numpy.typing import NDArray

from volar.sim.colors import COLORS
from volar.sim.scene import SceneState
from volar.sim.sim_robot import SimulationDiverged
from volar.sim.tasks.layout import NoLayout
from volar.sim.world import CONTROL_PERIOD_S, TaskWorld

IDLE_PERIODS = 50  # control periods in which nothing may happen by itself
MOVED_M = 0.005  # a thing that settles on the table moves by less
TURNED = 0.02  # [m, rad], of a drawer or a knob
_HIDDEN_BELOW_M = -0.15  # a thing that a task does not use is put under the table, where it may do what it likes


def broken_premise(world: TaskWorld, seed: int) -> str:
    """Why that seed's episode must not count, or an empty string. Leaves the world in some state: reset it.

    The episode is placed and the arm holds still for `IDLE_PERIODS`: before and after, the task must not have
    succeeded, and things must be where they were put. It depends on task, robot, randomization and seed alone.
    """
    try:
        world.reset(seed)
        before = world.state
        if world.success():
            return "the task has succeeded before anything moved"
        for _ in range(IDLE_PERIODS):
            world.advance(CONTROL_PERIOD_S)
            if world.success():
                return "the task succeeds by itself"
    except (NoLayout, SimulationDiverged) as error:
        return str(error)
    return _what_moved(before, world.state)


def _what_moved(before: SceneState, after: SceneState) -> str:
    """The first thing that is not where it was, or an empty string."""
    start, end = _positions(before), _positions(after)
    for name, place in start.items():
        moved_m = float(np.linalg.norm(end[name] - place))
        if place[2] > _HIDDEN_BELOW_M and not moved_m <= MOVED_M:
            return f"{name} moves by {moved_m:.3f} m by itself"
    for name, position in before.joints.items():
        if not abs(after.joints[name] - position) <= TURNED:
            return f"{name} moves by {abs(after.joints[name] - position):.3f} by itself"
    return ""


def _positions(state: SceneState) -> dict[str, NDArray[np.float64]]:
    blocks = {f"the {color} block": place for color, place in zip(COLORS, state.blocks, strict=True)}
    return {**blocks, "plate": state.plate, **state.props}
