"""A robot as data: limits, home, cameras, names. One file a robot fills it in (fr3.py, ...)."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.action_space import ActionSpec
from volar.robots.errors import Unknown

if TYPE_CHECKING:
    import mujoco

Vector = NDArray[np.float64]

ROBOTS = ("fr3", "ur5e", "so101")  # each a module of this folder, with its `RobotSpec` in capitals
# What `kinematics.Arm.proprio` returns: position, first two columns of the rotation, opening of the gripper.
STATE_NAMES = (
    *("ee_x", "ee_y", "ee_z"),
    *("ee_r11", "ee_r21", "ee_r31", "ee_r12", "ee_r22", "ee_r32"),
    "gripper_width",
)
STATE_UNITS = ("m",) * 3 + ("1",) * 6 + ("m",)


@dataclass(frozen=True)
class RobotSpec:
    """Constants of one arm with a gripper; J joints, order as in `joint_names`.

    Units: rad, rad/s, rad/s^2, rad/s^3, Nm, m. `velocity_bounds(q) -> (lower, upper)`, each (J,):
    the velocity limits at a position, where a robot defines them so; constant otherwise.
    `workspace_low/high`: box for the end-effector site in the base frame [m].
    `add_to(spec) -> base body`: builds the arm into an `mujoco.MjSpec`, at the world origin, its flange a site
    `flange`. `add_hand(spec, body, position)`: builds the hand on a body in whose frame the flange is at
    `position` [m] and unrotated, with the site `ee_site`, the camera `wrist` and the actuator `gripper`.
    `state_names`/`state_units`: what `kinematics.Arm.proprio` returns.
    Raises `ValueError` on lengths that differ or a home outside the limits.
    """

    name: str
    joint_names: tuple[str, ...]
    position_min: tuple[float, ...]
    position_max: tuple[float, ...]
    velocity_max: tuple[float, ...]
    acceleration_max: tuple[float, ...]
    jerk_max: tuple[float, ...]
    effort_max: tuple[float, ...]
    home: tuple[float, ...]
    ee_site: str
    gripper_joint_names: tuple[str, ...]
    gripper_width_max: float  # [m] between the fingers
    gripper_speed_max: float  # [m/s] of the width
    gripper_force_max: float  # [N], all that the motor of the simulated hand has, and the most a real one is asked for
    workspace_low: tuple[float, float, float]
    workspace_high: tuple[float, float, float]
    cameras: tuple[str, ...]
    action: ActionSpec
    state_names: tuple[str, ...]
    state_units: tuple[str, ...]
    joint_states_topic: str
    trajectory_topic: str
    gripper_action: str
    velocity_bounds: Callable[[Vector], tuple[Vector, Vector]]
    add_to: "Callable[[mujoco.MjSpec], Any]"
    add_hand: "Callable[[mujoco.MjSpec, Any, tuple[float, float, float]], None]"
    orientation_m: float = (
        0.5  # position error [m] that counts like one radian of orientation error in inverse kinematics
    )
    gripper_m_per_unit: float = 1.0  # width for each unit (m, or rad of a rotary jaw) of the summed finger joints

    def __post_init__(self) -> None:
        size = len(self.joint_names)
        for name in (
            "position_min",
            "position_max",
            "velocity_max",
            "acceleration_max",
            "jerk_max",
            "effort_max",
            "home",
        ):
            if len(getattr(self, name)) != size:
                raise ValueError(f"{self.name}: {name} has {len(getattr(self, name))} entries for {size} joints")
        home = np.array(self.home)
        if (home < self.position_min).any() or (home > self.position_max).any():
            raise ValueError(f"{self.name}: home {self.home} is outside the position limits")

    @property
    def joints(self) -> int:
        """J, the number of arm joints."""
        return len(self.joint_names)

    @property
    def joint_state_names(self) -> tuple[str, ...]:
        """The other state vector a policy may ask for, (J + 1,): joint positions and the gripper's opening."""
        return (*self.joint_names, "gripper_width")

    @property
    def joint_state_units(self) -> tuple[str, ...]:
        return ("rad",) * self.joints + ("m",)

    def joint_action(self, rate_hz: float) -> ActionSpec:
        """The other action a policy may give, at its own rate: absolute joint positions [rad] and the gripper."""
        return ActionSpec(
            kind="joint_position",
            names=(*self.joint_names, "gripper"),
            low=(*self.position_min, 0.0),
            high=(*self.position_max, 1.0),
            units=("rad",) * self.joints + ("1",),
            rotation="none",
            rate_hz=rate_hz,
        )

    def gripper_width(self, fingers: Vector) -> float:
        """Positions of the finger joints (F,) [m, or rad of a rotary jaw], 0 where closed -> opening [m]."""
        return float(fingers.sum()) * self.gripper_m_per_unit

    def finger_positions(self, width_m: float) -> Vector:
        """Inverse of `gripper_width`, the fingers alike: (F,)."""
        count = len(self.gripper_joint_names)
        return np.full(count, width_m / self.gripper_m_per_unit / count)


def robot_name(robot: str, asset: str | None) -> str:
    """What `load_robot` takes: the robot's name, with a user's model (`menagerie:PATH`) if one is given."""
    return f"{robot}+{asset}" if asset else robot


@lru_cache(maxsize=8)
def load_robot(name: str) -> RobotSpec:
    """The robot of that name; `NAME+menagerie:PATH`: with a user's model in place of its primitives.

    Raises `Unknown` naming the choices, and as `mjcf_arm.with_asset`.
    """
    name, _, asset = name.partition("+")
    if name not in ROBOTS:
        raise Unknown("robot", name, ROBOTS)
    spec: RobotSpec = getattr(importlib.import_module(f"volar.robots.{name}"), name.upper())
    if asset:
        from volar.robots.mjcf_arm import with_asset

        return with_asset(spec, asset)
    return spec
