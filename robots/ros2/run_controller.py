"""The controller node in this process, for `volar-control robot=ros2/...`: started, watched, brought to rest."""

import signal
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Final

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from volar.robots.body import JointCommand
from volar.robots.control_loop import TickReport
from volar.robots.errors import UsageError, VolarError
from volar.robots.limit_margins import LimitMargins, limit_use
from volar.robots.loop_state import HOLDING, RUNNING
from volar.robots.ros2.control_thread import ControlThread
from volar.robots.ros2.controller_node import SUCCESS, ControllerNode
from volar.robots.ros2.parameters import given, refuse_unknown
from volar.robots.ros2.spinning import Spinning

LOOK_S: Final = 0.05  # between looks at what the loop has done; it does not wait for them


@dataclass
class RobotRun:
    """What was measured of one run.

    `ticks_ns`: when ticks began, on the loop's clock. `chunk_s`: from an observation's stamp until its chunk was there.
    `inference_s`: in the policy's process. `real_time`: the loop went before every ordinary thread.
    """

    contract_sha256: str
    ticks_ns: list[int] = field(default_factory=list)
    chunk_s: list[float] = field(default_factory=list)
    inference_s: list[float] = field(default_factory=list)
    holds: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    margins: LimitMargins = field(default_factory=LimitMargins)
    policy_restarts: int = 0
    real_time: bool = False

    @property
    def duration_s(self) -> float:
        return (self.ticks_ns[-1] - self.ticks_ns[0]) / 1e9 if self.ticks_ns else 0.0


def run_controller(
    parameters: Mapping[str, Any], ros_arguments: Sequence[str] = (), duration_s: float | None = None
) -> RobotRun:
    """Configures and activates the node, and brings the arm to rest after `duration_s` of commands, SIGINT or SIGTERM.

    Prints its state whenever that changes. Raises `UsageError` for parameters that do not exist or fit, `VolarError`
    with the node's reason where it refuses to start, sends nothing, or its loop or policy fails.
    """
    refuse_unknown(ros_arguments)
    for name, value in given(ros_arguments).items():
        if name in parameters:  # it would lose, in silence
            raise UsageError(f"-p {name}:={value} is a setting here, {name}={parameters[name]}: give {name}={value}")
    reports: SimpleQueue[TickReport] = SimpleQueue()
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    rclpy.init(args=["volar-control", *ros_arguments], signal_handler_options=SignalHandlerOptions.NO)
    try:
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        try:
            node = ControllerNode(reports.put, parameter_overrides=overrides)
        except ParameterException as error:
            raise UsageError(" ".join(str(error).split())) from error
        with Spinning(node) as spinning:
            try:
                if node.trigger_configure() != SUCCESS or node.trigger_activate() != SUCCESS:
                    raise VolarError(node.failure)
                assert node.thread is not None
                watch = _Watch(node.thread, reports)
                while not (stop.wait(LOOK_S) or watch.over(duration_s) or node.thread is None):
                    watch.look()
            finally:
                spinning.stop_orders()
                node.leave()
        watch.look()
        node.inputs.destroy_node()
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)
    return watch.result()


class _Watch:
    """Adds up what the loop's thread reports, and prints what changes, in the main thread."""

    def __init__(self, thread: ControlThread, reports: "SimpleQueue[TickReport]") -> None:
        self._thread, self._reports = thread, reports
        self._run = RobotRun(thread.source.contract.sha256)
        spec = thread.body.spec
        self._before: JointCommand | None = None
        self._spec, self._said, self._waited = spec, "", ", ".join(thread.waits_for)
        self._failure: str | None = None

    def over(self, duration_s: float | None) -> bool:
        """It has lasted long enough, or cannot go on."""
        self._failure = self._thread.source.failure
        lasted = duration_s is not None and self._run.duration_s >= duration_s
        return lasted or bool(self._thread.error) or self._failure is not None

    def look(self) -> None:
        thread, run = self._thread, self._run
        run.policy_restarts = thread.source.restarts
        while True:
            try:
                self._add(self._reports.get_nowait())
            except Empty:
                break
        run.real_time |= thread.real_time
        if run.ticks_ns:
            state = thread.loop.mode.state
            if state != HOLDING:  # which comes and goes between chunks, and is counted
                self._say(f"{state}: {thread.reason}" if thread.reason and state != RUNNING else state)
        elif thread.alive:  # once it was left, what had come grows old
            waits_for = thread.waits_for
            self._waited = ", ".join(waits_for)
            kinds = ", ".join(item.partition(": ")[0] for item in waits_for)  # the speed of a moving arm is no news
            self._say(f"waits for {self._waited or 'the first tick'}", f"waits for {kinds}")

    def result(self) -> RobotRun:
        """Raises `VolarError` where nothing was sent, or it ended by a failure."""
        if self._thread.error:
            raise VolarError(f"the control loop ended: {self._thread.error}")
        if self._failure is not None:
            raise VolarError(f"the policy failed: {self._failure}")
        if not self._run.ticks_ns:
            waited = self._waited or "the first tick"
            raise VolarError(f"nothing was sent: the node waited for {waited}; does the robot's driver run?")
        return self._run

    def _add(self, report: TickReport) -> None:
        run = self._run
        run.ticks_ns.append(report.stamp_ns)
        run.holds.update([report.reason] if report.reason else [])
        run.refused.update([report.refused] if report.refused else [])
        if report.chunk is not None:
            run.chunk_s.append((report.stamp_ns - report.chunk.stamp_ns) / 1e9)
            if (predict_s := self._thread.source.predict_s) is not None:
                run.inference_s.append(predict_s)
        use = limit_use(self._spec, report.command, self._before, self._thread.loop.period_s)
        run.margins = run.margins.worst(LimitMargins(**{name: 1.0 - share for name, share in use.items()}))
        self._before = report.command

    def _say(self, text: str, about: str | None = None) -> None:
        """Once, until something else is said; `about`: what makes it something else, by default the text."""
        if (about or text) != self._said:
            self._said = about or text
            print(text, flush=True)
