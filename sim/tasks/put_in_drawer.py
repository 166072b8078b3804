"""Open a drawer, then put a block into it: two stages in one order."""

from dataclasses import replace

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.experts import CLOSED, OPEN, action, holding, pick_and_place, towards
from volar.sim.predicates import gripper_open, inside, near_horizontally, opened
from volar.sim.props import DRAWER_FLOOR_M
from volar.sim.scene import BLOCK_HALF_M, Placement, SceneState
from volar.sim.tasks import drawers
from volar.sim.tasks.task import Goal, Task, Vector, sample_goal

# The inside, from the middle of the bar: behind the front, between the sides, below the top.
_INSIDE_LOW, _INSIDE_HIGH = np.array([0.06, -0.05, -0.04]), np.array([0.20, 0.05, 0.01])
_OPEN_M = 0.10
_MIDDLE_M = 0.112  # of the opening, from the bar
_RELEASE_Z_M = 0.056  # of the block's centre: the open fingers stay above the drawer's sides
_CLEAR_OF_BAR_M, _CLEAR_HEIGHT_M = 0.05, 0.10
_REST_HEIGHT_M = 0.16


class PutInDrawer(Task):
    name = "put_in_drawer"
    props = ("drawers",)
    max_steps = 280
    steps_after_success = 4
    templates = (
        "put the {color} block in the {other} drawer",
        "open the {other} drawer and put the {color} block in it",
        "place the {color} block in the {other} drawer",
        "open the {other} drawer and place the {color} cube inside",
        "store the {color} cube in the {other} drawer",
    )
    held_out_templates = ("stow the {color} block in the {other} drawer",)

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        colors, placement = drawers.sample_drawers(rng, robot, 0.0, 0.005)
        return replace(sample_goal(rng, placement), other=colors[0]), placement

    def success(self, state: SceneState, goal: Goal) -> bool:
        return self._stored(state, goal) and gripper_open(state.gripper_width_m)

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        x, y, _ = drawers.bar(state.props, goal.other)
        return np.array([x + _MIDDLE_M, y, DRAWER_FLOOR_M + BLOCK_HALF_M])

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        block, bar = state.block(goal.color), drawers.bar(state.props, goal.other)
        if self.success(state, goal):
            return action(towards(state.tcp, np.array([*state.tcp[:2], _REST_HEIGHT_M])), OPEN)
        held = holding(state, block)
        if not held and not self._stored(state, goal):
            if not opened(state.joints[f"drawer_{goal.other}"], _OPEN_M):
                return drawers.pull(state, goal.other)
            if near_horizontally(state.tcp, bar, _CLEAR_OF_BAR_M) and state.tcp[2] < _CLEAR_HEIGHT_M:
                return action(towards(state.tcp, np.array([*state.tcp[:2], _REST_HEIGHT_M])), CLOSED)
        release = np.array([bar[0] + _MIDDLE_M, bar[1], _RELEASE_Z_M])
        return pick_and_place(state, block, release)

    def _stored(self, state: SceneState, goal: Goal) -> bool:
        bar = drawers.bar(state.props, goal.other)
        return inside(state.block(goal.color), bar + _INSIDE_LOW, bar + _INSIDE_HIGH)
