"""The control loop on a virtual clock, with a body that does exactly what it is told."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from volar.robots import loop_state as ls
from volar.robots.action_space import ActionSpec
from volar.robots.body import JointState
from volar.robots.contract import ContractError
from volar.robots.control_loop import ControlLoop
from volar.robots.fr3 import FR3
from volar.robots.in_process_source import InProcessSource
from volar.robots.interface import ActionChunk, Observation
from volar.robots.kinematics import Arm

from .exact_body import CONTRACT, HOME, STEP_NS, Along, ExactBody, policy_loop, pushed, run


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
