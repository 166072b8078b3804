"""Open one of two drawers."""

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.predicates import opened
from volar.sim.props import DRAWER_TRAVEL_M
from volar.sim.scene import Placement, SceneState
from volar.sim.tasks import drawers
from volar.sim.tasks.task import Goal, Task, Vector

OPEN_M = 0.08


class OpenDrawer(Task):
    name = "open_drawer"
    props = ("drawers",)
    max_steps = 100
    steps_after_success = 2
    templates = (
        "open the {color} drawer",
        "pull the {color} drawer open",
        "pull out the {color} drawer",
        "open the drawer of the {color} cabinet",
        "slide the {color} drawer open",
    )
    held_out_templates = ("get the {color} drawer open", "draw the {color} drawer out")

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        colors, placement = drawers.sample_drawers(rng, robot, 0.0, 0.005)
        return Goal(colors[0], placement.props[f"drawer_{colors[0]}"][:3], choices=colors), placement

    def success(self, state: SceneState, goal: Goal) -> bool:
        return opened(state.joints[f"drawer_{goal.color}"], OPEN_M)

    def target(self, state: SceneState, goal: Goal) -> Vector:
        return drawers.bar(state.props, goal.color)

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        left_m = DRAWER_TRAVEL_M - state.joints[f"drawer_{goal.color}"]
        return np.asarray(self.target(state, goal) + left_m * drawers.PULL)

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        return drawers.pull(state, goal.color)
