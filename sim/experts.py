"""Building blocks of the scripted experts: smooth functions of the scene's state, without memory.

An expert sees only what is now. Its phases (above, down, closing, carrying) follow from geometry alone, so
that it recovers from any disturbance and a policy that sees the same can imitate it: under a bang-bang
expert a small network ignores its target, under a proportional one it does not (prototype's finding).
"""

import numpy as np
from numpy.typing import NDArray

from volar.sim.predicates import near_horizontally
from volar.sim.scene import BLOCK_ON_TABLE_Z_M, SceneState

Vector = NDArray[np.float64]

GAIN = 0.5  # share of the remaining way in one step of 0.1 s
STEP_MAX_M = 0.035  # 0.35 m/s
HOVER_M = 0.08  # how far above its goal the hand travels while it is not yet over it
OPEN, CLOSED = 1.0, 0.0

# Funnel: allowed height above the goal for each metre of horizontal distance outside a small radius.
_FUNNEL_SLOPE = 4.0
_FUNNEL_RADIUS_M = 0.01

# The fingers close when the tip centre is this near the block's, and stay closed a little further out.
_ALIGNED_M, _ALIGNED_HEIGHT_M = 0.012, 0.010
_HELD_M, _HELD_HEIGHT_M = 0.025, 0.022
CLOSED_ON_BLOCK_M = 0.047  # width below which a 0.04 m block between the fingers is held

_PUSH_STEP_M = 0.025
_RELEASE_M = 0.015  # horizontal distance from the place within which a block is let go
_RELEASE_HEIGHT_M = 0.004
_RETREAT_HEIGHT_M = 0.15  # of the fingertips, after letting go


def action(displacement: Vector, gripper: float) -> Vector:
    """A 7-D action without rotation: displacement (3,) [m] of one step, gripper in [0, 1]."""
    return np.concatenate([displacement, np.zeros(3), [gripper]])


def towards(here: Vector, goal: Vector, step_max_m: float = STEP_MAX_M) -> Vector:
    """A proportional displacement (3,) [m], shortened to `step_max_m`."""
    step = GAIN * (goal - here)
    length = float(np.linalg.norm(step))
    return np.asarray(step * min(1.0, step_max_m / max(length, 1e-9)))


def ramp(value: float, zero_at: float, one_at: float) -> float:
    """0 at `zero_at`, 1 at `one_at`, linear between, constant outside."""
    return float(np.clip((value - zero_at) / (one_at - zero_at), 0.0, 1.0))


def funnel(horizontal_m: float, hover_m: float = HOVER_M) -> float:
    """Height above the goal at which to be, at a horizontal distance from it [m]: a funnel with a flat rim."""
    return float(np.clip(_FUNNEL_SLOPE * (horizontal_m - _FUNNEL_RADIUS_M), 0.0, hover_m))


def between_fingers(state: SceneState, block: Vector) -> bool:
    """The block (3,) is where the fingers can close on it, or are closing."""
    offset = state.tcp - block
    horizontal, height = float(np.linalg.norm(offset[:2])), abs(float(offset[2]))
    if state.gripper_width_m < 0.07:
        return horizontal < _HELD_M and height < _HELD_HEIGHT_M
    return horizontal < _ALIGNED_M and height < _ALIGNED_HEIGHT_M


def holding(state: SceneState, block: Vector) -> bool:
    """The block (3,) is between the fingers and these have closed on it."""
    return between_fingers(state, block) and state.gripper_width_m < CLOSED_ON_BLOCK_M


def pick(state: SceneState, block: Vector) -> Vector:
    """The action (7,) that leads to `holding`: over the block, down, close."""
    horizontal = float(np.linalg.norm((state.tcp - block)[:2]))
    goal = block + np.array([0.0, 0.0, funnel(horizontal)])
    return action(towards(state.tcp, goal), CLOSED if between_fingers(state, block) else OPEN)


def pick_and_place(state: SceneState, block: Vector, place: Vector) -> Vector:
    """The action (7,) that brings a block (3,) over `place` (3,), where it is let go, and then leaves upwards.

    `place` is the block's centre when it is let go: where it then rests, or a little above.
    """
    low = block[2] - place[2] < _RELEASE_HEIGHT_M
    if low and near_horizontally(block, place, 0.04 if state.gripper_width_m > 0.05 else _RELEASE_M):
        # Open where it is; up as soon as the fingers are clear of the block.
        clear = ramp(state.gripper_width_m, 0.055, 0.07)
        return action(clear * towards(state.tcp, np.array([*state.tcp[:2], _RETREAT_HEIGHT_M])), OPEN)
    if holding(state, block):
        return carry(block, place)
    return pick(state, block)


def carry(block: Vector, place: Vector) -> Vector:
    """Up, over the place, down: sideways only as far as the block is above its neighbours or the place."""
    horizontal = float(np.linalg.norm((block - place)[:2]))
    step = towards(block, place + np.array([0.0, 0.0, funnel(horizontal)]))
    high = ramp(block[2], BLOCK_ON_TABLE_Z_M + 0.02, BLOCK_ON_TABLE_Z_M + 0.05)
    step[:2] *= max(high, ramp(horizontal, 0.04, 0.03))
    return action(step, CLOSED)


def push_along(state: SceneState, point: Vector, direction: Vector, *, behind_m: float, touching_m: float) -> Vector:
    """The action (7,) that pushes a thing at `point` (3,) along the horizontal unit vector `direction` (3,).

    The closed fingers go down `behind_m` behind the point, to its height, then forward. They may be low between there
    and `touching_m` behind the point, about the distance at which they touch it.
    """
    offset = state.fingertips - point
    along = float(offset[:2] @ direction[:2])
    across = float(np.linalg.norm(offset[:2] - along * direction[:2]))
    outside = max(-along - behind_m, along + touching_m, 0.0)
    height = point[2] + funnel(float(np.hypot(outside, across)))
    step = towards(state.fingertips, np.array([*(point - behind_m * direction)[:2], height]))
    ready = ramp(float(offset[2]), 0.025, 0.01) * ramp(across, 0.02, 0.01)
    step += ready * (_PUSH_STEP_M - float(step @ direction)) * direction
    return action(step, CLOSED)
