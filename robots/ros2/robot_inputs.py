"""The subscriptions of one robot, heard by a node and a thread of their own: no service can make its sensors stale."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState

from volar.robots.ros2 import messages, parameters
from volar.robots.ros2.clocks import LoopClock, SimulatedClock
from volar.robots.ros2.parameters import NodeSettings
from volar.robots.ros2.ros2_body import Ros2Body

if TYPE_CHECKING:
    from rclpy.lifecycle import LifecycleNode

INPUTS: Final = "_volar_controller_inputs"  # the leading underscore hides it from `ros2 node list`
# What asks for best effort gets the messages of reliable publishers too, and never waits for one that was lost; of
# joint states only the newest matters.
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def node_for(controller: "LifecycleNode") -> Node:
    """The node that hears. The command line's remappings are the controller's: its name is not to be given twice."""
    return Node(
        INPUTS,
        context=controller.context,
        namespace=controller.get_namespace(),
        use_global_arguments=False,
        start_parameter_services=False,
        enable_rosout=False,
    )


class RobotInputs:
    """Feeds `body` and `clock` from the topics of `controller`'s settings until `close`; callbacks run in `node`.

    `cameras`: name -> (width, height) of the policy.
    """

    def __init__(
        self,
        controller: "LifecycleNode",
        node: Node,
        settings: NodeSettings,
        body: Ros2Body,
        clock: LoopClock,
        cameras: Mapping[str, tuple[int, int]],
    ) -> None:
        self._controller, self._node, self._body, self._clock = controller, node, body, clock
        self._subscriptions: list[Any] = []
        self._hear(JointState, settings.joint_states_topic, self._on_joint_state, NEWEST)
        if isinstance(clock, SimulatedClock):
            self._hear(Clock, "/clock", lambda message: clock.advance(messages.stamp_ns(message.clock)), NEWEST)
        kind: Any = CompressedImage if settings.image_transport == "compressed" else Image
        for name, size in cameras.items():
            topic = parameters.camera_topic(controller, name, settings.image_transport)
            self._hear(kind, topic, self._on_image(name, *size), qos_profile_sensor_data)

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _hear(self, kind: Any, topic: str, callback: Callable[[Any], None], qos: QoSProfile) -> None:
        resolved = self._controller.resolve_topic_name(topic)
        self._subscriptions.append(self._node.create_subscription(kind, resolved, callback, qos))

    def _stamp_ns(self, header: Any) -> int:
        return self._clock.stamp_ns(messages.stamp_ns(header.stamp), self._controller.get_clock().now().nanoseconds)

    def _on_joint_state(self, message: JointState) -> None:
        self._body.on_joint_state(message.name, message.position, message.velocity, self._stamp_ns(message.header))

    def _on_image(self, camera: str, width: int, height: int) -> Callable[[Any], None]:
        def on_image(message: Any) -> None:
            try:
                compressed = isinstance(message, CompressedImage)
                image = messages.decode_compressed(message) if compressed else messages.decode_image(message)
                fitting = messages.fit(image, width, height, camera)
            except messages.ImageMisfit as error:
                if self._body.problems.get(camera) != str(error):
                    self._controller.get_logger().error(str(error))
                self._body.problems[camera] = str(error)
                return
            self._body.on_image(camera, fitting, self._stamp_ns(message.header))

        return on_image
