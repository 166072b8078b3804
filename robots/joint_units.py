"""Joint positions in the units of LeRobot's motors, and in ours.

LeRobot's normalization modes (`lerobot.motors.MotorNormMode`): `degrees` from the middle of the calibrated range;
`range_m100_100`, percent of half that range, which only a calibration gives a size; and for grippers 0 to 100 percent
of theirs. The robots here have their zero in the middle of the range, too, so that no offset remains. That holds for
calibrations of the `lerobot-calibrate` of 2025 and later; older ones had another zero.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import Unknown, VolarError

Vector = NDArray[np.float64]

DEGREES, RADIANS, PERCENT = "degrees", "radians", "range_m100_100"
UNITS: Final = (DEGREES, RADIANS, PERCENT)
DEGREES_PER_TICK: Final = 360.0 / 4095.0  # as LeRobot counts for encoders of 4096 steps


@dataclass(frozen=True)
class JointUnits:
    """How J joints and a gripper are counted. `unit`: one of `UNITS`.

    `gripper_closed`, `gripper_open`: the gripper's value at an opening of zero and of the robot's `gripper_width_max`;
    either may be the larger. `half_ranges_deg`: (J,) for `range_m100_100` only, negative for a joint that counts
    backwards. Raises `VolarError` naming what is missing or meaningless.
    """

    unit: str
    gripper_closed: float
    gripper_open: float
    half_ranges_deg: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise Unknown("unit", self.unit, UNITS)
        numbers = (self.gripper_closed, self.gripper_open, *self.half_ranges_deg)
        if not all(math.isfinite(number) for number in numbers) or 0.0 in self.half_ranges_deg:
            raise VolarError(f"units must be finite and ranges not zero, are {numbers}")
        if self.gripper_closed == self.gripper_open:
            raise VolarError(f"gripper={self.gripper_closed:g},{self.gripper_open:g}: closed and open must differ")
        if bool(self.half_ranges_deg) != (self.unit == PERCENT):
            raise VolarError(
                f"unit {self.unit} {'needs' if self.unit == PERCENT else 'has no'} ranges of a calibration: "
                "calibration=FILE, LeRobot's JSON of that arm"
            )

    @property
    def per_radian(self) -> Vector:
        """Units for each radian, (J,) or (1,)."""
        if self.unit == PERCENT:
            return np.asarray(100.0 / np.radians(np.array(self.half_ranges_deg)))
        return np.array([1.0 if self.unit == RADIANS else 180.0 / math.pi])

    def to_native(self, q: Vector, opening: float) -> Vector:
        """q (J,) [rad], opening as a share of the widest -> (J + 1,), the gripper last."""
        return np.append(q * self.per_radian, self.gripper_closed + opening * (self.gripper_open - self.gripper_closed))

    def from_native(self, values: Vector) -> Vector:
        """Inverse of `to_native`: (..., J + 1) -> joints [rad] and opening (..., J + 1)."""
        opening = (values[..., -1:] - self.gripper_closed) / (self.gripper_open - self.gripper_closed)
        return np.concatenate([values[..., :-1] / self.per_radian, opening], axis=-1)


def half_ranges_deg(calibration: Mapping[str, Any], joints: tuple[str, ...]) -> tuple[float, ...]:
    """Half the calibrated range of each joint [deg], negative where its drive mode turns it round.

    `calibration`: joint name -> object or mapping with `range_min`, `range_max` [ticks of 4096] and `drive_mode`.
    Raises `VolarError` naming the joints that are missing, or a range that is empty.
    """
    missing = [name for name in joints if name not in calibration]
    if missing:
        raise VolarError(
            f"the calibration lacks {', '.join(missing)} (it has {', '.join(sorted(calibration)) or 'nothing'}); "
            "calibrate the arm with lerobot-calibrate"
        )
    ranges = []
    for name in joints:
        entry = calibration[name]
        low, high, turned = (
            entry[key] if isinstance(entry, Mapping) else getattr(entry, key)
            for key in ("range_min", "range_max", "drive_mode")
        )
        if not high > low:
            raise VolarError(f"the calibrated range of {name} is empty: {low} to {high}; calibrate the arm again")
        ranges.append((high - low) / 2 * DEGREES_PER_TICK * (-1.0 if turned else 1.0))
    return tuple(ranges)


def read_calibration(path: Path) -> Mapping[str, Any]:
    """LeRobot's calibration file of one arm. Raises `VolarError` when it cannot be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise VolarError(f"calibration {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise VolarError(f"calibration {path} is not a table of motors; lerobot-calibrate writes such a file")
    return found
