"""The control loop when something fails: the arm brakes, within every limit, and goes on or stays as the table says."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from volar.robots import loop_state as ls
from volar.robots.body import JointState
from volar.robots.contract import ContractError
from volar.robots.control_loop import ControlLoop
from volar.robots.fr3 import FR3
from volar.robots.in_process_source import InProcessSource
from volar.robots.interface import ActionChunk, Observation
from volar.robots.kinematics import Arm, Pose
from volar.robots.watchdogs import CannotStart

from .exact_body import CONTRACT, HOME, STEP_NS, TICK_NS, Along, ExactBody, check_limits, policy_loop, pushed, run


class Faulty:
    """A policy's source of which one call raises while the clock is in `during` [ns]."""

    def __init__(self, inner: InProcessSource, call: str, clock: Callable[[], int], during: range) -> None:
        self.inner, self.call, self.clock, self.during = inner, call, clock, during

    def submit(self, observation: Observation) -> None:
        self._perhaps("submit")
        self.inner.submit(observation)

    def poll(self, now_ns: int) -> ActionChunk | None:
        self._perhaps("poll")
        return self.inner.poll(now_ns)

    @property
    def pending(self) -> bool:
        return self.inner.pending

    def _perhaps(self, call: str) -> None:
        if call == self.call and self.clock() in self.during:
            raise ContractError(f"{call} failed")


class FaultyCamera(ExactBody):
    """A body whose camera raises, gives no image or gives a wrong one while the clock is in `during` [ns]."""

    def __init__(self, fault: str, during: range) -> None:
        super().__init__()
        self.fault, self.during = fault, during

    def images(self) -> Mapping[str, NDArray[np.uint8]]:
        good = super().images()
        if self.now_ns not in self.during:
            return good
        if self.fault == "raises":
            raise OSError("the camera is unplugged")
        if self.fault == "missing":
            return {}
        return {name: image[..., 0] for name, image in good.items()} if self.fault == "wrong" else good


@pytest.mark.parametrize("ticks", [1, 60])
@pytest.mark.parametrize(
    ("where", "reason", "error"),
    [
        ("raises", ls.OBSERVATION_FAILED, OSError),
        ("missing", ls.OBSERVATION_FAILED, KeyError),
        ("wrong", ls.OBSERVATION_FAILED, ValueError),
        ("submit", ls.POLICY_FAILED, ContractError),
        ("poll", ls.POLICY_FAILED, ContractError),
    ],
)
def test_whatever_fails_on_the_way_the_arm_brakes_and_goes_on(
    arm: Arm, where: str, reason: str, error: type[Exception], ticks: int
) -> None:
    """One command a tick, inside every limit; the arm stops while it lasts and follows the policy afterwards."""
    during = range(8 * STEP_NS, 8 * STEP_NS + ticks * TICK_NS)
    body = FaultyCamera(where, during)
    policy = Along(lambda _: [0.015, 0, 0, 0, 0, 0, 1])
    source = Faulty(InProcessSource(policy), where, lambda: body.now_ns, during)
    loop = ControlLoop.for_policy(body, arm, CONTRACT, source)
    loop.reset(0)
    reports = run(loop, body, 80 + ticks + 30)
    assert len(body.sent) == len(reports)
    check_limits(body.sent)
    failed = reports[80 : 80 + ticks]
    assert {r.reason for r in failed} == {reason}
    assert {type(r.error) for r in failed} == {error}
    assert all(r.error is None for r in [*reports[:80], *reports[80 + ticks :]])
    before, after = reports[79].command, failed[-1].command
    assert np.linalg.norm(after.dq) < np.linalg.norm(before.dq)
    assert ticks == 1 or not after.dq.any()
    assert {r.reason for r in reports[80 + ticks :]} == {None}
    assert reports[-1].command.dq.any()


def test_a_policy_that_raises_stops_the_arm(arm: Arm) -> None:
    def step(observation: Observation) -> list[float]:
        if observation.stamp_ns:
            raise RuntimeError("no such token")
        return [0.02, 0, 0, 0, 0, 0, 1]

    loop, body, _ = policy_loop(arm, Along(step))
    reports = run(loop, body, 100)
    assert {r.reason for r in reports[40:]} == {ls.POLICY_FAILED}
    assert str(reports[-1].error) == "no such token"
    check_limits(body.sent)
    assert not body.state.dq.any()


def test_inverse_kinematics_that_raises_stops_the_arm_while_it_does() -> None:
    class Unsolvable(Arm):
        broken = False

        def step_towards(self, q: NDArray[np.float64], target: Pose, dt_s: float) -> NDArray[np.float64]:
            if self.broken:
                raise ValueError("matrix contains NaN")
            return super().step_towards(q, target, dt_s)

    arm = Unsolvable(FR3)
    loop, body = pushed(arm)
    loop.push(ActionChunk(np.tile(np.array([0.02, 0, 0, 0, 0, 0, 1], np.float32), (30, 1)), 0, 0.1), 0)
    assert {(r.reason, r.error) for r in run(loop, body, 30)} == {(None, None)}
    arm.broken = True
    reports = run(loop, body, 60)
    assert {(r.reason, str(r.error)) for r in reports} == {(ls.IK_FAILED, "matrix contains NaN")}
    assert not reports[-1].command.dq.any()
    arm.broken = False
    assert {(r.mode, r.error) for r in run(loop, body, 30)} == {(ls.RUNNING, None)}
    assert body.state.dq.any()
    check_limits(body.sent)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"q": np.where(np.arange(7) == 3, np.nan, HOME)}, "fr3_joint4 is measured at nan"),
        ({"gripper_width_m": np.inf}, "the gripper is measured at inf"),
        ({"dq": np.where(np.arange(7) == 4, -0.27, 0.0)}, r"fr3_joint5 moves at 0\.270 rad/s.*at most 0\.263"),
        ({"dq": np.full(7, np.inf)}, "fr3_joint1 moves at inf"),
    ],
)
def test_a_start_from_nowhere_or_in_motion_is_refused(
    arm: Arm, change: dict[str, NDArray[np.float64]], reason: str
) -> None:
    body = ExactBody()
    loop = ControlLoop(body, arm, FR3.action)
    body.reported = replace(body.state, **change)
    with pytest.raises(CannotStart, match=reason):
        loop.reset(0)
    for dq in (np.full(7, 0.05 * 2.62), np.full(7, np.nan)):  # NaN: a driver that measures none
        body.reported = replace(body.state, dq=dq)
        loop.reset(0)
    assert loop.tick(0).reason == ls.NO_CHUNK


def test_without_a_joint_state_nothing_is_sent(arm: Arm) -> None:
    class Lost(ExactBody):
        def joint_state(self) -> JointState:
            if self.now_ns:
                raise ConnectionError("the robot is gone")
            return super().joint_state()

    body = Lost()
    loop = ControlLoop(body, arm, FR3.action)
    loop.reset(0)
    run(loop, body, 1)
    with pytest.raises(ConnectionError):
        loop.tick(body.now_ns)
    assert len(body.sent) == 1


def test_stale_and_broken_joint_states_stop_the_arm(arm: Arm) -> None:
    loop, body = pushed(arm)
    loop.push(ActionChunk(np.tile(np.array([0.03, 0, 0, 0, 0, 0, 1], np.float32), (30, 1)), 0, 0.1), 0)
    run(loop, body, 20)
    stuck_ns = body.now_ns
    reasons = []
    for _ in range(60):
        body.reported = replace(body.state, stamp_ns=stuck_ns)
        reasons.append(loop.tick(body.now_ns).reason)
        body.now_ns += TICK_NS
    assert reasons[0] is None
    assert reasons[-1] == ls.STALE_JOINT_STATE
    assert not body.sent[-1].dq.any()
    body.reported = replace(body.state, q=np.full(7, np.nan), stamp_ns=body.now_ns)
    report = loop.tick(body.now_ns)
    assert report.reason == ls.INVALID_JOINT_STATE
    assert np.isfinite(report.command.q).all()
