"""The control loop on a virtual clock, with a body that does exactly what it is told."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from volar.robots import loop_state as ls
from volar.robots.action_space import ActionSpec
from volar.robots.body import JointCommand, JointState
from volar.robots.contract import CameraSpec, ContractError, PolicyContract
from volar.robots.control_loop import ControlLoop, InProcessSource, TickReport
from volar.robots.fr3 import FR3
from volar.robots.interface import ActionChunk, Observation
from volar.robots.kinematics import Arm, Pose
from volar.robots.spec import RobotSpec
from volar.robots.watchdogs import CannotStart

TICK_NS = 10_000_000
STEP_NS = 100_000_000
HOME = np.array(FR3.home)
CONTRACT = PolicyContract(
    robot="fr3",
    action=FR3.action,
    state_names=FR3.state_names,
    state_units=FR3.state_units,
    cameras=(CameraSpec("front", 8, 8),),
    chunk_length=8,
    execute_steps=4,
)


class ExactBody:
    """Integrates commands exactly; time stands still unless the test moves it."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.state = JointState(HOME, np.zeros(7), 0.08, 0)
        self.reported: JointState | None = None  # in place of the state, when a test breaks the sensor
        self.sent: list[JointCommand] = []
        self.looks = 0

    @property
    def spec(self) -> RobotSpec:
        return FR3

    def joint_state(self) -> JointState:
        return self.reported or replace(self.state, stamp_ns=self.now_ns)

    def images(self) -> Mapping[str, NDArray[np.uint8]]:
        self.looks += 1
        return {name: np.full((8, 8, 3), self.looks % 256, np.uint8) for name in FR3.cameras}

    def send(self, command: JointCommand) -> None:
        self.sent.append(command)
        self.state = JointState(command.q, command.dq, command.gripper_width_m, self.now_ns)


class Along:
    """A policy that moves by `step` each action, and remembers what it was asked."""

    def __init__(self, step: Callable[[Observation], list[float]]) -> None:
        self.step = step
        self.asked: list[Observation] = []
        self.seeds: list[int] = []

    @property
    def contract(self) -> PolicyContract:
        return CONTRACT

    def reset(self, seed: int) -> None:
        self.seeds.append(seed)

    def predict(self, observation: Observation) -> ActionChunk:
        self.asked.append(observation)
        actions = np.tile(np.array(self.step(observation), np.float32), (8, 1))
        return ActionChunk(actions, observation.stamp_ns, 0.1)


def run(loop: ControlLoop, body: ExactBody, ticks: int) -> list[TickReport]:
    reports = []
    for _ in range(ticks):
        reports.append(loop.tick(body.now_ns))
        body.now_ns += TICK_NS
    return reports


def check_limits(commands: list[JointCommand]) -> None:
    """Finite differences of the positions sent, from rest at home, against the robot's limits."""
    q, period_s = np.array([HOME] * 3 + [c.q for c in commands]), TICK_NS / 1e9
    velocity = np.diff(q, axis=0) / period_s
    lower, upper = np.array([FR3.velocity_bounds(row) for row in q[1:]]).swapaxes(0, 1)
    assert ((velocity >= lower) & (velocity <= upper)).all()
    for order, limits in ((2, FR3.acceleration_max), (3, FR3.jerk_max)):
        assert (np.abs(np.diff(q, order, axis=0)) / period_s**order <= limits).all()


def pushed(arm: Arm, action: ActionSpec = FR3.action) -> tuple[ControlLoop, ExactBody]:
    body = ExactBody()
    loop = ControlLoop(body, arm, action)
    loop.reset(0)
    return loop, body


def test_one_action_displaces_the_pose_by_itself(arm: Arm) -> None:
    loop, body = pushed(arm)
    start = arm.forward(HOME)
    step = np.array([0.02, -0.01, -0.015, 0.0, 0.0, 0.1])
    assert loop.push(ActionChunk(np.array([[*step, 0.25]], np.float32), 0, 0.1), 0) is None
    reports = run(loop, body, 60)
    wanted = start.moved(step[:3], step[3:])
    assert [r.reason for r in reports[:11]] == [None] * 10 + [ls.CHUNK_EXHAUSTED]
    np.testing.assert_allclose(reports[9].target.position, wanted.position, atol=1e-6)
    np.testing.assert_allclose(reports[9].target.rotation, wanted.rotation, atol=1e-6)
    # The filter lags a little, and the motion ends where the arm is when the chunk does.
    np.testing.assert_allclose(arm.forward(body.state.q).position, wanted.position, atol=0.006)
    assert not body.state.dq.any()
    assert body.state.gripper_width_m == pytest.approx(0.25 * FR3.gripper_width_max, abs=1e-6)


def test_a_sequence_of_actions_adds_up(arm: Arm) -> None:
    loop, body = pushed(arm)
    start = arm.forward(HOME).position
    for i in range(10):
        loop.push(ActionChunk(np.array([[0.01, 0.01, 0, 0, 0, 0, 1]], np.float32), i * STEP_NS, 0.1), i * STEP_NS)
        assert {r.reason for r in run(loop, body, 10)} == {None}
    np.testing.assert_allclose(arm.forward(body.state.q).position, start + np.array([0.1, 0.1, 0.0]), atol=0.006)


@pytest.mark.parametrize("polarity", ["open_is_one", "open_is_zero"])
def test_gripper_polarity(arm: Arm, polarity: Literal["open_is_one", "open_is_zero"]) -> None:
    loop, body = pushed(arm, replace(FR3.action, gripper=polarity))
    actions = np.zeros((20, 7), np.float32)
    actions[:, 6] = 1.0
    loop.push(ActionChunk(actions, 0, 0.1), 0)
    run(loop, body, 150)
    assert body.state.gripper_width_m == pytest.approx(FR3.gripper_width_max if polarity == "open_is_one" else 0.0)


def test_tool_frame(arm: Arm) -> None:
    """Along the tool's z, the fingers, the arm goes down."""
    loop, body = pushed(arm, replace(FR3.action, frame="tool"))
    loop.push(ActionChunk(np.array([[0, 0, 0.02, 0, 0, 0, 1]], np.float32), 0, 0.1), 0)
    target = run(loop, body, 10)[-1].target
    np.testing.assert_allclose(target.position - arm.forward(HOME).position, [0, 0, -0.02], atol=1e-5)


def test_joint_positions(arm: Arm) -> None:
    action = ActionSpec(
        kind="joint_position",
        names=(*FR3.joint_names, "gripper"),
        low=(*FR3.position_min, 0.0),
        high=(*FR3.position_max, 1.0),
        units=("rad",) * 7 + ("1",),
        rotation="none",
    )
    loop, body = pushed(arm, action)
    goal = HOME + 0.05
    loop.push(ActionChunk(np.tile(np.array([*goal, 1.0], np.float32), (10, 1)), 0, 0.1), 0)
    run(loop, body, 90)
    np.testing.assert_allclose(body.state.q, goal, atol=1e-6)


def test_no_chunk_holds_still(arm: Arm) -> None:
    loop, body = pushed(arm)
    reports = run(loop, body, 20)
    assert {r.reason for r in reports} == {ls.NO_CHUNK}
    np.testing.assert_array_equal(body.state.q, HOME)
    assert len(body.sent) == 20


def test_target_stays_in_the_box_and_near_the_arm(arm: Arm) -> None:
    """However long a policy pushes outwards, the pose neither leaves the box nor winds up."""
    loop, body = pushed(arm)
    low, high = np.array(FR3.workspace_low), np.array(FR3.workspace_high)
    for direction in ([0.05, 0.05, -0.05], [-0.05, -0.05, 0.05]):
        actions = np.tile(np.array([*direction, 0, 0, 0.25, 1], np.float32), (30, 1))
        loop.push(ActionChunk(actions, body.now_ns, 0.1), body.now_ns)
        for report in run(loop, body, 300):
            here = arm.forward(report.command.q).position
            assert (report.target.position >= low).all()
            assert (report.target.position <= high).all()
            assert (here >= low - 0.0005).all()
            assert (here <= high + 0.0005).all()
            assert np.linalg.norm(report.target.position - here) < 0.06


def policy_loop(arm: Arm, policy: Along, latency_s: float = 0.0) -> tuple[ControlLoop, ExactBody, InProcessSource]:
    body, source = ExactBody(), InProcessSource(policy, latency_s)
    loop = ControlLoop.for_policy(body, arm, CONTRACT, source)
    loop.set_instruction("lift the red block")
    loop.reset(0)
    return loop, body, source


def test_policy_is_asked_every_execute_steps(arm: Arm) -> None:
    policy = Along(lambda _: [0.01, 0, 0, 0, 0, 0, 1])
    loop, body, _ = policy_loop(arm, policy)
    reports = run(loop, body, 100)
    assert {r.reason for r in reports} == {None}
    assert [o.stamp_ns for o in policy.asked] == [0, 4 * STEP_NS, 8 * STEP_NS]
    assert [o.stamp_ns for r in reports if (o := r.observation)] == [0, 4 * STEP_NS, 8 * STEP_NS]
    assert body.looks == 3
    asked = policy.asked[1]
    assert asked.instruction == "lift the red block"
    assert set(asked.images) == {"front"}  # the contract's cameras, not all of the body's
    q_then = reports[39].command.q
    np.testing.assert_array_equal(asked.state, arm.proprio(q_then, reports[39].command.gripper_width_m))


def test_latency_is_felt_once(arm: Arm) -> None:
    policy = Along(lambda _: [0.01, 0, 0, 0, 0, 0, 1])
    loop, body, _ = policy_loop(arm, policy, latency_s=0.05)
    reasons = [r.reason for r in run(loop, body, 100)]
    assert reasons[:5] == [ls.POLICY_PENDING] * 5
    assert set(reasons[5:]) == {None}


def test_silent_policy_stops_the_arm(arm: Arm) -> None:
    policy = Along(lambda _: [0.02, 0, 0, 0, 0, 0, 1])
    loop, body, source = policy_loop(arm, policy)
    run(loop, body, 30)
    source._latency_ns = 10**12
    reasons = [r.reason for r in run(loop, body, 150)]
    assert list(dict.fromkeys(reasons)) == [None, ls.POLICY_PENDING, ls.POLICY_SILENT]
    assert not body.state.dq.any()


def test_broken_chunks_are_refused_by_name(arm: Arm) -> None:
    policy = Along(lambda o: [np.nan if o.stamp_ns else 0.01, 0, 0, 0, 0, 0, 1])
    loop, body, _ = policy_loop(arm, policy)
    reports = run(loop, body, 150)
    assert {r.refused for r in reports} == {None, "chunk_non_finite"}
    assert reports[-1].reason == ls.CHUNK_EXHAUSTED
    assert np.isfinite([c.q for c in body.sent]).all()
    assert not body.state.dq.any()


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


def test_a_new_instruction_asks_at_once(arm: Arm) -> None:
    policy = Along(lambda _: [0.01, 0, 0, 0, 0, 0, 1])
    loop, body, _ = policy_loop(arm, policy)
    run(loop, body, 15)
    loop.set_instruction("lift the blue block")
    run(loop, body, 1)
    assert [o.instruction for o in policy.asked] == ["lift the red block", "lift the blue block"]


def test_reset_forgets(arm: Arm) -> None:
    """Two runs from the same state through a used loop, and one through a new loop, give the same bits."""

    def commands(loop: ControlLoop, body: ExactBody, source: InProcessSource) -> list[bytes]:
        body.now_ns, body.state = 0, JointState(HOME, np.zeros(7), 0.08, 0)
        body.sent.clear()
        source.reset(0)
        loop.reset(0)
        run(loop, body, 137)
        return [c.q.tobytes() + c.dq.tobytes() + c.ddq.tobytes() for c in body.sent]

    def towards(observation: Observation) -> list[float]:
        return [*(0.2 * (np.array([0.55, 0.1, 0.1]) - observation.state[:3])), 0, 0, 0.02, 0.3]

    used = policy_loop(arm, Along(towards), latency_s=0.03)
    assert commands(*used) == commands(*used) == commands(*policy_loop(Arm(FR3), Along(towards), latency_s=0.03))


def test_wrong_robot_is_refused(arm: Arm) -> None:
    with pytest.raises(ContractError, match="policy wants ur5e, found fr3"):
        ControlLoop.for_policy(ExactBody(), arm, replace(CONTRACT, robot="ur5e"), InProcessSource(Along(lambda _: [])))
    with pytest.raises(ValueError, match="execute_steps"):
        ControlLoop(ExactBody(), arm, FR3.action, execute_steps=0)
    with pytest.raises(ValueError, match="latency_s"):
        InProcessSource(Along(lambda _: []), latency_s=-1.0)
