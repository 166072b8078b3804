"""What the control loop watches in every tick: its clock, the joint state, the cameras; and what it can start from.

Each watchdog has a deadline in `LoopLimits` and a name in `loop_state`, whose table says what it leads to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.body import Body, JointState
from volar.robots.errors import VolarError
from volar.robots.loop_state import (
    CLOCK_JUMP,
    FROZEN_IMAGE,
    INVALID_JOINT_STATE,
    STALE_CAMERA,
    STALE_JOINT_STATE,
    TRACKING_ERROR,
)
from volar.robots.spec import RobotSpec

Vector = NDArray[np.float64]
Image = NDArray[np.uint8]
# Of a joint's velocity limit, below which it counts as resting. An SO-101 at rest whose encoder wavers by one of its
# 4096 counts between two readings at 100 Hz shows 0.15 rad/s, 3.3 % of its limit.
REST_SHARE: Final = 0.05
MOVED_RAD: Final = 0.05  # a resting arm that is that far from where it came to rest was moved: it gives way less
SETTLED_RAD: Final = 0.01  # an arm that stays this near to a place for `SETTLED_NS` has come to rest: servos lag behind
SETTLED_NS: Final = 500_000_000


class CannotStart(VolarError):
    """The measured state is none to start from: it is not finite, or the arm moves. It may be one a moment later."""


def moving(state: JointState, spec: RobotSpec) -> str | None:
    """A joint that moves, None for an arm at rest; a velocity that is missing, or NaN, is one that nobody measures."""
    for name, speed, limit in zip(spec.joint_names, np.abs(state.dq).tolist(), spec.velocity_max, strict=False):
        if speed > REST_SHARE * limit:
            return f"{name} moves at {speed:.3f} rad/s, where rest is at most {REST_SHARE * limit:.3f}"
    return None


def require_start(state: JointState, spec: RobotSpec) -> None:
    """Raises `CannotStart` naming what is not finite, or the joint that moves."""
    measured = dict(zip(spec.joint_names, state.q.tolist(), strict=False)) | {"the gripper": state.gripper_width_m}
    for name, value in measured.items():
        if not np.isfinite(value):
            raise CannotStart(f"{name} is measured at {value}, so nothing can start from there; mend its driver")
    if (joint := moving(state, spec)) is not None:
        raise CannotStart(f"{joint}; let the arm come to rest before the loop starts")


@dataclass(frozen=True)
class LoopLimits:
    """When the loop stops following its policy; a deadline of `math.inf` is never over.

    `joint_state_age_s`: oldest joint state acted on. `camera_age_s`: oldest frame, judged by `Body.image_stamps`.
    `frozen_s`: how long a camera may give identical bytes while the arm moves; it counts as moved when a joint is
    `frozen_move_rad` from where it was at the first of those images. `clock_jump_s`: longest time between two ticks.
    `tracking_rad`: how far a measured joint may be from its command; simulated arms stay within 0.01, with every
    randomization within 0.1. `policy_deadline_s`: a policy that has not
    answered for that long is called silent. `lead_m`, `lead_rad`: how far the integrated pose may run ahead of
    the commanded one (anti-windup; the safety filter lags by v^2 / 2a, about 0.03 m at full speed).
    `inset_m`: how far inside the workspace box that pose stays, so that the curvature of a joint-space
    path does not cross the box at its border. Raises `ValueError` naming a value that is not positive.
    """

    joint_state_age_s: float = 0.1
    camera_age_s: float = 0.5
    frozen_s: float = 1.0
    frozen_move_rad: float = 0.05
    clock_jump_s: float = 1.0
    tracking_rad: float = 0.3
    policy_deadline_s: float = 0.5
    lead_m: float = 0.05
    lead_rad: float = 0.3
    inset_m: float = 0.002

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, is {value}")


@dataclass
class _Frame:
    """An image that a camera has given since `first_ns`, while the joints were at `q` (J,) or have moved from there.

    `repeated`: it came again after the arm had moved.
    """

    image: Image
    q: Vector
    first_ns: int
    repeated: bool = False


class Watchdogs:
    """The deadlines of one loop. `cameras`: those that matter; None for all, () where no images are used."""

    def __init__(self, body: Body, limits: LoopLimits, cameras: tuple[str, ...] | None) -> None:
        self._body, self._limits, self._cameras = body, limits, cameras
        self._frames: dict[str, _Frame] = {}
        self._last_ns: int | None = None
        self._since_ns = 0

    def reset(self, now_ns: int) -> None:
        """Everything counts from now: cameras have their full deadline to give a first frame."""
        self._frames.clear()
        self._last_ns, self._since_ns = None, now_ns

    def check(self, state: JointState, commanded: Vector, now_ns: int) -> str | None:
        """The fault that is present, None when all is well. `commanded` (J,) [rad]: what the arm was told last."""
        last_ns, self._last_ns = self._last_ns, now_ns
        if last_ns is not None and not 0 <= now_ns - last_ns <= self._limits.clock_jump_s * 1e9:
            self.reset(now_ns)  # no stamp from before means anything now
            self._last_ns = now_ns
            return CLOCK_JUMP
        if now_ns - state.stamp_ns > self._limits.joint_state_age_s * 1e9:
            return STALE_JOINT_STATE
        if not (np.isfinite(state.q).all() and np.isfinite(state.gripper_width_m)):
            return INVALID_JOINT_STATE
        if np.abs(state.q - commanded).max() > self._limits.tracking_rad:
            return TRACKING_ERROR
        return STALE_CAMERA if self._stale(now_ns) else None

    def look(self, images: Mapping[str, Image], q: Vector, now_ns: int) -> str | None:
        """Compares images (H, W, 3) with the ones before; `q` (J,) [rad]: measured. Returns `FROZEN_IMAGE` or None."""
        for name, image in images.items():
            frame = self._frames.get(name)
            if frame is None or not np.array_equal(frame.image, image):
                self._frames[name] = _Frame(image.copy(), q.copy(), now_ns)
            elif np.abs(q - frame.q).max() > self._limits.frozen_move_rad:
                frame.repeated = True
            elif not frame.repeated:
                frame.first_ns = now_ns  # an arm at rest may see the same for ever
        return FROZEN_IMAGE if self.suspects(now_ns) else None

    def suspects(self, now_ns: int) -> bool:
        """True when a camera's image has come again from elsewhere, and its first time was too long ago."""
        deadline_ns = self._limits.frozen_s * 1e9
        return any(frame.repeated and now_ns - frame.first_ns > deadline_ns for frame in self._frames.values())

    def _stale(self, now_ns: int) -> bool:
        stamps_of = getattr(self._body, "image_stamps", None)
        if stamps_of is None or self._cameras == ():
            return False
        stamps: Mapping[str, int] = stamps_of()
        oldest_ns = now_ns - self._limits.camera_age_s * 1e9
        names = stamps if self._cameras is None else self._cameras
        return any(max(stamps.get(name, self._since_ns), self._since_ns) < oldest_ns for name in names)


class Resting:
    """Whether an arm that rests in a stop is still told where to. `ceased`: no more, until it may move again.

    Told so, an arm that was moved meanwhile, by hand or by another program, would jump back as soon as its driver
    follows again. Commands cease where nobody knows where it is, where it is not where it was told to be (a protective
    stop halts it on its way), and when it was moved; drivers hold without them.
    """

    def __init__(self) -> None:
        self.leave()

    def leave(self) -> None:
        """It is not stopped, or no more."""
        self.ceased = False
        self._q: Vector | None = None
        self._since_ns = 0

    def look(self, state: JointState, fault: str | None) -> None:
        """Once a tick while it rests in a stop; `fault`: what is wrong now."""
        if fault in (STALE_JOINT_STATE, INVALID_JOINT_STATE, TRACKING_ERROR):
            self.ceased = True
            return
        apart = np.inf if self._q is None else np.abs(state.q - self._q).max()
        settled = state.stamp_ns - self._since_ns > SETTLED_NS
        if apart > SETTLED_RAD and not (settled and self._q is not None):
            self._q, self._since_ns = state.q.copy(), state.stamp_ns
        elif apart > MOVED_RAD:
            self.ceased = True
