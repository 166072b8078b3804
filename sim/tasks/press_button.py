"""Press one of three buttons."""

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.experts import CLOSED, HOVER_M, action, funnel, ramp, towards
from volar.sim.predicates import pressed
from volar.sim.scene import Placement, SceneState
from volar.sim.tasks.layout import BLOCK, BLOCKS_HIGH, BLOCKS_LOW, Area, sample_blocks, sample_colors
from volar.sim.tasks.task import Goal, Task, Vector

DEPTH_M = 0.006
_BUTTON = Area(BLOCKS_LOW, BLOCKS_HIGH, 0.055)
_BELOW_TOP_M = 0.02  # where the expert aims; the button's stop ends the way


class PressButton(Task):
    name = "press_button"
    props = ("buttons",)
    max_steps = 60
    steps_after_success = 2
    templates = (
        "press the {color} button",
        "push the {color} button",
        "push down the {color} button",
        "press down on the {color} button",
        "hit the {color} button",
    )
    held_out_templates = ("click the {color} button", "give the {color} button a push")

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        colors = sample_colors(rng, 3)
        placement, places = sample_blocks(rng, robot, BLOCK, [_BUTTON] * len(colors))
        props = {f"button_{name}": np.array([*xy, 0.0, 0.0]) for name, xy in zip(colors, places, strict=True)}
        return Goal(colors[0], props[f"button_{colors[0]}"][:3], choices=colors), placement.with_props(props)

    def success(self, state: SceneState, goal: Goal) -> bool:
        return pressed(state.joints[f"button_{goal.color}"], DEPTH_M)

    def target(self, state: SceneState, goal: Goal) -> Vector:
        return state.props[f"button_{goal.color}"]

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        button = self.target(state, goal)
        horizontal = float(np.linalg.norm((state.fingertips - button)[:2]))
        # Fingers that are still open would come down on both sides of the button.
        height = max(funnel(horizontal), HOVER_M * ramp(state.gripper_width_m, 0.01, 0.04))
        below = button + np.array([0.0, 0.0, height - _BELOW_TOP_M])
        return action(towards(state.fingertips, below), CLOSED)
