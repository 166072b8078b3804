"""Push a block to the left or to the right, as the robot sees it."""

from dataclasses import replace

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.colors import COLORS
from volar.sim.experts import push_along
from volar.sim.predicates import moved_towards, resting_on_table
from volar.sim.scene import BLOCK_ON_TABLE_Z_M, Placement, SceneState
from volar.sim.tasks.layout import NoLayout, corridor_free, sample_placement
from volar.sim.tasks.task import SIDES, Goal, Task, Vector, sample_goal

DISTANCE_M = 0.06
SIDEWAYS_M = 0.04
_DESTINATION_M = 0.08
_BEHIND_M = 0.07  # where the closed fingers go down, from the block's centre
_TOUCHING_M = 0.03  # distance of the fingers' centre from the block's while pushing
_REACHED_Y_M = 0.20  # the block's centre stays within, so that the hand behind and the block stay in sight


class Push(Task):
    name = "push"
    props = ("plate",)
    max_steps = 80
    steps_after_success = 0
    templates = (
        "push the {color} block to the {side}",
        "push the {color} block {side}",
        "slide the {color} block to the {side}",
        "move the {color} cube to the {side}",
        "shove the {color} block to the {side}",
        "slide the {color} cube {side}",
    )
    held_out_templates = ("nudge the {color} block to the {side}", "push the {color} cube towards the {side}")

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        for _ in range(200):
            placement = sample_placement(rng, robot)
            goal = replace(sample_goal(rng, placement), side=tuple(SIDES)[rng.integers(len(SIDES))])
            if self._has_room(goal, placement):
                return goal, placement
        raise NoLayout("no layout with a free corridor for a push")

    def success(self, state: SceneState, goal: Goal) -> bool:
        block = state.block(goal.color)
        moved = moved_towards(block, goal.start, SIDES[goal.side], DISTANCE_M, SIDEWAYS_M)
        return moved and resting_on_table(block)

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        return np.asarray(goal.start + _DESTINATION_M * SIDES[goal.side])

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        x, y, _ = state.block(goal.color)
        middle = np.array([x, y, BLOCK_ON_TABLE_Z_M])
        return push_along(state, middle, SIDES[goal.side], behind_m=_BEHIND_M, touching_m=_TOUCHING_M)

    def _has_room(self, goal: Goal, placement: Placement) -> bool:
        side = SIDES[goal.side]
        if goal.start @ side + _DESTINATION_M > _REACHED_Y_M:
            return False
        others = [(placement.blocks[i], 0.03) for i, color in enumerate(COLORS) if color != goal.color]
        others.append((placement.plate, 0.065))
        return corridor_free(goal.start, side, others, behind_m=_BEHIND_M, ahead_m=_DESTINATION_M)
