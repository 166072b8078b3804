"""The last stage before a robot: every command obeys position, velocity, acceleration and jerk limits.

Method: Berscheid and Kroeger, "Jerk-limited Real-time Trajectory Generation with Arbitrary Target States"
(RSS 2021), the `ruckig` library: each control period a time-optimal jerk-limited trajectory is computed
from the last *commanded* state to the target at rest, and its state one period later is the command.
Commands are samples of one twice differentiable trajectory, so finite differences of any order up to the
third are averages of its derivatives and obey the same limits.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.body import JointCommand
from volar.robots.collision import MARGIN_M, Box, CollisionGuard
from volar.robots.errors import VolarError
from volar.robots.kinematics import Arm, Pose

Vector = NDArray[np.float64]

# Why a command brakes or holds instead of following its target; `Filtered.reason` is one of these.
NO_TARGET: Final = "no_target"
NON_FINITE_TARGET: Final = "target_non_finite"
WORKSPACE: Final = "workspace"
COLLISION: Final = "collision"
NO_TRAJECTORY: Final = "no_trajectory"  # ruckig finds none to the target

# Share of each limit that is used. The rest absorbs rounding and libfranka's own tolerance of 1e-3.
LIMIT_SHARE: Final = 0.95
# Position-dependent velocity limits are read where a joint can be after this many periods: one because the
# command is for the end of the period, one more because braking to a lower limit takes a period.
LOOKAHEAD_PERIODS: Final = 2.0
MIN_VELOCITY: Final = 1e-3  # [rad/s], ruckig needs a positive limit; only met outside the position limits
# Shares of the braking time at which the workspace box is checked. The path bends between them:
# with four of them it came out of the box by up to 4.6 mm at full speed, with these by 1.1 mm in 800,000 random ticks.
BRAKING_SAMPLES: Final = tuple(i / 12 for i in range(1, 13))
# Where one of these is that near to the border, the moments between them are looked at, too.
CLOSE_M: Final = 0.005
BETWEEN: Final = tuple((i - 0.5) / 12 for i in range(1, 13))
BRAKING_SLACK_M: Final = 0.001
# Where a way is a round multiple of a^3 / j^2, ruckig's step 1 divides by what rounding made zero and finds no
# trajectory; with a jerk limit lower by this share it does.
JERK_RETRIES: Final = (0.999, 0.99, 0.9)
AT_REST: Final = 1e-9  # [rad/s], [rad/s^2]


class SafetyError(VolarError):
    """The filter was used before `reset`, or was given a position it cannot start from."""


@dataclass(frozen=True)
class Filtered:
    """A command inside every limit, and why it brakes or holds (None: it follows the target)."""

    command: JointCommand
    reason: str | None


@dataclass(frozen=True)
class _State:
    """Commanded position, velocity and acceleration, lists of J as ruckig wants them."""

    q: list[float]
    dq: list[float]
    ddq: list[float]


class SafetyFilter:
    """Turns targets into commands of one robot, one call of `step` a control period.

    Position limits are those of `RobotSpec` less `margin_rad`. The workspace box holds for the whole way
    on which the arm would come to rest, so a motion that cannot stop inside it is never begun. Nor is one on which
    the arm would come nearer than `collision_margin_m` to itself or to an obstacle, or nearer still.
    """

    def __init__(
        self,
        arm: Arm,
        period_s: float,
        margin_rad: float = 0.01,
        obstacles: Iterable[Box] = (),
        collision_margin_m: float = MARGIN_M,
    ) -> None:
        import ruckig

        if not period_s > 0:
            raise ValueError(f"period_s must be positive, is {period_s}")
        self.spec, self.period_s = arm.spec, period_s
        self._arm, self._reach_m = arm, arm.reach_m
        self._low = np.array(self.spec.position_min) + margin_rad
        self._high = np.array(self.spec.position_max) - margin_rad
        self._acceleration = LIMIT_SHARE * np.array(self.spec.acceleration_max)
        self._guard = CollisionGuard(arm.spec, obstacles, collision_margin_m)
        self._box = tuple(zip(self.spec.workspace_low, self.spec.workspace_high, strict=True))
        self._otg = ruckig.Ruckig(self.spec.joints, period_s)
        self._trajectory = ruckig.Trajectory(self.spec.joints)
        self._move = self._input(ruckig.ControlInterface.Position)
        self._straight = self._input(ruckig.ControlInterface.Position)
        self._straight.synchronization = ruckig.Synchronization.Phase
        self._brake = self._input(ruckig.ControlInterface.Velocity)
        self._state: _State | None = None
        self._pose: Pose | None = None
        self._width_m = 0.0

    def reset(self, q: Vector, gripper_width_m: float) -> None:
        """Starts from the measured position q (J,) [rad], at rest. Raises `SafetyError` if it is not finite."""
        if q.shape != (self.spec.joints,) or not (np.isfinite(q).all() and np.isfinite(gripper_width_m)):
            raise SafetyError(f"cannot start from joint positions {q} and gripper width {gripper_width_m}")
        zero = [0.0] * self.spec.joints
        self._state = _State(q.tolist(), zero, zero)
        self._pose = self._arm.forward(q)
        self._width_m = float(np.clip(gripper_width_m, 0.0, self.spec.gripper_width_max))

    @property
    def q(self) -> Vector:
        """The last commanded position (J,) [rad]."""
        return np.array(self._started.q)

    @property
    def pose(self) -> Pose:
        """The end-effector pose of the last commanded position, base frame."""
        if self._pose is None:
            raise SafetyError("SafetyFilter.reset has not been called")
        return self._pose

    @property
    def gripper_width_m(self) -> float:
        """The last commanded width [m]."""
        return self._width_m

    @property
    def at_rest(self) -> bool:
        """True when the last command does not move."""
        return not any(self._started.dq) and not any(self._started.ddq)

    def step(self, q_target: Vector | None, gripper_width_m: float) -> Filtered:
        """The command for the next period. None brakes to rest, jerk-limited, and then holds.

        `q_target` (J,) [rad], `gripper_width_m` [m]; both are brought inside the limits. Raises `SafetyError` before
        `reset`, and should ruckig find no way to brake either.
        """
        state, reason = self._started, None
        if q_target is None:
            reason = NO_TARGET
        elif not (np.isfinite(q_target).all() and math.isfinite(gripper_width_m)):
            reason = NON_FINITE_TARGET
        else:
            # Joints speed up each for itself, so near the border even a way inwards can begin across it. From rest they
            # can all move in proportion, straight in joint space: without it the arm would stay there for ever.
            for settings in (self._move, self._straight) if self.at_rest else (self._move,):
                reason = self._followed(state, q_target, settings)
                if reason is None:
                    break
        if reason is not None:
            self._state = self._braked(state)
            self._pose = self._arm.forward(np.array(self._state.q))
        self._move_gripper(gripper_width_m)
        now = self._started
        return Filtered(JointCommand(np.array(now.q), np.array(now.dq), np.array(now.ddq), self._width_m), reason)

    @property
    def _started(self) -> _State:
        if self._state is None:
            raise SafetyError("SafetyFilter.reset has not been called")
        return self._state

    def _input(self, interface: Any) -> Any:
        import ruckig

        settings = ruckig.InputParameter(self.spec.joints)
        settings.control_interface = interface
        settings.synchronization = ruckig.Synchronization.No
        settings.max_velocity = list(self.spec.velocity_max)
        settings.max_acceleration = [LIMIT_SHARE * limit for limit in self.spec.acceleration_max]
        settings.max_jerk = [LIMIT_SHARE * limit for limit in self.spec.jerk_max]
        return settings

    def _followed(self, state: _State, q_target: Vector, settings: Any) -> str | None:
        """Goes on towards the target for a period, or says why not."""
        try:
            following = self._towards(state, q_target, settings)
            pose = self._arm.forward(np.array(following.q))
            reason = self._unsafe(following, pose)
        except SafetyError:  # there may still be a way to brake
            return NO_TRAJECTORY
        if reason is None:
            self._state, self._pose = following, pose
        return reason

    def _towards(self, state: _State, q_target: Vector, settings: Any) -> _State:
        q, dq = np.array(state.q), np.array(state.dq)
        ahead_s, gain = LOOKAHEAD_PERIODS * self.period_s, self._acceleration * self.period_s
        _, upper = self.spec.velocity_bounds(q + np.maximum(dq + gain, 0.0) * ahead_s)
        lower, _ = self.spec.velocity_bounds(q + np.minimum(dq - gain, 0.0) * ahead_s)
        settings.max_velocity = np.maximum(LIMIT_SHARE * upper, MIN_VELOCITY).tolist()
        settings.min_velocity = np.minimum(LIMIT_SHARE * lower, -MIN_VELOCITY).tolist()
        settings.target_position = np.minimum(np.maximum(q_target, self._low), self._high).tolist()
        return self._sample(settings, state, self.period_s)

    def _braked(self, state: _State) -> _State:
        following = self._sample(self._brake, state, self.period_s)
        if all(abs(v) < AT_REST for v in following.dq) and all(abs(a) < AT_REST for a in following.ddq):
            zero = [0.0] * self.spec.joints
            return _State(following.q, zero, zero)
        return following

    def _sample(self, settings: Any, state: _State, time_s: float | None) -> _State:
        """The trajectory from `state` after `time_s`, or at its end."""
        settings.current_position, settings.current_velocity = state.q, state.dq
        settings.current_acceleration = state.ddq
        if not self._calculated(settings):
            raise SafetyError(f"ruckig found no trajectory from {state}")
        q, dq, ddq = self._trajectory.at_time(self._trajectory.duration if time_s is None else time_s)
        return _State(q, dq, ddq)

    def _calculated(self, settings: Any) -> bool:
        """Fills `_trajectory`; False when there is none."""
        import ruckig

        jerk = settings.max_jerk
        for share in (1.0, *JERK_RETRIES):
            if share != 1.0:
                settings.max_jerk = [share * limit for limit in jerk]
            try:
                found: bool = self._otg.calculate(settings, self._trajectory).value >= 0
            except ruckig.RuckigError:
                found = False
            if share != 1.0:
                settings.max_jerk = jerk
            if found:
                return True
        return False

    def _unsafe(self, following: _State, pose: Pose) -> str | None:
        """Why not to follow: the arm would leave the box, or further, or touch something before it can stop."""
        allowed_m = max(0.0, -self._depth_m(self.pose.position.tolist())) + 1e-9
        depth_m = self._depth_m(pose.position.tolist())
        if -depth_m > allowed_m:
            return WORKSPACE
        q = np.array(following.q)
        stop = np.array(self._sample(self._brake, following, None).q)
        # Farther from the border than any joint can carry the site while braking: no need to look closer.
        within = depth_m > float(np.abs(stop - q).sum()) * self._reach_m + BRAKING_SLACK_M
        near = self._guard.near(q, stop)
        if within and not near.size:
            return None
        duration_s = self._trajectory.duration  # joints brake each for itself, so the path is curved
        path = [self._trajectory.at_time(share * duration_s)[0] for share in BRAKING_SAMPLES]
        if not within and self._leaves(path, allowed_m):
            return WORKSPACE
        every_second = (q, *path[1::2])  # shapes that are larger than the links forgive more than the box does
        return COLLISION if near.size and self._guard.touching(near, self._started.q, every_second) else None

    def _leaves(self, path: list[list[float]], allowed_m: float) -> bool:
        """True when the path at `BRAKING_SAMPLES` of `_trajectory` comes out of the box further than it may."""
        depth_m = min(self._depth_m(self._arm.position(q)) for q in path)
        if depth_m + allowed_m > CLOSE_M or -depth_m > allowed_m:
            return -depth_m > allowed_m
        between = (self._trajectory.at_time(share * self._trajectory.duration)[0] for share in BETWEEN)
        return any(-self._depth_m(self._arm.position(q)) > allowed_m for q in between)

    def _depth_m(self, position: list[float]) -> float:
        """Distance of a point (3,) to the nearest side of the box, negative outside."""
        return min(min(x - low, high - x) for x, (low, high) in zip(position, self._box, strict=True))

    def _move_gripper(self, width_m: float) -> None:
        if not math.isfinite(width_m):
            return
        step_m = self.spec.gripper_speed_max * self.period_s
        wanted = min(max(float(width_m), 0.0), self.spec.gripper_width_max)
        self._width_m += min(max(wanted - self._width_m, -step_m), step_m)
