"""Close one of two open drawers."""

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.experts import push_along
from volar.sim.predicates import closed
from volar.sim.scene import Placement, SceneState
from volar.sim.tasks import drawers
from volar.sim.tasks.task import Goal, Task, Vector

CLOSED_M = 0.01
_BEHIND_M, _TOUCHING_M = 0.045, 0.02


class CloseDrawer(Task):
    name = "close_drawer"
    props = ("drawers",)
    max_steps = 80
    steps_after_success = 2
    templates = (
        "close the {color} drawer",
        "push the {color} drawer closed",
        "shut the {color} drawer",
        "push the {color} drawer in",
        "close the drawer of the {color} cabinet",
    )
    held_out_templates = ("get the {color} drawer closed", "slide the {color} drawer shut")

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        colors, placement = drawers.sample_drawers(rng, robot, 0.05, 0.085)
        return Goal(colors[0], placement.props[f"drawer_{colors[0]}"][:3], choices=colors), placement

    def success(self, state: SceneState, goal: Goal) -> bool:
        return closed(state.joints[f"drawer_{goal.color}"], CLOSED_M)

    def target(self, state: SceneState, goal: Goal) -> Vector:
        return drawers.bar(state.props, goal.color)

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        return np.asarray(self.target(state, goal) - state.joints[f"drawer_{goal.color}"] * drawers.PULL)

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        bar = self.target(state, goal)
        return push_along(state, bar, -drawers.PULL, behind_m=_BEHIND_M, touching_m=_TOUCHING_M)
