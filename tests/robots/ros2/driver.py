"""For tests of the controller node: an arm that does exactly what it is told, and the node in a process of its own."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from volar.robots.body import JointCommand
from volar.robots.fr3 import FR3
from volar.robots.limit_margins import LimitMargins, MarginMeter
from volar.robots.real_time import Pacer
from volar.robots.ros2.messages import set_stamp

PERIOD_NS = 10_000_000
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
PIXELS = 16  # of the tests' artifact


class ExactArm:
    """An FR3 on its usual topics: at each period it is where its last command told it to be.

    Joints are named in another order than the robot's, and among strangers. `states`, `images`: what it publishes;
    `shape`: of its images. `speed`: what it says of the velocity of each joint, if anything [rad/s].
    `run` publishes at 100 Hz in a thread; without it, `period` does so once.
    """

    def __init__(
        self, client: Any, prefix: str = "", state_qos: Any = 10, compressed: bool = False, sim_time: bool = False
    ) -> None:
        self.client, node = client, client.node
        self._node, self._compressed = node, compressed
        self.sim_ns: int | None = 1_000_000_000 if sim_time else None
        self._states = node.create_publisher(JointState, f"{prefix}joint_states", state_qos)
        kind, end = (CompressedImage, "/compressed") if compressed else (Image, "")
        self._images = {
            name: node.create_publisher(kind, f"{prefix}{name}/image_raw{end}", qos_profile_sensor_data)
            for name in FR3.cameras
        }
        self._clock = node.create_publisher(Clock, "/clock", 10) if sim_time else None
        node.create_subscription(JointTrajectory, prefix + FR3.trajectory_topic, self._on_trajectory, 100)
        node.create_subscription(Float64MultiArray, f"{prefix}forward_position_controller/commands", self._on_q, 100)
        node.create_subscription(Float64MultiArray, f"{prefix}gripper_controller/commands", self._on_width, 100)
        self.states = self.images = True
        self.shape = (PIXELS, PIXELS)
        self.speed: float | None = None
        self.periods = 0
        self.commands: list[JointCommand] = []
        self.messages: list[Any] = []
        self.home()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def home(self) -> None:
        self.q, self.width_m = np.array(FR3.home), 0.02

    @property
    def moving(self) -> bool:
        return bool(self.commands) and float(np.abs(self.commands[-1].dq).max()) > 0.02

    def margins(self) -> LimitMargins:
        """Of every command since the last call; the first one starts from rest."""
        meter, (commands, self.commands) = MarginMeter(FR3, PERIOD_NS / 1e9), (self.commands, [])
        for command in commands:
            meter.add(command)
        return meter.result()

    def period(self) -> None:
        now = self._node.get_clock().now().to_msg()
        if self.sim_ns is not None:
            set_stamp(now, self.sim_ns)
        if self.states:
            self._states.publish(self._state(now))
        if self.images and self.periods % 4 == 0:
            for name, publisher in self._images.items():
                publisher.publish(self._image(name, now))
        self.periods += 1

    def tick_clock(self, by_ns: int = PERIOD_NS) -> None:
        """Simulated time goes on."""
        assert self._clock is not None
        assert self.sim_ns is not None
        self.sim_ns += by_ns
        message = Clock()
        set_stamp(message.clock, self.sim_ns)
        self._clock.publish(message)

    def run(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        pacer = Pacer(PERIOD_NS)
        pacer.start()
        while not self._stop.is_set():
            pacer.wait()
            self.period()

    def _state(self, stamp: Any) -> JointState:
        fingers = FR3.finger_positions(self.width_m)
        known = dict(zip((*FR3.joint_names, *FR3.gripper_joint_names), (*self.q, *fingers), strict=True))
        known |= {"somebody_elses_wheel": 77.0}
        names = sorted(known, reverse=True)
        message = JointState(name=names, position=array("d", [known[name] for name in names]))
        message.velocity = array("d", [] if self.speed is None else [self.speed] * len(names))
        message.header.stamp = stamp
        return message

    def picture(self, camera: str, number: int) -> Any:
        """Red counts, green names the camera."""
        image = np.zeros((*self.shape, 3), np.uint8)
        image[:, :, 0], image[:, :, 1] = number % 256, FR3.cameras.index(camera)
        return image

    def _image(self, camera: str, stamp: Any) -> Any:
        import cv2

        image = self.picture(camera, self.periods)
        if self._compressed:
            _, code = cv2.imencode(".png", image[:, :, ::-1])
            message = CompressedImage(format="png")
            message.data = code.tobytes()
        else:
            height, width = image.shape[:2]
            message = Image(height=height, width=width, encoding="bgr8", step=3 * width)
            message.data = image[:, :, ::-1].tobytes()
        message.header.stamp = stamp
        return message

    def _on_trajectory(self, message: Any) -> None:
        point = message.points[0]
        order = [list(message.joint_names).index(name) for name in FR3.joint_names]
        q, dq, ddq = (np.array(row)[order] for row in (point.positions, point.velocities, point.accelerations))
        self._take(message, JointCommand(q, dq, ddq, self.width_m))

    def _on_q(self, message: Any) -> None:
        q = np.array(message.data)
        self._take(message, JointCommand(q, np.zeros(7), np.zeros(7), self.width_m))

    def _take(self, message: Any, command: JointCommand) -> None:
        with self.client.changed:
            self.q = command.q
            self.commands.append(command)
            self.messages.append(message)
            self.client.changed.notify_all()

    def _on_width(self, message: Any) -> None:
        self.width_m = message.data[0]


class Controller:
    """The node in its own process. `said`: its state and reason; `status`: the newest on /diagnostics."""

    def __init__(
        self, client: Any, domain: int, *arguments: str, name: str = "volar_controller", **values: Any
    ) -> None:
        self._client, node = client, client.node
        self.said, self.status = "", DiagnosticArray()
        node.create_subscription(String, f"{name}/state", self._on_state, LATCHED)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.name, self.told = name, node.create_publisher(String, f"{name}/instruction", 10)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, lives as long as the process
        words = [w for key, value in values.items() if value != "" for w in ("-p", f"{key}:={value}")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "volar.robots.ros2.controller_node", "--ros-args", *words, *arguments],
            env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    @property
    def values(self) -> Mapping[str, str]:
        """What it says in /diagnostics."""
        return {item.key: item.value for status in self.status.status for item in status.values}

    def transition(self, name: str) -> bool:
        number = getattr(Transition, f"TRANSITION_{name.upper()}")
        request = ChangeState.Request(transition=Transition(id=number))
        return bool(self.call(ChangeState, "change_state", request).success)

    @property
    def lifecycle(self) -> str:
        return str(self.call(GetState, "get_state", GetState.Request()).current_state.label)

    def trigger(self, name: str, meanwhile: Any = lambda: None) -> Any:
        return self.call(Trigger, name, Trigger.Request(), meanwhile)

    def set_text(self, name: str, text: str | Path) -> Any:
        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=str(text))
        request = SetParameters.Request(parameters=[Parameter(name=name, value=value)])
        return self.call(SetParameters, "set_parameters", request).results[0]

    def call(self, kind: Any, service: str, request: Any, meanwhile: Any = lambda: None) -> Any:
        """The answer; fails, with what the process wrote, when none comes."""
        client = self._client.node.create_client(kind, f"{self.name}/{service}")
        try:
            self.until(client.service_is_ready, meanwhile)
            answer = client.call_async(request)
            self.until(answer.done, meanwhile)
            return answer.result()
        finally:
            self._client.node.destroy_client(client)

    def until(self, there: Any, meanwhile: Any = lambda: None) -> None:
        try:
            self._client.until(there, meanwhile)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said {self.said!r}, {dict(self.values)}:\n{self.log[-3000:]}") from None

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def _on_state(self, message: Any) -> None:
        with self._client.changed:
            self.said = message.data
            self._client.changed.notify_all()

    def _on_diagnostics(self, message: Any) -> None:
        with self._client.changed:
            self.status = message
            self._client.changed.notify_all()
