"""Both nodes in processes of their own, and a client in this one; on a DDS domain that nobody else is in."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CONTROLLER, ROBOT = "volar_controller", "volar_sim_robot"
PATIENCE_S = 90.0  # for what takes a few seconds on an idle machine: processes start, and are discovered


def private_domain() -> int:
    """One for each worker of a parallel run, and each run; up to 100, above which any program may have the ports."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return 1 + (os.getpid() + 37 * worker) % 100


class Graph:
    """`robot(...)` and `controller(...)` start a node; `until` lets messages come until something is true.

    `commands`: every trajectory that arrived, `robot_state`, `state`, `diagnostics`: the latest of each.
    """

    def __init__(self, log: Path) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from rclpy.signals import SignalHandlerOptions
        from std_msgs.msg import String
        from trajectory_msgs.msg import JointTrajectory

        self.environment = os.environ | {
            "ROS_DOMAIN_ID": str(private_domain()),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        }
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self._log = log
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=private_domain(), signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("test_client", context=self.context)
        self._executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self.commands: list[Any] = []
        self.state, self.robot_state = "", {}  # type: str, dict[str, Any]
        self.diagnostics: dict[str, str] = {}
        self.level = b"\0"
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        hear = self.node.create_subscription
        hear(JointTrajectory, "/joint_trajectory_controller/joint_trajectory", self.commands.append, 5000)
        hear(String, f"/{CONTROLLER}/state", self._on_state, latched)
        hear(String, f"/{ROBOT}/state", self._on_robot_state, latched)
        hear(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self._executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def robot(self, *settings: str) -> "subprocess.Popen[bytes]":
        """The twin, and its first joint states."""
        return self._start("volar.sim.ros2_robot", *settings)

    def controller(self, **parameters: object) -> "subprocess.Popen[bytes]":
        """The controller, until its services answer."""
        patient = {"joint_state_age_s": 1.0, "camera_age_s": 3.0}  # on a machine that does other things as well
        words = [word for name, value in (patient | parameters).items() for word in ("-p", f"{name}:={value}")]
        process = self._start("volar.robots.ros2.controller_node", "--ros-args", *words)
        self.until(lambda: self.lifecycle() != "")
        return process

    def _start(self, module: str, *arguments: str) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", module, *arguments]
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def spin(self, seconds: float = 0.05) -> None:
        """Lets messages come for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.02)

    def until(self, true: Callable[[], bool]) -> None:
        """Fails with what the nodes wrote where that does not become true."""
        end = time.monotonic() + PATIENCE_S
        while not true():
            self._executor.spin_once(timeout_sec=0.02)
            assert time.monotonic() < end, f"state {self.state}, {self.diagnostics}\n{self._log.read_text()[-2000:]}"

    def call(self, kind: Any, service: str, request: Any) -> Any:
        client = self.node.create_client(kind, service)
        self.until(client.service_is_ready)
        answer = client.call_async(request)
        self.until(answer.done)
        self.node.destroy_client(client)
        return answer.result()

    def trigger(self, service: str, node: str = CONTROLLER) -> tuple[bool, str]:
        from std_srvs.srv import Trigger

        answer = self.call(Trigger, f"/{node}/{service}", Trigger.Request())
        return answer.success, answer.message

    def change(self, transition: str) -> bool:
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        number = getattr(Transition, f"TRANSITION_{transition.upper()}")
        request = ChangeState.Request(transition=Transition(id=number))
        return bool(self.call(ChangeState, f"/{CONTROLLER}/change_state", request).success)

    def lifecycle(self) -> str:
        from lifecycle_msgs.srv import GetState

        client = self.node.create_client(GetState, f"/{CONTROLLER}/get_state")
        try:
            if not client.wait_for_service(timeout_sec=0.2):
                return ""
            answer = client.call_async(GetState.Request())
            self.spin(0.3)  # one that was killed may still seem to be there, and never answers
            return str(answer.result().current_state.label) if answer.done() else ""
        finally:
            self.node.destroy_client(client)

    def set_parameter(self, name: str, text: str) -> tuple[bool, str]:
        from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
        from rcl_interfaces.srv import SetParameters

        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=text)
        request = SetParameters.Request(parameters=[Parameter(name=name, value=value)])
        result = self.call(SetParameters, f"/{CONTROLLER}/set_parameters", request).results[0]
        return result.successful, result.reason

    def _on_state(self, message: Any) -> None:
        self.state = message.data

    def _on_robot_state(self, message: Any) -> None:
        self.robot_state = json.loads(message.data)

    def _on_diagnostics(self, message: Any) -> None:
        status = message.status[0]
        self.level, self.diagnostics = status.level, {pair.key: pair.value for pair in status.values}
