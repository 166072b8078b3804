"""Push a block onto the white mark on the table."""

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.colors import COLORS
from volar.sim.experts import push_along
from volar.sim.predicates import near_horizontally, resting_on_table
from volar.sim.scene import BLOCK_ON_TABLE_Z_M, Placement, SceneState
from volar.sim.tasks.layout import NoLayout, corridor_free, sample_blocks
from volar.sim.tasks.task import SIDES, Goal, Task, Vector, sample_goal

WITHIN_M = 0.02
_DISTANCE_M = (0.08, 0.13)  # from the block to the mark
_ANGLE_MAX_RAD = 0.5  # between the way there and the y axis: fingers push best with their broad side
_BEHIND_M, _TOUCHING_M = 0.07, 0.03
_MARK_LOW, _MARK_HIGH = np.array([0.37, -0.18]), np.array([0.58, 0.18])
_HAND_LOW, _HAND_HIGH = np.array([0.34, -0.24]), np.array([0.60, 0.24])  # where the fingers go down


def _within(point: Vector, low: Vector, high: Vector) -> bool:
    return bool((point[:2] >= low).all() and (point[:2] <= high).all())


class PushTo(Task):
    name = "push_to"
    props = ("mark",)
    max_steps = 120
    steps_after_success = 0
    templates = (
        "push the {color} block onto the mark",
        "push the {color} block to the white mark",
        "slide the {color} block onto the mark",
        "move the {color} cube to the mark by pushing it",
        "push the {color} cube onto the white mark",
        "shove the {color} block onto the white mark",
    )
    held_out_templates = ("nudge the {color} block onto the mark", "slide the {color} cube until it is on the mark")

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        for _ in range(400):
            placement, _ = sample_blocks(rng, robot)
            goal = sample_goal(rng, placement)
            way = tuple(SIDES.values())[rng.integers(len(SIDES))][1]
            angle, distance = rng.uniform(-_ANGLE_MAX_RAD, _ANGLE_MAX_RAD), rng.uniform(*_DISTANCE_M)
            direction = np.array([np.sin(angle), way * np.cos(angle), 0.0])
            mark = goal.start + distance * direction
            hand = goal.start - _BEHIND_M * direction
            if not (_within(mark, _MARK_LOW, _MARK_HIGH) and _within(hand, _HAND_LOW, _HAND_HIGH)):
                continue
            others = [(placement.blocks[i], 0.03) for i, color in enumerate(COLORS) if color != goal.color]
            if corridor_free(goal.start, direction, others, behind_m=_BEHIND_M, ahead_m=distance):
                return goal, placement.with_props({"mark": np.array([mark[0], mark[1], 0.0, 0.0])})
        raise NoLayout("no layout with a free corridor for a push to a mark")

    def success(self, state: SceneState, goal: Goal) -> bool:
        block = state.block(goal.color)
        return near_horizontally(block, state.props["mark"], WITHIN_M) and resting_on_table(block)

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        return np.array([*state.props["mark"][:2], BLOCK_ON_TABLE_Z_M])

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        x, y, _ = state.block(goal.color)
        middle = np.array([x, y, BLOCK_ON_TABLE_Z_M])
        way = self.destination(state, goal) - middle
        direction = way / max(float(np.linalg.norm(way)), 1e-6)
        return push_along(state, middle, direction, behind_m=_BEHIND_M, touching_m=_TOUCHING_M)
