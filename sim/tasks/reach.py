"""Move the fingertips to a point just above a block."""

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.experts import OPEN, action, towards
from volar.sim.predicates import near
from volar.sim.scene import Placement, SceneState
from volar.sim.tasks.layout import sample_placement
from volar.sim.tasks.task import Goal, Task, Vector, sample_goal

ABOVE_M = np.array([0.0, 0.0, 0.04])  # above the block's centre: 0.02 m over its top
WITHIN_M = 0.025


class Reach(Task):
    name = "reach"
    props = ("plate",)
    max_steps = 40
    steps_after_success = 3
    templates = (
        "move to the {color} block",
        "reach the {color} block",
        "go to the {color} block",
        "move the gripper to the {color} cube",
        "go above the {color} cube",
        "reach for the {color} block",
    )
    held_out_templates = ("bring the gripper to the {color} block", "approach the {color} cube")

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        placement = sample_placement(rng, robot)
        return sample_goal(rng, placement), placement

    def success(self, state: SceneState, goal: Goal) -> bool:
        return near(state.tcp, state.block(goal.color) + ABOVE_M, WITHIN_M)

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        return action(towards(state.tcp, state.block(goal.color) + ABOVE_M), OPEN)
