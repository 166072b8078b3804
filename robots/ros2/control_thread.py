"""The thread that ticks the control loop: apart from the executor, so that no callback can delay a command."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from queue import Empty, SimpleQueue
from typing import Final

from volar.robots.control_loop import ControlLoop, TickReport
from volar.robots.loop_state import STOPPED
from volar.robots.policy_source import PolicySource
from volar.robots.real_time import real_time_scheduling, without_garbage_collection
from volar.robots.rolling_percentile import RollingPercentile
from volar.robots.ros2.clocks import LoopClock
from volar.robots.ros2.recording import Recorder
from volar.robots.ros2.ros2_body import NotReady, Ros2Body
from volar.robots.watchdogs import CannotStart, require_start

# Longest time that another thread keeps the interpreter when this one wants to tick; Python's default is 5 ms.
SWITCH_S: Final = 0.0005
WAIT_S: Final = 0.02  # between looks for a joint state to start from, and images
PERIODS: Final = 1000  # in the rolling percentile of period errors
ANSWER_S: Final = 2.0  # for a tick to answer an order; a tick comes every 10 ms
NOT_ACTIVE: Final = "not moving: activate the node first"
RESTING: Final = {"pause": "paused", "stop": "stopped"}  # orders that move nothing, so they wait for their tick


class ControlThread:
    """Runs from `start` to `leave`. `changed` is called when its state has: from its thread, so it must be quick.

    `started`: everything it waited for has come, and it ticks. `reason`: why the arm brakes or rests, None while it
    follows the policy. `error`: what ended it by itself, an empty string otherwise. `on_tick`: for each report.
    `listeners`: who must hear the first command and does not yet. `ceased`: the loop ticks and sends no commands.
    `last_error`: the latest thing that a tick survived: what a camera, the body or the policy raised.
    """

    def __init__(
        self,
        loop: ControlLoop,
        body: Ros2Body,
        source: PolicySource,
        clock: LoopClock,
        changed: Callable[[], None],
        recorder: Recorder | None = None,
        on_tick: Callable[[TickReport], None] | None = None,
        listeners: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        self.loop, self.body, self.source, self.clock, self.recorder = loop, body, source, clock, recorder
        self.started = self.real_time = self.ceased = False
        self.error = self.last_error = ""
        self.reason: str | None = None
        self.last_refused: str | None = None
        self.ticks = 0
        self.period_error_s = RollingPercentile(PERIODS)
        self._changed, self._on_tick, self._listeners = changed, on_tick, listeners
        self._leaving = threading.Event()
        self._requests: SimpleQueue[tuple[Callable[[], None], Future[str | None]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="volar-control", daemon=True)
        self._last_s = 0.0

    def start(self) -> None:
        sys.setswitchinterval(SWITCH_S)
        self._thread.start()

    def leave(self, timeout_s: float = 10.0) -> bool:
        """Brakes within the limits, and ends at rest. Returns False where that took longer than `timeout_s`."""
        self._leaving.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """It waits, or ticks."""
        return self._thread.is_alive()

    def order(self, name: str) -> tuple[bool, str]:
        """Calls a method of the loop before its next tick: whether that granted it, and its state then or why not.

        Before the first tick, `pause` and `stop` are kept for it. Others that no tick answers in time are withdrawn.
        """
        if self.error or not self.alive:
            return False, NOT_ACTIVE
        waits = not self.started
        if waits and name not in RESTING:
            return False, f"not moving yet: it waits for {', '.join(self.waits_for) or 'the first tick'}"
        answer: Future[str | None] = Future()
        self._requests.put((getattr(self.loop, name), answer))
        if waits:
            return True, f"will be {RESTING[name]} at the first tick"
        try:
            denied = answer.result(ANSWER_S)
        except NoAnswer:
            withdrawn = name not in RESTING and answer.cancel()
            then = "it is withdrawn" if withdrawn else "it holds from the next one"
            return False, f"no tick within {ANSWER_S:g} s: does the clock run? {name}: {then}"
        return denied is None, denied or self.loop.mode.state

    @property
    def waits_for(self) -> tuple[str, ...]:
        """What must come before the first tick: an arm that was told nothing does not move."""
        told = () if self.loop.instruction else ("an instruction",)
        return (*self.clock.waits_for, *self.body.waits_for, *self._waits_for_rest(), *self._listeners(), *told)

    def _waits_for_rest(self) -> tuple[str, ...]:
        """Why the loop cannot start from the newest joint state, where there is one."""
        age_s = self.loop.limits.joint_state_age_s
        try:
            state = self.body.joint_state()
            if self.clock.now_ns() - state.stamp_ns > age_s * 1e9:
                return (f"a joint state newer than {age_s:g} s",)
            require_start(state, self.body.spec)
        except NotReady:  # the body says itself which joints are missing
            return ()
        except CannotStart as error:
            return (f"a state to start from: {error}",)
        return ()

    def _run(self) -> None:
        try:
            with without_garbage_collection(), real_time_scheduling() as self.real_time:
                if self._starts():
                    self._tick_until_left()
        except Exception as error:  # whatever ended the loop: the node goes on to say so
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self.started = False
            if self.recorder is not None:
                self.recorder.close()
            self._changed()

    def _starts(self) -> bool:
        """Returns when the loop has been reset, from rest; False where it is to be left before."""
        while not self._leaving.is_set():
            if not self.waits_for:
                with contextlib.suppress(CannotStart):  # a joint state that came just now: the next may do
                    self.loop.reset(self.clock.now_ns())
                    return True
            time.sleep(WAIT_S)
        return False

    def _tick_until_left(self) -> None:
        self.clock.start()
        self.started = True
        self._changed()
        while self.clock.wait(self._leaving):
            if self._leaving.is_set():
                self.loop.stop()
            answers = self._take_requests()
            report = self.loop.tick(self.clock.now_ns())
            for answer in answers:
                answer.set_result(report.denied)
            self._note(report)
            if self._leaving.is_set() and report.mode == STOPPED and self.loop.at_rest:
                return

    def _take_requests(self) -> "list[Future[str | None]]":
        answers: list[Future[str | None]] = []
        while True:
            try:
                request, answer = self._requests.get_nowait()
            except Empty:
                return answers
            if answer.set_running_or_notify_cancel():  # else nobody waits for it any more
                request()
                answers.append(answer)

    def _note(self, report: TickReport) -> None:
        now_s = time.monotonic()
        if self.ticks:
            self.period_error_s.add(abs(now_s - self._last_s - self.loop.period_s))
        self._last_s, self.ticks = now_s, self.ticks + 1
        self.last_refused = report.refused or self.last_refused
        if report.error is not None:
            self.last_error = f"{type(report.error).__name__}: {report.error}"
        before, self.reason, self.ceased = self.reason, report.reason, not report.sent
        if self.recorder is not None:
            self.recorder.add(report)
        if self._on_tick is not None:
            self._on_tick(report)
        if before != report.reason:
            self._changed()
