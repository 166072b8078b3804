"""Put a block on the plate and let it go."""

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.experts import CLOSED, OPEN, action, funnel, holding, pick, ramp, towards
from volar.sim.predicates import gripper_open, near_horizontally, on_plate
from volar.sim.scene import BLOCK_ON_PLATE_Z_M, BLOCK_ON_TABLE_Z_M, Placement, SceneState
from volar.sim.tasks.task import Goal, Task, Vector, sample_goal, sample_placement

_RELEASE_M = 0.015  # horizontal distance from the plate's axis within which the expert lets go
_RELEASE_HEIGHT_M = 0.004
_RETREAT_HEIGHT_M = 0.15  # of the fingertips, after letting go


class PlaceOn(Task):
    name = "place_on"
    props = ("plate",)
    max_steps = 120
    steps_after_success = 4
    templates = (
        "put the {color} block on the plate",
        "place the {color} block on the plate",
        "set the {color} cube on the plate",
        "move the {color} block onto the plate",
        "put the {color} cube onto the plate",
        "pick up the {color} block and place it on the plate",
    )
    held_out_templates = ("drop the {color} block on the plate", "lay the {color} cube on the plate")

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        placement = sample_placement(rng, robot)
        return sample_goal(rng, placement), placement

    def success(self, state: SceneState, goal: Goal) -> bool:
        return on_plate(state.block(goal.color), state.plate) and gripper_open(state.gripper_width_m)

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        return np.array([state.plate[0], state.plate[1], BLOCK_ON_PLATE_Z_M])

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        block, plate = state.block(goal.color), self.destination(state, goal)
        low = block[2] - plate[2] < _RELEASE_HEIGHT_M
        if low and near_horizontally(block, plate, 0.04 if state.gripper_width_m > 0.05 else _RELEASE_M):
            return self._let_go(state)
        if holding(state, block):
            return self._carry(state, block, plate)
        return pick(state, block)

    def _let_go(self, state: SceneState) -> Vector:
        """Open where it is; up as soon as the fingers are clear of the block."""
        clear = ramp(state.gripper_width_m, 0.055, 0.07)
        return action(clear * towards(state.tcp, np.array([*state.tcp[:2], _RETREAT_HEIGHT_M])), OPEN)

    def _carry(self, state: SceneState, block: Vector, plate: Vector) -> Vector:
        """Up, over the plate, down: sideways only as far as the block is above its neighbours or the plate."""
        horizontal = float(np.linalg.norm((block - plate)[:2]))
        goal = plate + np.array([0.0, 0.0, funnel(horizontal)])
        step = towards(block, goal)
        high = ramp(block[2], BLOCK_ON_TABLE_Z_M + 0.02, BLOCK_ON_TABLE_Z_M + 0.05)
        step[:2] *= max(high, ramp(horizontal, 0.04, 0.03))
        return action(step, CLOSED)
