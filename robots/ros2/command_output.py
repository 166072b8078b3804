"""A command of the safety filter as the messages an arm's controllers take."""

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rclpy.duration import Duration
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from volar.robots.body import JointCommand
from volar.robots.errors import VolarError
from volar.robots.ros2.messages import set_stamp
from volar.robots.ros2.parameters import NodeSettings
from volar.robots.spec import RobotSpec

if TYPE_CHECKING:
    from rclpy.lifecycle import LifecycleNode

# Every command counts: a subscriber that misses one sees the arm told to move twice as far in a period.
COMMANDS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
FLUSH_S = 0.5  # for a subscriber that has gone without saying so
GOAL_M = 0.001  # a gripper action is sent again when the width to reach has changed by this


class CommandOutput:
    """Publishes one command a period; the publishers are silent while the node is not active.

    `problem(topic, text)`: called when a subscriber cannot hear us. Raises `VolarError` where the gripper's action is
    wanted and `control_msgs` is not installed.
    """

    def __init__(
        self, node: "LifecycleNode", spec: RobotSpec, settings: NodeSettings, problem: Callable[[str, str], None]
    ) -> None:
        self._node, self._spec, self._problem = node, spec, problem
        self._period_ns = round(1e9 / settings.rate_hz)
        self._stamped = settings.command_output == "joint_trajectory"
        kind: Any = JointTrajectory if self._stamped else Float64MultiArray
        topic = (settings.trajectory_topic or spec.trajectory_topic) if self._stamped else settings.position_topic
        self._arm = self._publisher(kind, topic)
        self._gripper, self._action, self._closed = None, None, False
        if _gripper_by_action(settings):
            self._action = _GripperAction(node, spec, settings.gripper_action or spec.gripper_action)
        else:
            self._gripper = self._publisher(Float64MultiArray, settings.gripper_topic)

    def _publisher(self, kind: Any, topic: str) -> Any:
        def incompatible(event: Any) -> None:
            policy = event.last_policy_kind.name.lower().removeprefix("rmw_qos_policy_")
            self._problem(
                self._node.resolve_topic_name(topic),
                f"a subscriber asks for {policy} that a stream of commands does not offer",
            )

        events = PublisherEventCallbacks(incompatible_qos=incompatible)
        return self._node.create_lifecycle_publisher(kind, topic, COMMANDS, event_callbacks=events)

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Who must be there before the first command: a stream that is heard from its middle begins with a jump."""
        if self._closed or self._arm.get_subscription_count():
            return ()
        return (f"a subscriber of {self._arm.topic_name}",)

    def send(self, command: JointCommand) -> None:
        """`Ros2Body`'s `publish`."""
        self._arm.publish(self.trajectory(command) if self._stamped else _numbers(command.q))
        if self._gripper is not None:
            self._gripper.publish(_numbers([command.gripper_width_m]))
        elif self._action is not None:
            self._action.reach(command.gripper_width_m)

    def trajectory(self, command: JointCommand) -> JointTrajectory:
        """One point, to be reached a period after it has come.

        The header's stamp stays zero, which means that: with a stamp, a joint_trajectory_controller drops what
        arrives a period late, or from a machine whose clock is behind (MoveIt Servo leaves it zero, too).
        """
        message = JointTrajectory(joint_names=list(self._spec.joint_names))
        point = JointTrajectoryPoint(
            positions=array("d", command.q), velocities=array("d", command.dq), accelerations=array("d", command.ddq)
        )
        set_stamp(point.time_from_start, self._period_ns)
        message.points = [point]
        return message

    def flush(self) -> None:
        """Waits until the last commands have been received: the arm is to rest where it was told to."""
        for publisher in filter(None, (self._arm, self._gripper)):
            publisher.wait_for_all_acked(Duration(seconds=FLUSH_S))

    def close(self) -> None:
        """Takes the publishers off the node."""
        self._closed = True
        for publisher in filter(None, (self._arm, self._gripper)):
            self._node.destroy_lifecycle_publisher(publisher)
        if self._action is not None:
            self._action.client.destroy()


class _GripperAction:
    """`control_msgs/GripperCommand`: goals, since a gripper's driver moves by itself."""

    def __init__(self, node: "LifecycleNode", spec: RobotSpec, name: str) -> None:
        from control_msgs.action import GripperCommand
        from rclpy.action.client import ActionClient

        self._goal, self._spec = GripperCommand.Goal, spec
        self.client: Any = ActionClient(node, GripperCommand, name)
        self._sent_m, self._last_m = float("nan"), float("nan")

    def reach(self, width_m: float) -> None:
        """The filter moves the width a little each period: a goal is sent when it has come to where it goes."""
        arrived, self._last_m = width_m == self._last_m, width_m
        if arrived and not abs(width_m - self._sent_m) < GOAL_M and self.client.server_is_ready():
            self._sent_m = width_m
            goal = self._goal()
            goal.command.position = float(self._spec.finger_positions(width_m)[0])
            goal.command.max_effort = self._spec.gripper_force_max
            self.client.send_goal_async(goal)


def _gripper_by_action(settings: NodeSettings) -> bool:
    from importlib.util import find_spec

    installed = find_spec("control_msgs") is not None
    if settings.gripper_output == "action" and not installed:
        raise VolarError(
            "gripper_output=action needs control_msgs, which is not installed here; use gripper_output=topic"
        )
    return installed and settings.gripper_output != "topic"


def _numbers(values: Any) -> Float64MultiArray:
    return Float64MultiArray(data=array("d", values))
