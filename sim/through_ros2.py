"""Episodes through the controller node and the twin, over DDS: what evaluation measures where a robot would be.

The twin is in this process, the controller in its own. Time is the simulation's, paced by the wall clock: each period
is published, the physics waits for the controller's command and no less than a period, so that a policy is as slow here
as it is on a robot. See docs/decisions/0012-evaluation-through-two-nodes.md.
"""

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from volar.robots.body import JointCommand
from volar.robots.errors import VolarError
from volar.robots.policies import read_contract
from volar.robots.real_time import Pacer
from volar.sim.closed_loop import ClosedLoop, NothingRuns, RunningEpisode
from volar.sim.conditions import told
from volar.sim.ros2_twin import COMMAND_S, PERIOD_NS, Twin

BRAKING_S: Final = 0.05  # how long the physics waits for the commands of a controller that is told to stop
READY_S: Final = 30.0  # for the controller to be found and to answer
STARVED: Final = "no_command"
CONTROLLER: Final = "volar_controller"
# The node, which gets SIGTERM when the process that started it is gone, however it ended (PR_SET_PDEATHSIG, Linux).
_RUN: Final = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
from volar.robots.ros2.controller_node import main
raise SystemExit(main())
"""


class Ros2ClosedLoop(ClosedLoop):
    """As `ClosedLoop`, for a policy that a controller node runs. `run` raises `NothingRuns` where the nodes do not
    start; where the controller ends later, that costs one episode, and the next one starts new nodes."""

    def __init__(
        self,
        policy: Path,
        task: str,
        robot: str = "fr3",
        randomization: str = "none",
        max_steps: int | None = None,
        world_seed: int = 0,
    ) -> None:
        self._prepare(read_contract(policy), task, robot, randomization, max_steps, world_seed)
        self._policy, self._robot = policy, robot
        self._controller: ControllerProcess | None = None
        self._twin: Twin | None = None
        self._pacer = Pacer(PERIOD_NS)

    def _start(self, seed: int, condition: str, draws: Mapping[str, Any] | None) -> str:
        twin, controller = self._nodes()
        self._advance_until(controller.transition("deactivate") if controller.active else None)
        self.world.reset(seed, draws)
        twin.restart()
        instruction = told(self.world, condition)
        self._advance_until(controller.instruct(instruction), physics=False)
        self._advance_until(controller.transition("activate"), physics=False)
        deadline_s = time.monotonic() + READY_S
        while twin.received == 0:  # the scene waits for its first command
            if time.monotonic() > deadline_s:
                raise self._lost(f"sent no command within {READY_S:g} s: {controller.said}")
            self._period(physics=False)
        return instruction

    def _tick(self, episode: RunningEpisode) -> None:
        assert self._twin is not None
        assert self._controller is not None
        twin = self._twin
        self._pacer.wait()
        twin.begin_period()
        stopped = self._controller.said.startswith("stopped")  # then commands may have ceased
        came = twin.await_command(0.0 if stopped else COMMAND_S) or stopped
        if not came and not self._controller.alive:
            raise self._lost(f"ended: {self._controller.error}")
        reason = STARVED if not came else f"reflex: {twin.reflex_reason}" if twin.reflex_reason else None
        twin.end_period()
        command = JointCommand(twin.last_q, twin.last_dq, twin.last_ddq, twin.width_m)
        episode.command(command, reason or self._controller.reason, None)
        self.trace.state(self.world.data)

    def close(self) -> None:
        """Ends the controller's process and frees the renderer."""
        self._end_nodes()
        super().close()

    def _end_nodes(self) -> None:
        controller, twin = self._controller, self._twin
        self._controller = self._twin = None
        if controller is not None:
            controller.close()
        if twin is not None:
            import rclpy

            twin.__exit__(None, None, None)
            rclpy.try_shutdown()

    def _lost(self, how: str) -> VolarError:
        """The error to raise, after which the next episode starts new nodes."""
        self._end_nodes()
        return VolarError(f"the controller {how}")

    def _nodes(self) -> "tuple[Twin, ControllerProcess]":
        """Those that run, or new ones. Raises `NothingRuns`."""
        if self._controller is not None and not self._controller.alive:
            self._end_nodes()
        if self._twin is None or self._controller is None:
            try:
                return self._new_nodes()
            except Exception as error:  # no episode's fault
                self._end_nodes()
                raise NothingRuns(f"through=ros2: the nodes do not start: {error}") from error
        return self._twin, self._controller

    def _new_nodes(self) -> "tuple[Twin, ControllerProcess]":
        domain = _private_domain()
        _init_ros(domain)
        self._twin = Twin(self.world, camera_hz=25.0)
        self._twin.__enter__()
        self._pacer.start()
        self._controller = ControllerProcess(self._twin.node, self._policy, self._robot, domain)
        self._advance_until(self._controller.found(), physics=False)
        self._advance_until(self._controller.transition("configure"), physics=False)
        return self._twin, self._controller

    def _period(self, physics: bool) -> None:
        assert self._twin is not None
        self._pacer.wait()
        self._twin.begin_period()
        if physics:  # the arm brakes: it gets every command of that, too, or it would seem to jump
            self._twin.await_command(BRAKING_S)
        self._twin.end_period(physics)

    def _advance_until(self, done: Callable[[], bool] | None, physics: bool = True) -> None:
        """Lets time pass until the controller has answered. Raises `VolarError` where it does not."""
        assert self._controller is not None
        deadline_s = time.monotonic() + READY_S
        while done is not None and not done():
            if not self._controller.alive:
                raise self._lost(f"ended: {self._controller.error}")
            if time.monotonic() > deadline_s:
                raise self._lost(f"did not answer within {READY_S:g} s: {self._controller.said}")
            self._period(physics)


class ControllerProcess:
    """The controller node in a process of its own, and its services. `said`: its latest state; `active`: it ticks."""

    def __init__(self, node: Any, policy: Path, robot: str, domain: int) -> None:
        from lifecycle_msgs.srv import ChangeState
        from rcl_interfaces.srv import SetParameters
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from std_msgs.msg import String

        self.said, self.active = "nothing", False
        robot, _, asset = robot.partition("+")
        values = {"policy": policy, "robot": robot, "asset": asset, "use_sim_time": "true", "instruction": "wait"}
        values["gripper_output"] = "topic"  # the twin has no action
        arguments = [word for key, value in values.items() if value for word in ("-p", f"{key}:={value}")]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUN, "--ros-args", *arguments],
            env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
        )
        self._change = node.create_client(ChangeState, f"{CONTROLLER}/change_state")
        self._set = node.create_client(SetParameters, f"{CONTROLLER}/set_parameters")
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(String, f"{CONTROLLER}/state", self._on_state, latched)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def error(self) -> str:
        """The last lines that it wrote."""
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-3:]) or "without a word"

    @property
    def reason(self) -> str | None:
        """Why it does not follow the policy now, None while it does."""
        return self.said.partition(": ")[2] or None

    def found(self) -> Callable[[], bool]:
        return lambda: self._change.service_is_ready() and self._set.service_is_ready()

    def transition(self, name: str) -> Callable[[], bool]:
        """Asks for it; the answer says when it is done. Raises `VolarError` when it is refused."""
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        number = getattr(Transition, f"TRANSITION_{name.upper()}")
        answer = self._change.call_async(ChangeState.Request(transition=Transition(id=number)))

        def done() -> bool:
            if not answer.done():
                return False
            if not answer.result().success:
                raise VolarError(f"the controller refuses to {name}: {self.error}")
            self.active = name == "activate"
            return True

        return done

    def instruct(self, text: str) -> Callable[[], bool]:
        """Sets the parameter `instruction`."""
        from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
        from rcl_interfaces.srv import SetParameters

        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=text)
        request = SetParameters.Request(parameters=[Parameter(name="instruction", value=value)])
        answer = self._set.call_async(request)
        return lambda: bool(answer.done())

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _on_state(self, message: Any) -> None:
        self.said = message.data


def _private_domain() -> int:
    """A DDS domain that no other program on this machine is likely to be in: 1 to 100."""
    return 1 + secrets.randbelow(100)


def require_ros2() -> None:
    """Raises `VolarError` naming the extra where rclpy is missing."""
    try:
        import rclpy  # noqa: F401
    except ImportError as error:
        raise VolarError("through=ros2 needs ROS 2, which is not installed here: pip install 'volar[ros2]'") from error


def _init_ros(domain: int) -> None:
    require_ros2()
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    rclpy.init(domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
