"""Turn one of two levers to the left or to the right, as the robot sees it."""

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.experts import push_along
from volar.sim.predicates import turned
from volar.sim.props import LEVER_LENGTH_M
from volar.sim.scene import Placement, SceneState
from volar.sim.tasks.layout import BLOCK_BEFORE_FIXTURES, LEVER_X_M, LEVER_Y_M, sample_blocks, sample_colors
from volar.sim.tasks.task import SIDES, Goal, Task, Vector

ANGLE_RAD = 0.6
_START_RAD = 0.2
_BEHIND_M, _TOUCHING_M = 0.05, 0.022  # of the fingers' centre from the tip's


class TurnLever(Task):
    name = "turn_lever"
    props = ("levers",)
    max_steps = 100
    steps_after_success = 2
    templates = (
        "turn the {color} lever to the {side}",
        "turn the {color} lever {side}",
        "push the {color} lever to the {side}",
        "swing the {color} lever to the {side}",
        "move the {color} lever to the {side}",
    )
    held_out_templates = ("flip the {color} lever to the {side}", "rotate the {color} lever {side}")

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        colors = sample_colors(rng, 2)
        placement, _ = sample_blocks(rng, robot, BLOCK_BEFORE_FIXTURES)
        first = rng.choice([-1.0, 1.0])
        props: dict[str, Vector] = {}
        joints: dict[str, float] = {}
        for name, y in zip(colors, (first * LEVER_Y_M, -first * LEVER_Y_M), strict=True):
            x, dy = LEVER_X_M + rng.uniform(-0.02, 0.02), rng.uniform(-0.015, 0.015)
            props[f"lever_{name}"] = np.array([x, y + dy, 0.0, 0.0])
            joints[f"lever_{name}"] = float(rng.uniform(-_START_RAD, _START_RAD))
        side = tuple(SIDES)[rng.integers(len(SIDES))]
        goal = Goal(colors[0], props[f"lever_{colors[0]}"][:3], side, choices=colors)
        return goal, placement.with_props(props, joints)

    def success(self, state: SceneState, goal: Goal) -> bool:
        return turned(state.joints[f"lever_{goal.color}"], goal.side, ANGLE_RAD)

    def target(self, state: SceneState, goal: Goal) -> Vector:
        return state.props[f"lever_{goal.color}"]

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        angle = ANGLE_RAD if goal.side == "right" else -ANGLE_RAD
        reach = LEVER_LENGTH_M * np.array([np.cos(angle), np.sin(angle), 0.0])
        return np.array([*(goal.start - reach)[:2], self.target(state, goal)[2]])

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        angle = state.joints[f"lever_{goal.color}"]
        rightwards = np.array([np.sin(angle), -np.cos(angle), 0.0])  # of the tip, for a positive turn
        direction = rightwards if goal.side == "right" else -rightwards
        return push_along(state, self.target(state, goal), direction, behind_m=_BEHIND_M, touching_m=_TOUCHING_M)
