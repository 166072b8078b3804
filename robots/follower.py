"""From an action to joint positions: integration of the end-effector pose, anti-windup, inverse kinematics."""

import numpy as np
from numpy.typing import NDArray

from volar.robots.action_space import ActionSpec
from volar.robots.kinematics import Arm, Pose, rotation_vector
from volar.robots.watchdogs import LoopLimits

Vector = NDArray[np.float64]


class Follower:
    """The pose that the actions of one loop ask for, integrated once a period.

    `target`: base frame; None: there, where the arm is told to be.
    """

    def __init__(self, arm: Arm, action: ActionSpec, period_s: float, limits: LoopLimits) -> None:
        self._arm, self._action, self._period_s, self._limits = arm, action, period_s, limits
        inset_m = limits.inset_m
        self._box = np.array(arm.spec.workspace_low) + inset_m, np.array(arm.spec.workspace_high) - inset_m
        self.target: Pose | None = None

    def width_m(self, action: Vector) -> float | None:
        """The gripper width [m] that an action (A,) asks for, None where actions have no gripper."""
        if self._action.gripper == "none":
            return None
        opening = action[-1] if self._action.gripper == "open_is_one" else 1.0 - action[-1]
        return float(opening) * self._arm.spec.gripper_width_max

    def follow(self, action: Vector, here: Pose, q: Vector) -> Vector | None:
        """Joint target (J,) for an action (A,); None when inverse kinematics fails.

        `here`, `q` (J,): pose and joint positions that the arm was last told.
        """
        if self._action.kind == "joint_position":
            q_target: Vector = action[: self._arm.spec.joints]
            return q_target
        self.target = self._limited(self._displaced(action, self.target or here), here)
        return self._inverse(self.target, q)

    def _displaced(self, action: Vector, target: Pose) -> Pose:
        """The target after one period at the action's velocity."""
        share = self._period_s * self._action.rate_hz
        translation = action[:3] * share
        rotation = action[3:6] * share if self._action.rotation == "rotation_vector" else np.zeros(3)
        if self._action.frame == "tool":
            translation, rotation = target.rotation @ translation, target.rotation @ rotation
        return target.moved(translation, rotation)

    def _limited(self, target: Pose, here: Pose) -> Pose:
        """The target inside the workspace box and near the commanded pose, so that it cannot wind up."""
        position = np.clip(target.position, *self._box)
        lead = position - here.position
        distance_m = float(np.linalg.norm(lead))
        if distance_m > self._limits.lead_m:
            position = here.position + lead * (self._limits.lead_m / distance_m)
        turn = rotation_vector(target.rotation @ here.rotation.T)
        angle = float(np.linalg.norm(turn))
        if angle > self._limits.lead_rad:
            return Pose(position, here.moved(np.zeros(3), turn * (self._limits.lead_rad / angle)).rotation)
        return Pose(position, target.rotation)

    def _inverse(self, target: Pose, q: Vector) -> Vector | None:
        import mink

        try:
            q_target = self._arm.step_towards(q, target, self._period_s)
        except mink.NoSolutionFound:
            return None
        return q_target if np.isfinite(q_target).all() else None
