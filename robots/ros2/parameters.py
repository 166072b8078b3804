"""The parameters of the controller node: what each means, its range, and what it is when nobody says."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from volar.robots.control_loop import MAX_RATE_HZ, MIN_RATE_HZ
from volar.robots.errors import Unknown, UsageError
from volar.robots.watchdogs import LoopLimits

if TYPE_CHECKING:
    from rclpy.node import Node

COMMAND_OUTPUTS: Final = ("joint_trajectory", "position")
GRIPPER_OUTPUTS: Final = ("auto", "action", "topic")
TRANSPORTS: Final = ("raw", "compressed")
MISTYPED: Final = 0.8  # likeness of a slip: rate_hs to rate_hz 0.86, polcy to policy 0.91; robot_ip to robot 0.77
OF_EVERY_NODE: Final = ("use_sim_time", "start_type_description_service")  # declared by rclpy itself
_LIMITS = LoopLimits()


def _about(text: str, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"help": text, "range": None if low is None else (low, high)}


@dataclass(frozen=True)
class NodeSettings:
    """One field a parameter. Raises `Unknown` and `UsageError` naming what is wrong."""

    policy: str = field(default="", metadata=_about("exported artifact, or whatever volar-control takes as policy="))
    robot: str = field(default="fr3", metadata=_about("the arm: fr3, ur5e, so101"))
    asset: str = field(default="", metadata=_about("menagerie:PATH, your own MJCF model of that arm; empty for none"))
    instruction: str = field(
        default="", metadata=_about("what to do; may be changed at any time, here or on the topic ~/instruction")
    )
    rate_hz: float = field(default=100.0, metadata=_about("commands a second", MIN_RATE_HZ, MAX_RATE_HZ))
    blend_s: float = field(
        default=0.1, metadata=_about("how long a new chunk is blended with the one before", 0.0, 2.0)
    )
    command_output: str = field(
        default="joint_trajectory",
        metadata=_about("joint_trajectory: trajectory_msgs/JointTrajectory; position: std_msgs/Float64MultiArray"),
    )
    trajectory_topic: str = field(default="", metadata=_about("empty: the one of the robot's usual controller"))
    position_topic: str = field(
        default="forward_position_controller/commands", metadata=_about("for command_output=position")
    )
    joint_states_topic: str = field(default="joint_states", metadata=_about("sensor_msgs/JointState, matched by name"))
    gripper_output: str = field(
        default="auto", metadata=_about("action: control_msgs/GripperCommand (not ur5e); topic; auto: what can be had")
    )
    gripper_topic: str = field(
        default="gripper_controller/commands", metadata=_about("std_msgs/Float64MultiArray, width between fingers [m]")
    )
    gripper_action: str = field(default="", metadata=_about("empty: the one of the robot's usual driver"))
    image_transport: str = field(default="raw", metadata=_about("raw: Image; compressed: CompressedImage"))
    camera_sync_s: float = field(
        default=0.05, metadata=_about("how far apart the images of one observation may lie", 0.001, 1.0)
    )
    joint_state_age_s: float = field(
        default=_LIMITS.joint_state_age_s, metadata=_about("an older joint state stops the arm", 0.01, 10.0)
    )
    camera_age_s: float = field(
        default=_LIMITS.camera_age_s, metadata=_about("an older image stops the arm", 0.05, 10.0)
    )
    frozen_s: float = field(
        default=_LIMITS.frozen_s, metadata=_about("identical images for so long, while moving, stop the arm", 0.1, 60.0)
    )
    clock_jump_s: float = field(
        default=_LIMITS.clock_jump_s, metadata=_about("a clock that jumps by more stops the arm", 0.02, 60.0)
    )
    tracking_rad: float = field(
        default=_LIMITS.tracking_rad, metadata=_about("a joint farther from its command stops the arm", 0.01, 3.2)
    )
    policy_deadline_s: float = field(
        default=_LIMITS.policy_deadline_s, metadata=_about("a policy that takes longer is called silent", 0.01, 60.0)
    )
    record: str = field(default="", metadata=_about("folder for an MCAP recording, made at activation; empty for none"))
    autostart: bool = field(default=False, metadata=_about("configure and activate at once, without being told"))

    def __post_init__(self) -> None:
        for name, choices in (
            ("command_output", COMMAND_OUTPUTS),
            ("gripper_output", GRIPPER_OUTPUTS),
            ("image_transport", TRANSPORTS),
        ):
            if getattr(self, name) not in choices:
                raise Unknown(name, getattr(self, name), choices)

    def require_policy(self) -> None:
        """Raises `UsageError` where there is nothing to run."""
        if not self.policy:
            raise UsageError("the parameter policy is empty; give an exported artifact: -p policy:=runs/artifact")

    @property
    def limits(self) -> LoopLimits:
        """The loop's deadlines."""
        names = {item.name for item in fields(LoopLimits)} & {item.name for item in fields(self)}
        return LoopLimits(**{name: getattr(self, name) for name in names})


def declare(node: "Node") -> None:
    """Declares every parameter, with its description and range; all but `instruction` are read at configuration."""
    from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor

    for item in fields(NodeSettings):
        described = ParameterDescriptor(description=item.metadata["help"])
        if item.metadata["range"] is not None:
            low, high = item.metadata["range"]
            described.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
        node.declare_parameter(item.name, item.default, described)


def read(node: "Node") -> NodeSettings:
    """The parameters as they are now. Raises as `NodeSettings`."""
    return NodeSettings(**{item.name: node.get_parameter(item.name).value for item in fields(NodeSettings)})


def given(words: Sequence[str]) -> dict[str, str]:
    """The `-p NAME:=VALUE` of a command line; one that says for which node it is (`NODE:NAME`) is left out."""
    pairs = [word.partition(":=") for flag, word in pairwise(words) if flag in ("-p", "--param")]
    return {name: value for name, _, value in pairs if ":" not in name}


def refuse_unknown(words: Sequence[str], likeness: float = 0.0) -> None:
    """Raises `Unknown` for a `-p` that the node would never look at and whose name is like a known one (0 to 1).

    By default, whatever its name. A launch file's SetParameter is a `-p` of each of its nodes, whose ever it is.
    """
    known = (*(item.name for item in fields(NodeSettings)), *OF_EVERY_NODE)
    for name in given(words):
        camera = name.startswith("cameras.") and name.endswith(".topic")
        read = camera or name in known or name.startswith("qos_overrides.")
        if not read and difflib.get_close_matches(name, known, n=1, cutoff=likeness):
            raise Unknown("parameter", name, (*known, "cameras.NAME.topic"))


def unread(node: "Node") -> list[str]:
    """What is wrong with each parameter that was given and not declared, as a file of several nodes may hold them."""
    names = node._parameter_overrides  # rclpy has no other way to them
    others = [name for name in names if not node.has_parameter(name) and not name.startswith("qos_overrides.")]
    return [f"not read: {Unknown('parameter', name, node._parameters)}" for name in others]


def camera_topic(node: "Node", camera: str, transport: str) -> str:
    """Where a camera's images come from: `cameras.<name>.topic`, by default `<name>/image_raw[/compressed]`.

    Declared by the first call, so that it can be set after it; a default gives way to that of another transport.
    """
    from rcl_interfaces.msg import ParameterDescriptor

    name = f"cameras.{camera}.topic"
    defaults = {"raw": f"{camera}/image_raw", "compressed": f"{camera}/image_raw/compressed"}
    given = name in node._parameter_overrides  # rclpy has no other way to them
    if not given and node.has_parameter(name) and node.get_parameter(name).value in defaults.values():
        node.undeclare_parameter(name)
    if not node.has_parameter(name):
        node.declare_parameter(name, defaults[transport], ParameterDescriptor(description=f"images of camera {camera}"))
    return str(node.get_parameter(name).value)
