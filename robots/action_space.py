"""What the numbers of an action mean: names, units, frame, rotation, gripper polarity, rate."""

from dataclasses import dataclass
from typing import Literal

ActionKind = Literal["ee_delta", "joint_position"]


@dataclass(frozen=True)
class ActionSpec:
    """The meaning of one action vector of A numbers.

    `kind`: `ee_delta` (dx dy dz [m], rotation vector [rad], gripper; the displacement of the commanded
    end-effector pose during one step) or `joint_position` ([rad], absolute, gripper last).
    `low`, `high`: (A,) bounds in those units. `frame`: `base` or `tool`. `rotation`: `rotation_vector`,
    applied on the left in the base frame, `euler_xyz` (roll, pitch, yaw about the fixed axes, as most of Open
    X-Embodiment has it; no robot here executes it), or `none`. `gripper`: `open_is_one`, `open_is_zero` or `none`; it
    is the last element, absolute in [0, 1]. `rate_hz`: actions a second. Raises `ValueError` naming the field that is
    wrong.
    """

    kind: ActionKind
    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    units: tuple[str, ...]
    frame: Literal["base", "tool"] = "base"
    rotation: Literal["rotation_vector", "euler_xyz", "none"] = "rotation_vector"
    gripper: Literal["open_is_one", "open_is_zero", "none"] = "open_is_one"
    rate_hz: float = 10.0

    def __post_init__(self) -> None:
        for field, choices in (
            ("kind", ("ee_delta", "joint_position")),
            ("frame", ("base", "tool")),
            ("rotation", ("rotation_vector", "euler_xyz", "none")),
            ("gripper", ("open_is_one", "open_is_zero", "none")),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is {getattr(self, field)!r}, choices: {', '.join(choices)}")
        size = len(self.names)
        if size == 0 or len(set(self.names)) != size:
            raise ValueError(f"names must be distinct and not empty, are {self.names}")
        for field in ("low", "high", "units"):
            if len(getattr(self, field)) != size:
                raise ValueError(f"{field} has {len(getattr(self, field))} entries for {size} names")
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"every low must be below its high: {self.low}, {self.high}")
        if not self.rate_hz > 0:
            raise ValueError(f"rate_hz must be positive, is {self.rate_hz}")

    @property
    def size(self) -> int:
        """A, the length of an action."""
        return len(self.names)


def end_effector_delta(rate_hz: float = 10.0, step_m: float = 0.05, step_rad: float = 0.25) -> ActionSpec:
    """The Open X-Embodiment default: 7-D end-effector delta in the base frame, gripper 1 = open.

    `step_m`, `step_rad`: largest displacement in one step; 0.05 m at 10 Hz is 0.5 m/s.
    """
    return ActionSpec(
        kind="ee_delta",
        names=("dx", "dy", "dz", "rx", "ry", "rz", "gripper"),
        low=(-step_m,) * 3 + (-step_rad,) * 3 + (0.0,),
        high=(step_m,) * 3 + (step_rad,) * 3 + (1.0,),
        units=("m",) * 3 + ("rad",) * 3 + ("1",),
        rate_hz=rate_hz,
    )
