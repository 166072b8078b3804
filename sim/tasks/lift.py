"""Grasp a block and lift it off the table."""

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.experts import CLOSED, action, holding, pick, towards
from volar.sim.predicates import lifted
from volar.sim.scene import Placement, SceneState
from volar.sim.tasks.layout import sample_placement
from volar.sim.tasks.task import Goal, Task, Vector, sample_goal

HEIGHT_M = 0.06
_EXPERT_HEIGHT_M = 0.14  # of the fingertips, where the expert stops


class Lift(Task):
    name = "lift"
    props = ("plate",)
    max_steps = 80
    steps_after_success = 3
    templates = (
        "lift the {color} block",
        "pick up the {color} block",
        "grasp the {color} block and lift it",
        "raise the {color} cube",
        "take the {color} block",
        "pick the {color} cube up",
    )
    held_out_templates = ("grab the {color} block", "lift up the {color} cube")

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        placement = sample_placement(rng, robot)
        return sample_goal(rng, placement), placement

    def success(self, state: SceneState, goal: Goal) -> bool:
        return lifted(state.block(goal.color), HEIGHT_M)

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        block = state.block(goal.color)
        if not holding(state, block):
            return pick(state, block)
        return action(towards(state.tcp, np.array([*state.tcp[:2], _EXPERT_HEIGHT_M])), CLOSED)
