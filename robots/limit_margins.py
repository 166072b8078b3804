"""How near the commands of a run came to the robot's limits: the figure that says the safety filter worked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volar.robots.body import JointCommand
from volar.robots.spec import RobotSpec

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class LimitMargins:
    """Smallest distance to each limit over all joints and commands, as a fraction: 1 is at rest (for the
    position: in the middle of the range), 0 is at the limit, negative is beyond it."""

    position: float = 1.0
    velocity: float = 1.0
    acceleration: float = 1.0
    jerk: float = 1.0

    def worst(self, other: "LimitMargins") -> "LimitMargins":
        """The smaller of each."""
        return LimitMargins(
            min(self.position, other.position),
            min(self.velocity, other.velocity),
            min(self.acceleration, other.acceleration),
            min(self.jerk, other.jerk),
        )


class MarginMeter:
    """Collects the commands of one run that starts at rest, one each `period_s`."""

    def __init__(self, spec: RobotSpec, period_s: float) -> None:
        self._spec, self._period_s = spec, period_s
        self._commands: list[JointCommand] = []

    def add(self, command: JointCommand) -> None:
        """Remembers the command; cheap enough for a control period."""
        self._commands.append(command)

    def result(self) -> LimitMargins:
        """The margins so far; jerk is the finite difference of the commanded accelerations."""
        if not self._commands:
            return LimitMargins()
        spec = self._spec
        q, dq, ddq = (np.stack([getattr(c, name) for c in self._commands]) for name in ("q", "dq", "ddq"))  # (T, J)
        low, high = np.array(spec.position_min), np.array(spec.position_max)
        bounds = np.array([spec.velocity_bounds(row) for row in q])  # (T, 2, J)
        lower, upper = np.minimum(bounds[:, 0], -1e-9), np.maximum(bounds[:, 1], 1e-9)
        jerk = np.diff(ddq, axis=0, prepend=np.zeros((1, spec.joints))) / self._period_s
        return LimitMargins(
            position=float((np.minimum(q - low, high - q) / ((high - low) / 2)).min()),
            velocity=float(1.0 - np.maximum(dq / upper, dq / lower).max()),
            acceleration=float(1.0 - (np.abs(ddq) / spec.acceleration_max).max()),
            jerk=float(1.0 - (np.abs(jerk) / spec.jerk_max).max()),
        )


def limit_use(spec: RobotSpec, command: JointCommand, before: JointCommand | None, period_s: float) -> dict[str, float]:
    """Share of each limit that the joint nearest to it uses in a command, 1 at the limit; `before`: the last
    one, None where the arm rested."""
    low, high = np.array(spec.position_min), np.array(spec.position_max)
    lower, upper = spec.velocity_bounds(command.q)
    bound = np.where(command.dq >= 0, np.maximum(upper, 1e-9), np.minimum(lower, -1e-9))
    jerk = (command.ddq - (0.0 if before is None else before.ddq)) / period_s
    return {
        "position": float((np.abs(2 * command.q - low - high) / (high - low)).max()),
        "velocity": float((command.dq / bound).max()),
        "acceleration": float((np.abs(command.ddq) / spec.acceleration_max).max()),
        "jerk": float((np.abs(jerk) / spec.jerk_max).max()),
    }
