"""Requests from outside, the rate, instructions, and what is no fault; faults themselves: test_fault_matrix.py."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from volar.robots import chunk_buffer
from volar.robots import loop_state as ls
from volar.robots.body import JointCommand, JointState
from volar.robots.control_loop import NOT_FOLLOWED, ControlLoop, TickReport
from volar.robots.fr3 import FR3
from volar.robots.in_process_source import InProcessSource
from volar.robots.interface import ActionChunk, ActionPrefix, Observation
from volar.robots.kinematics import Arm
from volar.robots.spec import RobotSpec
from volar.robots.watchdogs import LoopLimits

HOME = np.array(FR3.home)
TICK_NS = 10_000_000
MS = 1_000_000


class Bench:
    """An exact body and a source that answers each observation after 50 ms with 0.8 s along x."""

    def __init__(self, arm: Arm, limits: LoopLimits | None = None) -> None:
        self.now_ns, self.frame = 0, 0
        self.measured = JointState(HOME, np.zeros(7), 0.08, 0)
        self.sent: list[JointCommand] = []
        self.stale_ns: int | None = None  # since when no joint state has come
        self.asked: list[Observation] = []
        self.answered = 0
        self.stamps_raise = False
        self.error: str | None = None
        self.loop = ControlLoop(self, arm, FR3.action, self, execute_steps=4, limits=limits)
        self.loop.set_instruction("lift the red block")
        self.loop.reset(0)

    @property
    def spec(self) -> RobotSpec:
        return FR3

    def joint_state(self) -> JointState:
        return replace(self.measured, stamp_ns=self.now_ns if self.stale_ns is None else self.stale_ns)

    def images(self) -> Mapping[str, NDArray[np.uint8]]:
        return {name: np.full((4, 4, 3), self.frame, np.uint8) for name in FR3.cameras}

    def image_stamps(self) -> dict[str, int]:
        if self.stamps_raise:
            raise OSError("the driver is gone")
        return dict.fromkeys(FR3.cameras, self.now_ns)

    def send(self, command: JointCommand) -> None:
        self.sent.append(command)
        self.measured = JointState(command.q, command.dq, command.gripper_width_m, self.now_ns)

    def submit(self, observation: Observation) -> None:
        self.asked.append(observation)

    def poll(self, now_ns: int) -> ActionChunk | None:
        if not self.pending or now_ns < self.asked[-1].stamp_ns + 50 * MS:
            return None
        self.answered = len(self.asked)
        return chunk(self.asked[-1].stamp_ns)

    @property
    def pending(self) -> bool:
        return self.answered < len(self.asked)

    def run(self, ticks: int) -> list[TickReport]:
        reports = []
        for _ in range(ticks):
            self.frame = (self.frame + 1) % 256
            reports.append(self.loop.tick(self.now_ns))
            self.now_ns += TICK_NS
        return reports


def chunk(stamp_ns: int) -> ActionChunk:
    return ActionChunk(np.tile(np.array([0.015, 0, 0, 0, 0, 0, 1], np.float32), (8, 1)), stamp_ns, 0.1)


@pytest.fixture
def bench(arm: Arm) -> Bench:
    return Bench(arm)


def test_pause_and_resume(bench: Bench) -> None:
    bench.run(30)
    bench.loop.pause()
    paused = bench.run(60)
    assert {(r.mode, r.reason) for r in paused} == {(ls.PAUSED, ls.PAUSE_REQUESTED)}
    assert not paused[-1].command.dq.any()
    asked = len(bench.asked)
    bench.run(50)
    assert len(bench.asked) == asked  # not while it rests
    bench.loop.resume()
    resumed = bench.run(30)
    assert resumed[0].observation is not None
    assert [r.mode for r in resumed] == [ls.HOLDING] * 5 + [ls.RUNNING] * 25  # the answer takes 50 ms
    assert resumed[-1].command.dq.any()


@pytest.mark.parametrize(
    ("first", "request_", "denied"),
    [
        (None, "resume", ls.NOT_PAUSED),
        (None, "recover", ls.NOT_STOPPED),
        ("pause", "recover", ls.NOT_STOPPED),
        ("stop", "resume", ls.IS_STOPPED),
        ("stop", "pause", ls.IS_STOPPED),
        ("stop", "recover", ls.STILL_MOVING),
    ],
)
def test_requests_that_do_not_fit_the_state_change_nothing(
    bench: Bench, first: str | None, request_: str, denied: str
) -> None:
    bench.run(30)
    if first is not None:
        getattr(bench.loop, first)()
    before = bench.run(1)[0].mode
    getattr(bench.loop, request_)()
    report = bench.run(1)[0]
    assert (report.mode, report.denied) == (before, denied)
    assert bench.run(1)[0].denied is None


def test_requests_are_answered_in_order_and_reset_forgets_them(bench: Bench) -> None:
    bench.run(20)
    bench.loop.pause()
    bench.loop.stop()
    bench.loop.resume()
    report = bench.run(1)[0]
    assert (report.mode, report.reason, report.denied) == (ls.STOPPED, ls.STOP_REQUESTED, ls.IS_STOPPED)
    bench.run(60)
    bench.loop.recover()
    bench.loop.reset(bench.now_ns)
    report = bench.run(1)[0]
    assert (report.mode, report.denied) == (ls.HOLDING, None)


def rested(bench: Bench) -> JointState:
    """Stops the moving arm: what is measured once it rests."""
    bench.run(30)
    bench.loop.stop()
    reports = bench.run(60)
    assert all(r.sent for r in reports)
    return bench.measured


def follows_from(bench: Bench, q: NDArray[np.float64]) -> None:
    """What is sent after `recover` begins there, at rest, and moves within the limits of speed and acceleration."""
    sent = len(bench.sent)
    bench.loop.recover()
    reports = bench.run(40)
    assert (reports[0].denied, reports[-1].mode) == (None, ls.RUNNING)
    assert all(r.sent for r in reports)
    commands = np.array([q, q, *(c.q for c in bench.sent[sent:])])
    assert (np.abs(np.diff(commands, axis=0)) / 0.01 <= FR3.velocity_max).all()
    assert (np.abs(np.diff(commands, 2, axis=0)) / 0.01**2 <= FR3.acceleration_max).all()
    assert bench.sent[-1].dq.any()


def test_an_arm_that_was_moved_in_a_stop_is_not_pulled_back(bench: Bench) -> None:
    rest = rested(bench)
    bench.measured = moved = replace(rest, q=rest.q + 0.2, gripper_width_m=0.03)
    reports = bench.run(30)
    assert not any(r.sent for r in reports)
    assert bench.measured is moved
    bench.measured = replace(moved, dq=np.full(7, 0.3))  # a hand still moves it
    bench.loop.recover()
    assert bench.run(1)[0].denied == ls.STILL_MOVING
    bench.measured = moved
    sent = len(bench.sent)
    follows_from(bench, moved.q)
    assert bench.sent[sent].gripper_width_m == 0.08  # as it was told, and not let go from what is measured


def test_an_arm_that_was_moved_while_nobody_saw_is_not_pulled_back(bench: Bench) -> None:
    """Its joint states cease, as those of a robot that is switched off, and come again from elsewhere."""
    bench.run(30)
    bench.stale_ns = bench.now_ns
    reports = bench.run(100)
    assert reports[-1].reason == ls.STALE_JOINT_STATE
    still = next(i for i, r in enumerate(reports) if not r.sent)
    assert not reports[still - 1].command.dq.any()  # braked first
    assert not any(r.sent for r in reports[still:])
    bench.stale_ns, bench.measured = None, replace(bench.measured, q=bench.measured.q - 0.2)
    moved = bench.measured.q
    assert not any(r.sent for r in bench.run(30))
    follows_from(bench, moved)


def test_an_arm_that_is_where_it_was_told_to_be_goes_on_from_there(bench: Bench) -> None:
    """After joint states that came late: the command does not step by what a servo leaves."""
    rest = rested(bench)
    told = bench.sent[-1].q
    bench.measured, bench.stale_ns = replace(rest, q=rest.q + 0.009), bench.now_ns - 200 * MS
    assert not any(r.sent for r in bench.run(10))
    bench.stale_ns = None
    follows_from(bench, told)


def test_an_arm_that_is_held_elsewhere_is_not_told_to_come(arm: Arm) -> None:
    """Halted by its driver or jammed: what it was told last, it would do at once when its driver follows again."""

    class Held(Bench):
        held_rad = 0.0

        def joint_state(self) -> JointState:
            state = super().joint_state()
            return replace(state, q=state.q + self.held_rad)

    bench = Held(arm)
    bench.run(30)
    bench.held_rad = 0.31
    reports = bench.run(100)
    assert {(r.mode, r.reason) for r in reports} == {(ls.STOPPED, ls.TRACKING_ERROR)}
    still = next(i for i, r in enumerate(reports) if not r.sent)
    assert not reports[still - 1].command.dq.any()  # braked first
    assert not any(r.sent for r in reports[still:])


def test_an_arm_that_comes_to_rest_after_its_command_was_not_moved(bench: Bench) -> None:
    """A servo that lags: it is still on its way when the command rests, and ends where it was told."""
    bench.run(30)
    bench.loop.stop()
    bench.run(20)
    at_rest = bench.measured
    for behind in np.linspace(0.2, 0.0, 20):
        bench.measured = replace(at_rest, q=at_rest.q - behind)
        assert all(r.sent for r in bench.run(1))
    assert all(r.sent for r in bench.run(100))
    bench.measured = replace(at_rest, q=at_rest.q + 0.06)
    assert not any(r.sent for r in bench.run(10))


def test_no_answer_from_before_a_stop_moves_the_arm_after_it(bench: Bench) -> None:
    """A chunk that is still on its way, or is pushed, though its time is not over."""
    bench.run(20)
    bench.loop.stop()
    bench.run(30)
    assert bench.loop.push(chunk(bench.now_ns), bench.now_ns) == NOT_FOLLOWED
    old = chunk(bench.now_ns - 1)
    bench.loop.recover()
    bench.run(1)
    assert bench.loop.push(old, bench.now_ns) == chunk_buffer.RETIRED
    assert bench.loop.push(chunk(bench.now_ns), bench.now_ns) is None


def test_a_chunk_that_arrives_while_stopped_is_dropped_by_name(bench: Bench) -> None:
    bench.run(42)  # the second observation is at 0.4 s, its answer due at 0.45 s
    assert bench.pending
    bench.loop.stop()
    assert {r.refused for r in bench.run(20)} == {None, NOT_FOLLOWED}
    assert not bench.pending


def test_the_first_fault_is_kept_and_each_is_reported(bench: Bench) -> None:
    bench.run(20)
    bench.loop.stop()
    bench.run(5)
    bench.measured = replace(bench.measured, q=np.full(7, np.nan))
    report = bench.loop.tick(bench.now_ns)
    assert report.reason == ls.INVALID_JOINT_STATE
    assert bench.loop.mode.fault == ls.STOP_REQUESTED


def test_why_the_policy_gives_no_chunk_is_in_the_report(bench: Bench) -> None:
    """Not while there is an action to follow: the latest reason is an old one then."""
    assert bench.run(5)[-1].policy_error is None
    bench.error = "the instruction has 20 words"
    assert {r.policy_error for r in bench.run(20)} == {None}
    bench.loop.pause()
    report = bench.run(1)[0]
    assert (report.action, report.policy_error) == (None, "the instruction has 20 words")


def test_instructions_change_in_any_state(bench: Bench) -> None:
    bench.run(20)
    bench.loop.set_instruction("lift the blue block")
    bench.run(10)
    bench.loop.pause()
    bench.run(10)
    bench.loop.set_instruction("lift the green block")
    bench.run(10)
    bench.loop.resume()
    bench.run(10)
    assert [o.instruction.split()[2] for o in bench.asked] == ["red", "blue", "green"]


@pytest.mark.parametrize(("ahead_ms", "mode"), [(0, ls.RUNNING), (390, ls.RUNNING), (1000, ls.STOPPED)])
def test_a_late_tick_is_no_jump_of_the_clock(bench: Bench, ahead_ms: int, mode: ls.State) -> None:
    bench.run(20)
    bench.now_ns += ahead_ms * MS
    assert bench.run(1)[0].mode == mode


def test_the_same_image_is_no_fault_for_an_arm_at_rest_or_without_that_deadline(arm: Arm) -> None:
    class Still(Bench):
        def images(self) -> Mapping[str, NDArray[np.uint8]]:
            return {name: np.zeros((4, 4, 3), np.uint8) for name in FR3.cameras}

        def poll(self, now_ns: int) -> ActionChunk | None:
            answer = super().poll(now_ns)
            return None if answer is None else replace(answer, actions=answer.actions * np.float32(self.speed))

        speed = 0.0

    still = Still(arm)
    assert {r.mode for r in still.run(300)[5:]} == {ls.RUNNING}
    still.speed = 1.0
    assert still.run(200)[-1].reason == ls.FROZEN_IMAGE
    lenient = Still(arm, LoopLimits(frozen_s=math.inf))
    lenient.speed = 1.0
    assert lenient.run(200)[-1].reason is None


def test_stamps_that_cannot_be_read_are_a_camera_that_fails(bench: Bench) -> None:
    bench.run(20)
    bench.stamps_raise = True
    report = bench.run(40)[-1]
    assert (report.mode, report.reason, str(report.error)) == (ls.HOLDING, ls.OBSERVATION_FAILED, "the driver is gone")
    assert not report.command.dq.any()
    bench.stamps_raise = False
    assert bench.run(20)[-1].reason is None


def test_settings_out_of_range_are_refused(arm: Arm, bench: Bench) -> None:
    for period_s in (0.0201, 0.0019, 0.0, math.nan):
        with pytest.raises(ValueError, match="50"):
            ControlLoop(bench, arm, FR3.action, period_s=period_s)
    for period_s in (0.02, 0.002):
        ControlLoop(bench, arm, FR3.action, period_s=period_s)
    with pytest.raises(ValueError, match="camera_age_s must be positive, is 0"):
        LoopLimits(camera_age_s=0.0)


def test_a_policy_that_continues_is_told_what_is_executed_meanwhile(arm: Arm) -> None:
    """Its chunks come after 50 ms, so the first action of its prefix is frozen once that is known."""

    class Continues(Bench):
        takes_prefix = True

        def __init__(self, arm: Arm) -> None:
            self.prefixes: list[ActionPrefix] = []
            super().__init__(arm)

        def submit_after(self, observation: Observation, prefix: ActionPrefix) -> None:
            self.submit(observation)
            self.prefixes.append(prefix)

    bench = Continues(arm)
    reports = bench.run(100)
    assert bench.loop.latency_s.at(95) == pytest.approx(0.05)
    assert [p.frozen for p in bench.prefixes] == [0, 1, 1]
    assert [len(p.actions) for p in bench.prefixes] == [0, 4, 4]
    assert {r.reason for r in reports[5:]} == {None}
    for asked, prefix in zip(bench.asked[1:], bench.prefixes[1:], strict=True):
        during = [r.action for r in reports if 0 <= r.stamp_ns - asked.stamp_ns < 100 * MS]
        np.testing.assert_array_equal(np.float32(during), np.tile(prefix.actions[:1], (10, 1)))
    bench.loop.stop()
    bench.run(60)
    bench.loop.reset(bench.now_ns)
    assert len(bench.loop.latency_s) == 0


def test_a_policy_in_this_process_gets_its_prefix() -> None:
    class Follows:
        contract = None

        def reset(self, seed: int) -> None: ...

        def predict(self, observation: Observation) -> ActionChunk:
            return chunk(observation.stamp_ns)

    class Continues(Follows):
        def predict_after(self, observation: Observation, prefix: ActionPrefix) -> ActionChunk:
            return ActionChunk(prefix.actions, observation.stamp_ns, 0.1)

    assert not InProcessSource(Follows()).takes_prefix  # type: ignore[arg-type]
    source = InProcessSource(Continues())  # type: ignore[arg-type]
    assert source.takes_prefix
    prefix = ActionPrefix(np.full((3, 7), 0.5, np.float32), 1)
    source.submit_after(Observation({}, np.zeros(1, np.float32), "", 7), prefix)
    answer = source.poll(7)
    assert answer is not None
    np.testing.assert_array_equal(answer.actions, prefix.actions)
