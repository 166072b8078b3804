"""Is a scene what its task takes for granted? Looked at before the policy sees it, and the same for every policy."""

import numpy as np
from numpy.typing import NDArray

from volar.sim.colors import COLORS
from volar.sim.randomization import Draws
from volar.sim.scene import SceneState
from volar.sim.tasks.layout import NoLayout
from volar.sim.world import CONTROL_PERIOD_S, TASK_HZ, TaskWorld

IDLE_STEPS = 50  # policy steps, 5 s, in which nothing may happen by itself
_PERIODS_A_STEP = round(1 / (TASK_HZ * CONTROL_PERIOD_S))
_SETTLED_STEPS = 5
MOVED_M = 0.005  # a thing that settles on the table moves by less
TURNED = 0.02  # [m, rad], of a drawer or a knob
_HIDDEN_BELOW_M = -0.15  # a thing that a task does not use is put under the table, where it may do what it likes


def broken_premise(world: TaskWorld, seed: int, draws: Draws | None = None) -> str:
    """Why that seed's episode must not count, or an empty string. Leaves the world in some state: reset it.

    The episode is placed and the arm holds still for `IDLE_STEPS`: meanwhile the task must not succeed, and after half
    a second things must be where they were put (randomization that pushes them before makes the seed invalid). It
    depends on task, robot, randomization and seed alone; `draws`: of an earlier episode, to be repeated. Raises
    `SimulationDiverged`: an unstable scene is a broken episode.
    """
    try:
        world.reset(seed, draws)
    except NoLayout as error:
        return str(error)
    before = world.state
    if world.success():
        return "the task has succeeded before anything moved"
    for step in range(1, IDLE_STEPS + 1):
        for _ in range(_PERIODS_A_STEP):
            world.advance(CONTROL_PERIOD_S)
        if world.success():
            return "the task succeeds by itself"
        if step == _SETTLED_STEPS and (moved := _what_moved(before, world.state)):
            return moved
    return ""


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
