"""What an arm's own controller makes of the commands it receives: the limits, by finite differences.

Written apart from `robots.safety`, with none of its code: a robot does not trust what is sent to it. Franka's control
aborts a motion on a discontinuity of velocity or acceleration (libfranka, `rate_limiting.h`); this does likewise.
"""

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.spec import RobotSpec

Vector = NDArray[np.float64]

TOLERANCE: Final = 1e-3  # of each limit, as libfranka's `kTolNumberPacketsLost` margins are of that order
GAP_PERIODS: Final = 3  # without commands the arm has come to rest where it was told to be last


class CommandCheck:
    """Looks at one command after the other, each a period after the one before. Begins at rest."""

    def __init__(self, spec: RobotSpec, period_s: float) -> None:
        self._spec, self._period_s = spec, period_s
        self._history: deque[Vector] = deque(maxlen=3)
        self.violations = 0

    def reset(self, q: Vector) -> None:
        """The arm rests at q (J,) [rad]."""
        self._history.extend([q.copy()] * 3)

    def look(self, q: Vector) -> str | None:
        """Why a real arm would stop at this command (J,) [rad], None where it would not."""
        reason = self._wrong(q)
        self.violations += reason is not None
        self._history.append(q.copy())
        return reason

    def rest(self) -> None:
        """No command came for `GAP_PERIODS`: whatever comes next begins from rest."""
        self.reset(self._history[-1])

    def _wrong(self, q: Vector) -> str | None:
        spec, dt = self._spec, self._period_s
        if q.shape != (spec.joints,) or not np.isfinite(q).all():
            return f"a command of {q.shape} with {np.isfinite(q).sum()} finite numbers, for {spec.joints} joints"
        q0, q1, q2 = self._history
        dq, before, earlier = (q - q2) / dt, (q2 - q1) / dt, (q1 - q0) / dt
        ddq, ddq_before = (dq - before) / dt, (before - earlier) / dt
        lower, upper = spec.velocity_bounds(q2)
        use = {
            "position": np.maximum(q - spec.position_max, spec.position_min - q) + 1.0,
            "velocity": np.where(dq >= 0, dq / np.maximum(upper, 1e-3), dq / np.minimum(lower, -1e-3)),
            "acceleration": np.abs(ddq) / spec.acceleration_max,
            "jerk": np.abs(ddq - ddq_before) / dt / spec.jerk_max,
        }
        for name, share in use.items():
            worst = int(share.argmax())
            if share[worst] > 1.0 + TOLERANCE:
                return f"{spec.joint_names[worst]}: {name} at {share[worst]:.2f} of its limit"
        return None
