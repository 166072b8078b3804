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
ABORTED = 6  # action_msgs/GoalStatus
FLUSH_S = 0.5  # for a subscriber that has gone without saying so
GOAL_S = 0.1  # between two goals of a gripper's action at least: drivers begin each one anew
STEP_M = 0.002  # a goal for each such change of a width that goes on moving
REST_M = 0.0002  # the width it comes to rest at is told more exactly: a thin object is to be grasped


class CommandOutput:
    """Publishes one command a period; the publishers are silent while the node is not active.

    `problem(topic, text)`: called when a subscriber cannot hear us, or the gripper's driver does not follow; an empty
    text takes that back. Raises `VolarError` where the gripper's action is wanted and cannot be had.
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
        if _gripper_by_action(spec, settings):
            name = settings.gripper_action or spec.gripper_action
            self._action = _GripperAction(node, spec, name, 1.0 / settings.rate_hz, problem)
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
        if self._closed:
            return ()
        publishers = filter(None, (self._arm, self._gripper))
        deaf = [f"a subscriber of {each.topic_name}" for each in publishers if not each.get_subscription_count()]
        return (*deaf, *(() if self._action is None else self._action.waits_for))

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


class GoalSteps:
    """When a width that the filter moves a little each period is worth a goal: for each step, and where it rests."""

    def __init__(self, period_s: float) -> None:
        self._every = self._since = max(1, round(GOAL_S / period_s))
        self._sent_m, self._last_m = float("nan"), float("nan")

    def due(self, width_m: float) -> bool:
        """Once each period. True where a goal is to be sent now."""
        rests, self._last_m = width_m == self._last_m, width_m
        self._since += 1
        near = abs(width_m - self._sent_m) < (REST_M if rests else STEP_M)  # not before the first goal: NaN
        if near or self._since < self._every:
            return False
        self._sent_m, self._since = width_m, 0
        return True

    def lost(self) -> None:
        """The goal could not be sent: another is due."""
        self._sent_m = float("nan")


class _GripperAction:
    """`control_msgs/GripperCommand`: goals, since a gripper's driver moves by itself."""

    def __init__(
        self, node: "LifecycleNode", spec: RobotSpec, name: str, period_s: float, problem: Callable[[str, str], None]
    ) -> None:
        from control_msgs.action import GripperCommand
        from rclpy.action.client import ActionClient

        self._goal, self._spec, self._name, self._problem = GripperCommand.Goal, spec, name, problem
        self.client: Any = ActionClient(node, GripperCommand, name)
        self._steps = GoalSteps(period_s)

    @property
    def waits_for(self) -> tuple[str, ...]:
        return () if self.client.server_is_ready() else (f"the action server {self._name}",)

    def reach(self, width_m: float) -> None:
        if not self._steps.due(width_m):
            return
        if self.waits_for:
            self._steps.lost()
            self._problem(self._name, "its action server is gone: the gripper does not move")
            return
        goal = self._goal()
        goal.command.position = float(self._spec.finger_positions(width_m)[0])
        goal.command.max_effort = self._spec.gripper_force_max
        self.client.send_goal_async(goal).add_done_callback(self._on_answer)

    def _on_answer(self, answer: Any) -> None:
        if answer.result().accepted:
            answer.result().get_result_async().add_done_callback(self._on_end)
        else:
            self._problem(self._name, "a goal was rejected: the gripper does not move")

    def _on_end(self, end: Any) -> None:
        gave_up = end.result().status == ABORTED
        self._problem(self._name, "a goal was aborted; where a grasp ends so, set allow_stalling" if gave_up else "")


def _gripper_by_action(spec: RobotSpec, settings: NodeSettings) -> bool:
    from importlib.util import find_spec

    named = settings.gripper_output == "auto" and settings.gripper_action != ""
    if (named or settings.gripper_output == "action") and not spec.gripper_action:
        raise VolarError(
            f"gripper_output={settings.gripper_output} gripper_action={settings.gripper_action!r}: the usual driver of "
            f"{spec.name}'s gripper takes an angle of its knuckle, where goals here are the way of a finger; use "
            "gripper_output=topic, no gripper_action, and a node that turns the width [m] into the driver's goals"
        )
    installed = find_spec("control_msgs") is not None
    if settings.gripper_output == "action" and not installed:
        raise VolarError(
            "gripper_output=action needs control_msgs, which is not installed here; use gripper_output=topic"
        )
    return installed and spec.gripper_action != "" and settings.gripper_output != "topic"


def _numbers(values: Any) -> Float64MultiArray:
    return Float64MultiArray(data=array("d", values))
