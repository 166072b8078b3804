"""Push a block to the left or to the right, as the robot sees it."""

from dataclasses import replace

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.experts import CLOSED, action, funnel, ramp, towards
from volar.sim.predicates import moved_towards, resting_on_table
from volar.sim.scene import BLOCK_ON_TABLE_Z_M, COLORS, Placement, SceneState
from volar.sim.tasks.task import SIDES, Goal, NoLayout, Task, Vector, sample_goal, sample_placement

DISTANCE_M = 0.06
SIDEWAYS_M = 0.04
_DESTINATION_M = 0.08
_BEHIND_M = 0.07  # where the closed fingers go down, from the block's centre
_TOUCHING_M = 0.03  # distance of the fingers' centre from the block's while pushing
_PUSH_STEP_M = 0.025
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
            if self._corridor_free(goal, placement):
                return goal, placement
        raise NoLayout("no layout with a free corridor for a push")

    def success(self, state: SceneState, goal: Goal) -> bool:
        block = state.block(goal.color)
        moved = moved_towards(block, goal.start, SIDES[goal.side], DISTANCE_M, SIDEWAYS_M)
        return moved and resting_on_table(block)

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        return np.asarray(goal.start + _DESTINATION_M * SIDES[goal.side])

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        block, side = state.block(goal.color), SIDES[goal.side]
        offset = state.tcp - block
        along, across = float(offset @ side), abs(float(offset[0]))
        # Nearest point of the segment behind the block, on which the fingers may be low.
        outside = max(-along - _BEHIND_M, along + _TOUCHING_M, 0.0)
        horizontal = float(np.hypot(outside, across))
        ready = ramp(float(state.tcp[2]), 0.045, 0.03) * ramp(across, 0.02, 0.01)
        height = BLOCK_ON_TABLE_Z_M + funnel(horizontal)
        goal_m = np.array([*(block - _BEHIND_M * side)[:2], height])
        step = towards(state.tcp, goal_m)
        pushing = np.array([0.0, 0.0, 0.0]) + _PUSH_STEP_M * side
        step[1] = (1 - ready) * step[1] + ready * pushing[1]
        return action(step, CLOSED)

    def _corridor_free(self, goal: Goal, placement: Placement) -> bool:
        """No other block or plate where the block will go nor where the hand goes down behind it."""
        side = SIDES[goal.side]
        if goal.start @ side + _DESTINATION_M > _REACHED_Y_M:
            return False
        others = [placement.blocks[i] for i, color in enumerate(COLORS) if color != goal.color]
        for other, radius in [*((block, 0.03) for block in others), (placement.plate, 0.065)]:
            along, across = float((other - goal.start) @ side), abs(float((other - goal.start)[0]))
            # Block (half 0.025 m turned) ahead; fingers (0.012 m) behind: both with 0.01 m to spare.
            if across < 0.035 + radius and -_BEHIND_M - 0.035 - radius < along < _DESTINATION_M + 0.045 + radius:
                return False
        return True
