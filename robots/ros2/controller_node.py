"""The controller as a ROS 2 lifecycle node: an exported policy moves an arm through its usual topics.

    ros2 run volar_ros2 controller --ros-args -p policy:=runs/artifact -p robot:=fr3 -p instruction:="lift the block"
    python -m volar.robots.ros2.controller_node --ros-args -p policy:=runs/artifact -p autostart:=true

    configure    loads the policy in a process of its own, verifies it, compares its contract with the robot
    activate     commands follow as soon as a joint state and an image of each camera have come
    deactivate   brakes within the limits, and sends nothing once the arm rests
    ~/pause, ~/resume, ~/stop, ~/recover (std_srvs/Trigger): answered by the next tick, with why it was denied; while
                 the node still waits, the first tick carries out ~/pause and ~/stop
    ~/instruction (std_msgs/String) and the parameter `instruction`: what to do from now on

Four threads: orders, sensors, the control loop, the recorder. The policy computes in another process.
See docs/decisions/0011-the-loop-ticks-beside-the-executor.md.
"""

import functools
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.exceptions import ParameterException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String
from std_srvs.srv import Trigger

from volar.robots.contract import require
from volar.robots.control_loop import ControlLoop, TickReport
from volar.robots.errors import UsageError, VolarError
from volar.robots.kinematics import Arm
from volar.robots.policy_source import PolicySource, open_source
from volar.robots.ros2 import diagnostics, parameters, robot_inputs
from volar.robots.ros2.clocks import LoopClock, SimulatedClock, WallClock
from volar.robots.ros2.command_output import CommandOutput
from volar.robots.ros2.control_thread import NOT_ACTIVE, ControlThread
from volar.robots.ros2.recording import Recorder
from volar.robots.ros2.robot_inputs import RobotInputs
from volar.robots.ros2.ros2_body import Ros2Body
from volar.robots.ros2.spinning import Spinning
from volar.robots.spec import load_robot, robot_name

NAME: Final = "volar_controller"
DIAGNOSTICS_S: Final = 1.0
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def _said(transition: Callable[..., TransitionCallbackReturn]) -> Callable[..., TransitionCallbackReturn]:
    """rclpy turns an exception of a transition into ERROR without a word; here it is logged first."""

    @functools.wraps(transition)
    def transit(self: "ControllerNode", state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self.get_logger().error(traceback.format_exc())
            self.failure = f"{transition.__name__}: {type(error).__name__}: {error}"
            raise
        finally:
            self._changed.trigger()  # once the state has changed, which is after this

    return transit


class ControllerNode(LifecycleNode):
    """See the module. `on_tick`: for each report of the loop, called in its thread.

    `thread`: the control loop's, None while the node is not active. `failure`: why the last transition was refused.
    `finished`: set when it has been shut down, by whomever.
    """

    def __init__(self, on_tick: Callable[[TickReport], None] | None = None, **options: Any) -> None:
        super().__init__(NAME, **options)
        self.inputs = robot_inputs.node_for(self)
        parameters.declare(self)
        self.thread: ControlThread | None = None
        self._on_tick = on_tick
        self._source: PolicySource | None = None
        self._loop: ControlLoop | None = None
        self._body: Ros2Body | None = None
        self._clock_of_loop: LoopClock | None = None
        self._output: CommandOutput | None = None
        self._inputs_of_robot: RobotInputs | None = None
        self._settings = parameters.NodeSettings()
        self._instruction = ""
        self._policy_error: str | None = None
        self._problems: dict[str, str] = {}  # the body's
        self.failure = ""
        self.finished = threading.Event()
        self._state = self.create_publisher(String, "~/state", LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._changed = self.create_guard_condition(self._report)
        # On a clock of its own: where `/clock` does not run, somebody has to say so.
        self.create_timer(DIAGNOSTICS_S, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.create_subscription(String, "~/instruction", self._on_instruction, 10)
        for name in ("pause", "resume", "stop", "recover"):
            self.create_service(Trigger, f"~/{name}", self._service(name))
        self.add_on_set_parameters_callback(self._on_parameters)

    # Lifecycle

    @_said
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self._configure()
        except (VolarError, ValueError, OSError, ImportError) as error:
            self._refuse(str(error))
            self._release()
            return FAILURE
        self.get_logger().info(f"configured: {self._settings.policy} moves {self._settings.robot}")
        return super().on_configure(state)

    @_said
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self._loop is not None
        assert self._body is not None
        assert self._source is not None
        assert self._clock_of_loop is not None
        recorder, clock = None, self._clock_of_loop
        if (record := str(self.get_parameter("record").value)) != "":
            try:
                contract, period_s = self._source.contract, self._loop.period_s
                epoch_ns = self.get_clock().now().nanoseconds - clock.now_ns() if isinstance(clock, WallClock) else 0
                recorder = Recorder(Path(record), self._body.spec, contract, period_s, epoch_ns)
            except VolarError as error:
                self._refuse(str(error))
                return FAILURE
        result = super().on_activate(state)
        self._body.forget()
        self._source.reset()  # nothing of a motion before, where a policy remembers any
        output = self._output
        assert output is not None
        self.thread = ControlThread(
            self._loop,
            self._body,
            self._source,
            clock,
            self._changed.trigger,
            recorder,
            self._on_tick,
            lambda: output.waits_for,
        )
        self.thread.start()
        return result

    @_said
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._brake()
        return super().on_deactivate(state)

    @_said
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return super().on_cleanup(state)

    @_said
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._brake()
        self._release()
        self.finished.set()
        return super().on_shutdown(state)

    @_said
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._brake()
        self._release()
        return super().on_error(state)

    def _configure(self) -> None:
        self._settings = settings = parameters.read(self)
        settings.require_policy()
        spec = load_robot(robot_name(settings.robot, settings.asset or None))
        period_ns = round(1e9 / settings.rate_hz)
        simulated = bool(self.get_parameter("use_sim_time").value)
        self._clock_of_loop = clock = SimulatedClock(period_ns) if simulated else WallClock(period_ns)
        self._source = source = open_source(settings.policy)
        require(source.contract, spec)
        self._problems = {}
        self._output = CommandOutput(self, spec, settings, self._note_problem)
        cameras = {camera.name: (camera.width, camera.height) for camera in source.contract.cameras}
        self._body = Ros2Body(spec, cameras, self._output.send, settings.camera_sync_s, settings.joint_state_age_s)
        self._body.problems = self._problems  # a subscriber may have been found wanting before there was a body
        self._loop = ControlLoop.for_policy(
            self._body,
            Arm(spec),
            source.contract,
            source,
            period_s=1.0 / settings.rate_hz,
            blend_s=settings.blend_s,
            limits=settings.limits,
        )
        self._instruction = self._instruction or settings.instruction
        self._loop.set_instruction(self._instruction)
        self._inputs_of_robot = RobotInputs(self, self.inputs, settings, self._body, clock, cameras)
        for wrong in parameters.unread(self):
            self.get_logger().warning(wrong)

    def _brake(self) -> None:
        if self.thread is not None and not self.thread.leave():
            self.get_logger().error("the arm did not come to rest within 10 s; its driver's own watchdog must stop it")
        if self.thread is not None and self._output is not None:
            self._output.flush()
        self.thread = None
        self._changed.trigger()

    def _release(self) -> None:
        if self._inputs_of_robot is not None:
            self._inputs_of_robot.close()
        if self._output is not None:
            self._output.close()
        if self._source is not None:
            self._source.close()
        self._inputs_of_robot, self._output = None, None
        self._source, self._loop, self._body = None, None, None

    def _note_problem(self, topic: str, text: str) -> None:
        if text and self._problems.get(topic) != text:
            self.get_logger().warning(f"{topic}: {text}")
        self._problems[topic] = text

    def _refuse(self, reason: str) -> None:
        self.failure = " ".join(reason.split())
        self.get_logger().error(self.failure)

    def leave(self) -> None:
        """Brakes and shuts down, from whatever state. Call it where no executor carries out orders."""
        if self._state_machine.current_state[1] in ("unconfigured", "inactive", "active"):
            self.trigger_shutdown()

    # Orders

    def _on_instruction(self, message: String) -> None:
        if message.data.strip():
            self._instruct(message.data.strip())
        else:
            self.get_logger().warning("an empty instruction is not followed; ~/stop stops the arm")

    def _instruct(self, text: str) -> None:
        self._instruction = text
        if self._loop is not None:
            self._loop.set_instruction(text)

    def _on_parameters(self, changed: list[Parameter[Any]]) -> SetParametersResult:
        for parameter in changed:
            if parameter.name == "instruction":
                if not str(parameter.value).strip():
                    return SetParametersResult(successful=False, reason="the instruction is empty")
                self._instruct(str(parameter.value).strip())
            elif self._loop is not None and parameter.name != "record" and self.has_parameter(parameter.name):
                reason = f"{parameter.name} is read when the node is configured: clean it up first"
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _service(self, name: str) -> Callable[[Trigger.Request, Trigger.Response], Trigger.Response]:
        def serve(_: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            thread = self.thread
            response.success, response.message = (False, NOT_ACTIVE) if thread is None else thread.order(name)
            return response

        return serve

    # What it says about itself

    def _report(self) -> None:
        try:
            thread, lifecycle = self.thread, self._state_machine.current_state[1]
            state = thread.loop.mode.state if thread is not None and thread.started else lifecycle
            reason = thread.reason if thread is not None else None
            self._state.publish(String(data=f"{state}: {reason}" if reason else state))
            message = diagnostics.report(self.get_fully_qualified_name(), lifecycle, thread, self._body)
            message.header.stamp = self.get_clock().now().to_msg()
            self._diagnostics.publish(message)
            before, self._policy_error = self._policy_error, None if self._source is None else self._source.error
            if self._policy_error not in (None, before):
                self.get_logger().warning(f"the policy gave no chunk: {self._policy_error}")
        except rclpy.exceptions.InvalidHandle:  # the node is being taken down
            return


def main(arguments: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM, at which the arm brakes first."""
    words = arguments if arguments is not None else sys.argv
    rclpy.init(args=words, signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        parameters.refuse_unknown(words, likeness=parameters.MISTYPED)
        node = ControllerNode()
    except (ParameterException, UsageError) as error:
        print(f"{NAME}: {' '.join(str(error).split())}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    code = 0
    with Spinning(node) as spinning:
        if node.get_parameter("autostart").value:
            code = 0 if node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS else 1
            if code:
                print(f"{NAME}: {node.failure}", file=sys.stderr)
        while code == 0 and not node.finished.is_set() and not stop.wait(0.1):
            pass
        spinning.stop_orders()
        node.leave()
    node.inputs.destroy_node()
    node.destroy_node()
    rclpy.try_shutdown()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
