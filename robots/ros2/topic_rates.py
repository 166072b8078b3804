"""What comes on a robot's topics, against what the control loop and the policy want: rate, worst gap, size, encoding.

Listens and publishes nothing: the arm may be under anybody's control meanwhile.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState

from volar.robots.contract import PolicyContract
from volar.robots.doctor import Check
from volar.robots.ros2 import messages
from volar.robots.spec import RobotSpec
from volar.robots.watchdogs import LoopLimits

DISCOVERY_S: Final = 10.0  # matching a publisher takes up to 2.4 s between idle processes
# Best effort hears reliable publishers, too; deep enough that a slow callback does not look like a slow camera.
HEARING: Final = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(frozen=True)
class Wanted:
    """`size`: (width, height) of the policy's camera. `rate_hz`: slower, decisions are made on what was seen before.
    `gap_s`: longer, the control loop stops the arm."""

    topic: str
    kind: Any
    rate_hz: float
    gap_s: float
    joints: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


@dataclass
class Heard:
    """Arrivals [s] on one topic, its newest message, and every joint it named."""

    times_s: list[float] = field(default_factory=list)
    newest: Any = None
    joints: set[str] = field(default_factory=set)

    def take(self, message: Any) -> None:
        self.times_s.append(time.monotonic())
        self.newest = message
        if isinstance(message, JointState):
            self.joints.update(message.name)


def wanted_topics(spec: RobotSpec, contract: PolicyContract | None) -> list[Wanted]:
    """The robot's joint states and its cameras, or the contract's. Without one, the loop's limits count alone."""
    limits = LoopLimits()
    joints = (*spec.joint_names, *spec.gripper_joint_names)
    action_hz = contract.action.rate_hz if contract else spec.action.rate_hz
    decisions_hz = contract.action.rate_hz / contract.execute_steps if contract else 0.0
    sizes: dict[str, tuple[int, int] | None] = (
        {c.name: (c.width, c.height) for c in contract.cameras} if contract else dict.fromkeys(spec.cameras)
    )
    age_s = limits.joint_state_age_s
    found = [Wanted("joint_states", JointState, max(action_hz, 1 / age_s), age_s, joints)]
    image_hz = max(decisions_hz, 1 / limits.camera_age_s)
    found += [Wanted(f"{name}/image_raw", Image, image_hz, limits.camera_age_s, (), sizes[name]) for name in sizes]
    return found


def check_topics(
    spec: RobotSpec,
    contract: PolicyContract | None,
    seconds: float,
    ros_arguments: Sequence[str] = (),
) -> list[Check]:
    """Listens until each topic has said something, for `DISCOVERY_S` at most, and then for `seconds`.

    `ros_arguments`: from `--ros-args` on, as any node takes them.
    """
    wanted = wanted_topics(spec, contract)
    context = Context()
    rclpy.init(args=list(ros_arguments), context=context)
    try:
        node = Node("volar_doctor", context=context, enable_rosout=False, start_parameter_services=False)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        try:
            return _listen(node, executor, wanted, seconds)
        finally:
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown(context=context)


def _listen(node: Node, executor: SingleThreadedExecutor, wanted: Sequence[Wanted], seconds: float) -> list[Check]:
    heard = {item.topic: Heard() for item in wanted}
    for item in wanted:
        node.create_subscription(item.kind, item.topic, heard[item.topic].take, HEARING)
    _spin(executor, DISCOVERY_S, until=lambda: all(found.newest is not None for found in heard.values()))
    for found in heard.values():
        found.times_s.clear()
    start_s = time.monotonic()
    _spin(executor, seconds)
    end_s = time.monotonic()
    published = dict(node.get_topic_names_and_types())
    return [judge(item, heard[item.topic], start_s, end_s, published, node) for item in wanted]


def _spin(executor: SingleThreadedExecutor, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    end_s = time.monotonic() + seconds
    while not until() and (left_s := end_s - time.monotonic()) > 0:
        executor.spin_once(timeout_sec=left_s)


def judge(
    wanted: Wanted, heard: Heard, start_s: float, end_s: float, published: Mapping[str, Sequence[str]], node: Any
) -> Check:
    """One line of the report: broken where the topic is silent or brings what the policy cannot use."""
    name = f"topic {wanted.topic}"
    if not heard.times_s:
        topic = node.resolve_topic_name(wanted.topic)
        said = f"{topic} is silent" if heard.newest is None else f"came, and then nothing for {end_s - start_s:.1f} s"
        return Check(name, "broken", said, _where_else(wanted, published, node))
    rate_hz = len(heard.times_s) / (end_s - start_s)
    gap_s = float(np.diff([start_s, *heard.times_s, end_s]).max())
    found = f"{rate_hz:.1f} Hz (wanted: {wanted.rate_hz:g}), worst gap {gap_s * 1e3:.0f} ms{_content(heard.newest)}"
    if problem := _misfit(wanted, heard):
        return Check(name, "broken", found, problem)
    # A window may begin just after a message: one more may be missing from it without the publisher being slow.
    if (len(heard.times_s) + 1) / (end_s - start_s) < wanted.rate_hz:
        return Check(name, "optional", found, f"too slow: raise the driver's rate to {wanted.rate_hz:g} Hz at least")
    if gap_s > wanted.gap_s:
        fix = f"a gap above {wanted.gap_s * 1e3:.0f} ms stops the arm: look for a busy machine or network"
        return Check(name, "optional", found, fix)
    return Check(name, "ok", found)


def _content(message: Any) -> str:
    if isinstance(message, JointState):
        return f", {len(message.name)} joints"
    return f", {message.width}x{message.height} {message.encoding}"


def _misfit(wanted: Wanted, heard: Heard) -> str:
    """Why the policy cannot use what comes, and what to do; empty where it can."""
    if missing := [name for name in wanted.joints if name not in heard.joints]:
        return f"no joint {', '.join(missing)} among them: start the driver of this robot, or choose another robot="
    if wanted.kind is not Image:
        return ""
    try:
        image = messages.decode_image(heard.newest)
        if wanted.size is not None:
            messages.fit(image, *wanted.size, wanted.topic.partition("/")[0])
    except messages.ImageMisfit as error:
        return str(error)
    return ""


def _where_else(wanted: Wanted, published: Mapping[str, Sequence[str]], node: Any) -> str:
    """What to do about a silent topic, by what else is published."""
    own = node.resolve_topic_name(wanted.topic)
    if node.count_publishers(own):
        return f"{own} has a publisher that sends nothing to us: look at its type and whether it runs"
    compressed = f"{own}/compressed"
    if wanted.kind is Image and node.count_publishers(compressed):
        return f"only {compressed} is published: run the controller with -p image_transport:=compressed"
    kind = "sensor_msgs/msg/" + wanted.kind.__name__
    others = [name for name, kinds in published.items() if kind in kinds and node.count_publishers(name)]
    start = "start the robot's driver" if wanted.kind is JointState else "start the camera's driver"
    domain = "with the same ROS_DOMAIN_ID as here"
    if others:
        return f"{start}, or remap one of {', '.join(sorted(others)[:5])}: --ros-args -r {wanted.topic}:=TOPIC"
    return f"{start}, {domain}; no {kind} is published here"
