"""One simulated arm as a ROS 2 node, a control period at a time: state and images out, commands in, physics between."""

import json
import threading
from array import array
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import VolarError
from volar.sim.command_check import GAP_PERIODS, CommandCheck
from volar.sim.tasks.layout import NoLayout
from volar.sim.world import CONTROL_PERIOD_S, TaskWorld

if TYPE_CHECKING:
    from std_srvs.srv import Trigger

Vector = NDArray[np.float64]

NAME: Final = "volar_sim_robot"
PERIOD_NS: Final = round(CONTROL_PERIOD_S * 1e9)
JPEG_QUALITY: Final = 90
COMMAND_S: Final = 0.2  # how long the physics waits for a command; then the arm goes on as it was told
_SCENE: Final = "scene"
APART_NS: Final = 1_000_000_000  # between two scenes on the clock, which never goes back


class Twin:
    """The arm of `world` on its usual topics. A context manager: inside it, messages are taken.

    One period: `begin_period` publishes what is measured and the clock; commands come; `end_period` applies the newest
    and steps the physics. `received`: commands so far; `reflex_reason`: why the arm has stopped by itself, or "".
    Without `sim_time` it stamps with the machine's time, as a real arm does, and publishes no clock.
    """

    def __init__(
        self,
        world: TaskWorld,
        camera_hz: float = 25.0,
        compressed: bool = False,
        reflex: bool = True,
        sim_time: bool = True,
    ) -> None:
        from rclpy.node import Node

        self.world = world
        self.node = Node(NAME)
        self.received = 0
        self.reflex_reason = ""
        self.problems: dict[str, str] = {}  # topic, or the scene -> what is wrong with it, as ~/state says
        self.check = CommandCheck(world.spec, CONTROL_PERIOD_S)
        self.arrived = threading.Condition()
        self._reflex, self._compressed, self._sim_time = reflex, compressed, sim_time
        self._frame_every = round(1.0 / (camera_hz * CONTROL_PERIOD_S))
        self._base_ns, self._periods, self._silent, self._received_before = 0, 0, 0, 0
        self._newest: tuple[Vector, Vector, Vector] | None = None
        self._asked_seed: int | None = None
        self.last_q: Vector = np.array(world.spec.home)
        self.last_dq: Vector = np.zeros(world.spec.joints)
        self.last_ddq: Vector = np.zeros(world.spec.joints)
        self.width_m = world.spec.gripper_width_max
        self.restart()
        self._make_publishers()
        self._listen()

    @property
    def now_ns(self) -> int:
        """The time on `/clock` [ns]; it goes on over all scenes."""
        return self._base_ns + self._periods * PERIOD_NS

    def restart(self) -> None:
        """The world has been reset: the arm rests where it is."""
        self._base_ns, self._periods = self.now_ns + APART_NS, 0
        state = self.world.body.joint_state()
        with self.arrived:
            self.last_q, self.last_dq, self.width_m = state.q.copy(), np.zeros_like(state.q), state.gripper_width_m
            self.check.reset(state.q)
            self._newest, self.reflex_reason, self.received, self._silent = None, "", 0, 0

    def begin_period(self) -> None:
        """Publishes joint states, images when they are due, and then the clock."""
        if (seed := self._asked_seed) is not None:
            self._asked_seed = None
            try:
                self.world.reset(seed)
            except NoLayout as error:
                self.skip_scene(seed, error)
            else:
                self.restart()
        self._received_before = self.received
        stamp = self._stamp()
        self._publish_state(stamp)
        if self._periods % self._frame_every == 0:
            self._publish_images(stamp)
        if self._sim_time:
            self._clock.publish(self._clock_type(clock=stamp))

    def skip_scene(self, seed: int, error: VolarError) -> None:
        """That scene cannot be, or go on: ~/state says so, and the next seed's comes with the next period."""
        self._note_problem(_SCENE, f"{error}; seed {seed + 1} is next")
        if self._asked_seed is None:
            self._asked_seed = seed + 1

    def await_command(self, timeout_s: float = COMMAND_S) -> bool:
        """Simulated time can wait: until the command of this period has come. False where it has not."""
        with self.arrived:
            return self.arrived.wait_for(lambda: self.received > self._received_before, timeout_s)

    @property
    def commanded(self) -> bool:
        """True while commands come."""
        return self._silent < GAP_PERIODS and self.received > 0

    def end_period(self, physics: bool = True) -> None:
        """Applies the newest command, or the last one again, and steps by one period."""
        with self.arrived:
            newest, self._newest = self._newest, None
            self._silent = 0 if newest is not None else self._silent + 1
            if newest is not None:
                self.last_q, self.last_dq, self.last_ddq = newest
            elif self._silent == GAP_PERIODS:
                self.last_dq, self.last_ddq = np.zeros_like(self.last_dq), np.zeros_like(self.last_dq)
                self.check.rest()
        self._periods += 1
        if physics:
            self.world.body.drive(self.last_q, self.last_dq, self.width_m)
            self.world.advance(CONTROL_PERIOD_S)

    def __enter__(self) -> Self:
        from rclpy.executors import SingleThreadedExecutor

        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(timeout_sec=2.0)
        self._thread.join(timeout=2.0)
        self.node.destroy_node()

    # Out

    def _make_publishers(self) -> None:
        from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
        from std_msgs.msg import String

        make, latched = self.node.create_publisher, QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._image_type, self._compressed_type, self._state_type = Image, CompressedImage, JointState
        self._clock_type, self._string = Clock, String
        self._states = make(JointState, "joint_states", 10)  # reliable, as joint_state_broadcaster's
        if self._sim_time:
            self._clock = make(Clock, "/clock", 10)
        self._status = make(String, "~/state", latched)
        self._said = ""
        cameras = self.world.body.cameras
        self._images = {name: make(Image, f"{name}/image_raw", qos_profile_sensor_data) for name in cameras}
        self._infos = {name: make(CameraInfo, f"{name}/camera_info", qos_profile_sensor_data) for name in cameras}
        topics = {name: f"{name}/image_raw/compressed" for name in cameras} if self._compressed else {}
        self._jpegs = {name: make(CompressedImage, topic, qos_profile_sensor_data) for name, topic in topics.items()}

    def _stamp(self) -> Any:
        from builtin_interfaces.msg import Time

        if not self._sim_time:
            return self.node.get_clock().now().to_msg()
        return Time(sec=self.now_ns // 1_000_000_000, nanosec=self.now_ns % 1_000_000_000)

    def _publish_state(self, stamp: Any) -> None:
        spec, state = self.world.spec, self.world.body.joint_state()
        fingers = spec.finger_positions(state.gripper_width_m)
        message = self._state_type(name=[*spec.joint_names, *spec.gripper_joint_names])
        message.header.stamp = stamp
        message.position = array("d", np.concatenate([state.q, fingers]))
        message.velocity = array("d", np.concatenate([state.dq, np.zeros(len(fingers))]))
        self._states.publish(message)
        facts = {"task": self.world.task.name, "seed": self.world.seed, "instruction": self.world.instruction}
        said = json.dumps(
            {**facts, "success": bool(self.world.success()), "reflex": self.reflex_reason, "problems": self.problems}
        )
        if said != self._said:
            self._said = said
            self._status.publish(self._string(data=said))

    def _publish_images(self, stamp: Any) -> None:
        for name, image in self.world.body.images().items():
            height, width = image.shape[:2]
            message = self._image_type(height=height, width=width, encoding="rgb8", step=3 * width)
            message.header.stamp, message.header.frame_id = stamp, f"{name}_optical_frame"
            message.data = image.tobytes()  # bytes are taken as they are; an array would be copied number by number
            self._images[name].publish(message)
            self._infos[name].publish(self._camera_info(name, width, height, message.header))
            if name in self._jpegs:
                self._jpegs[name].publish(self._jpeg(image, message.header))

    def _camera_info(self, name: str, width: int, height: int, header: Any) -> Any:
        """A pinhole without distortion; the principal point in the middle of the image."""
        from sensor_msgs.msg import CameraInfo

        fovy = np.radians(float(self.world.model.camera(name).fovy[0]))
        f = height / 2 / np.tan(fovy / 2)  # [pixels]
        cx, cy = width / 2, height / 2
        info = CameraInfo(header=header, width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5)
        info.k = [f, 0.0, cx, 0.0, f, cy, 0.0, 0.0, 1.0]
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [f, 0.0, cx, 0.0, 0.0, f, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
        return info

    def _jpeg(self, image: NDArray[np.uint8], header: Any) -> Any:
        import cv2

        _, code = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        message = self._compressed_type(header=header, format="rgb8; jpeg compressed bgr8")
        message.data = code.tobytes()
        return message

    # In

    def _listen(self) -> None:
        from rclpy.event_handler import SubscriptionEventCallbacks
        from std_msgs.msg import Float64MultiArray
        from std_srvs.srv import Trigger
        from trajectory_msgs.msg import JointTrajectory

        def hear(kind: Any, topic: str, callback: Any, depth: int) -> None:
            def incompatible(event: Any) -> None:
                policy = event.last_policy_kind.name.lower()
                self._note_problem(topic, f"a publisher offers another {policy}: commands are reliable and volatile")

            events = SubscriptionEventCallbacks(incompatible_qos=incompatible)
            self.node.create_subscription(kind, topic, callback, depth, event_callbacks=events)

        spec = self.world.spec
        hear(JointTrajectory, spec.trajectory_topic, self._on_trajectory, 10)
        hear(Float64MultiArray, "forward_position_controller/commands", self._on_positions, 10)
        hear(Float64MultiArray, "gripper_controller/commands", self._on_gripper, 10)
        self.node.declare_parameter("seed", max(0, self.world.seed))
        self.node.add_on_set_parameters_callback(self._on_parameters)
        self.node.create_service(Trigger, "~/recover", self._on_recover)
        self.node.create_service(Trigger, "~/reset", self._on_reset)

    def _on_trajectory(self, message: Any) -> None:
        spec = self.world.spec
        if sorted(message.joint_names) != sorted(spec.joint_names) or not message.points:
            found = f"a trajectory of {len(message.points)} points for {list(message.joint_names)}"
            self._note_problem(spec.trajectory_topic, f"{found} is refused: this arm has {list(spec.joint_names)}")
            return
        order = [list(message.joint_names).index(name) for name in spec.joint_names]
        point = message.points[-1]
        given = (point.positions, point.velocities, point.accelerations)
        rows = [np.array(row)[order] if len(row) == spec.joints else None for row in given]
        self._take(np.full(spec.joints, np.nan) if rows[0] is None else rows[0], rows[1], rows[2])

    def _note_problem(self, topic: str, text: str) -> None:
        if self.problems.get(topic) != text:
            self.problems = {**self.problems, topic: text}
            self.node.get_logger().error(f"{topic}: {text}")

    def _on_positions(self, message: Any) -> None:
        self._take(np.array(message.data, np.float64))

    def _on_gripper(self, message: Any) -> None:
        if len(message.data) == 1 and np.isfinite(message.data[0]):
            self.width_m = float(np.clip(message.data[0], 0.0, self.world.spec.gripper_width_max))

    def _take(self, q: Vector, dq: Vector | None = None, ddq: Vector | None = None) -> None:
        with self.arrived:
            if not self.reflex_reason:
                reason = self.check.look(q) if q.shape == self.last_q.shape else f"{len(q)} positions"
                if reason is not None and self._reflex:
                    self.reflex_reason, self._newest = reason, None
                    self.last_dq, self.last_ddq = np.zeros_like(self.last_dq), np.zeros_like(self.last_dq)
                    self.node.get_logger().error(f"reflex: {reason}")
                elif q.shape == self.last_q.shape and np.isfinite(q).all():  # followed, though it be counted
                    before = self._newest[0] if self._newest is not None else self.last_q
                    dq = (q - before) / CONTROL_PERIOD_S if dq is None else dq
                    self._newest = q, dq, np.zeros_like(q) if ddq is None else ddq
            self.received += 1
            self.arrived.notify_all()

    def _on_recover(self, _: "Trigger.Request", response: "Trigger.Response") -> "Trigger.Response":
        with self.arrived:
            self.last_q = self.world.body.joint_state().q.copy()
            self.check.reset(self.last_q)
            response.success, response.message = True, self.reflex_reason
            self.reflex_reason = ""
        return response

    def _on_reset(self, _: "Trigger.Request", response: "Trigger.Response") -> "Trigger.Response":
        self._asked_seed = self.world.seed + 1
        response.success, response.message = True, f"seed {self._asked_seed} at the next period"
        return response

    def _on_parameters(self, changed: list[Any]) -> Any:
        """`seed`: that scene, at the next period."""
        from rcl_interfaces.msg import SetParametersResult

        for parameter in changed:
            if parameter.name == "seed" and int(parameter.value) < 0:
                return SetParametersResult(successful=False, reason=f"seed {parameter.value} must be at least 0")
            if parameter.name == "seed":
                self._asked_seed = int(parameter.value)
        return SetParametersResult(successful=True)
