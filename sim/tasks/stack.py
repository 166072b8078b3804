"""Stack one block on another and let it go."""

from dataclasses import replace

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.colors import COLORS
from volar.sim.experts import pick_and_place
from volar.sim.predicates import gripper_open, on_block, resting_on_table
from volar.sim.scene import BLOCK_HALF_M, Placement, SceneState
from volar.sim.tasks.layout import sample_placement
from volar.sim.tasks.task import Goal, Task, Vector, sample_goal

_ABOVE_M = np.array([0.0, 0.0, 2 * BLOCK_HALF_M])


class Stack(Task):
    name = "stack"
    props = ("plate",)
    max_steps = 140
    steps_after_success = 4
    templates = (
        "stack the {color} block on the {other} block",
        "put the {color} block on top of the {other} block",
        "place the {color} block on the {other} block",
        "put the {color} cube on the {other} cube",
        "pick up the {color} block and put it on the {other} block",
        "build a tower with the {color} block on the {other} block",
    )
    held_out_templates = ("set the {color} cube on the {other} one", "pile the {color} block on the {other} block")

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        placement = sample_placement(rng, robot)
        goal = sample_goal(rng, placement)
        others = [color for color in COLORS if color != goal.color]
        return replace(goal, other=others[rng.integers(len(others))]), placement

    def success(self, state: SceneState, goal: Goal) -> bool:
        upper, lower = state.block(goal.color), state.block(goal.other)
        return on_block(upper, lower) and resting_on_table(lower) and gripper_open(state.gripper_width_m)

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        return np.asarray(state.block(goal.other) + _ABOVE_M)

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        return pick_and_place(state, state.block(goal.color), self.destination(state, goal))
