"""The safety filter against an independent check of what it emits, with libfranka's formulas."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from volar.robots.body import JointCommand
from volar.robots.fr3 import FR3
from volar.robots.kinematics import Arm, Pose
from volar.robots.safety import NO_TARGET, NON_FINITE_TARGET, WORKSPACE, SafetyError, SafetyFilter
from volar.robots.spec import load_robot

Array = NDArray[np.float64]
PERIOD_S = 0.01
EVERYWHERE = replace(FR3, workspace_low=(-2.0, -2.0, -2.0), workspace_high=(2.0, 2.0, 2.0))

# libfranka 0.15 `rate_limiting.h`, Franka Research 3: kMaxJointAcceleration, kMaxJointJerk,
# computeUpperLimitsJointVelocity, computeLowerLimitsJointVelocity, each less its kLimitEps.
EPS = 1e-3
ACCELERATION, JERK = 10.0 - EPS, 5000.0 - EPS
LOW = np.array([-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159])
HIGH = np.array([2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159])


def _upper(speed: float, offset: float, gain: float, limit: float, q: Array) -> Array:
    return np.asarray(np.minimum(speed, np.maximum(0.0, -offset + np.sqrt(np.maximum(0.0, gain * (limit - q))))) - EPS)


def _lower(speed: float, offset: float, gain: float, limit: float, q: Array) -> Array:
    return np.asarray(np.maximum(-speed, np.minimum(0.0, offset - np.sqrt(np.maximum(0.0, gain * (limit + q))))) + EPS)


JOINTS = [  # speed, offset, gain, upper limit, lower limit (as libfranka writes it: limit + q)
    (2.62, 0.30, 12.0, 2.75010, 2.75010),
    (2.62, 0.20, 5.17, 1.79180, 1.79180),
    (2.62, 0.20, 7.00, 2.90650, 2.90650),
    (2.62, 0.30, 8.00, -0.1458, 3.04810),
    (5.26, 0.35, 34.0, 2.81010, 2.81010),
    (4.18, 0.35, 11.0, 4.52050, -0.54092),
    (5.26, 0.35, 34.0, 3.01960, 3.01960),
]


def upper(q: Array) -> Array:
    """q (N, 7) -> upper velocity limits (N, 7)."""
    return np.stack([_upper(s, o, g, u, q[:, i]) for i, (s, o, g, u, _) in enumerate(JOINTS)], axis=1)


def lower(q: Array) -> Array:
    return np.stack([_lower(s, o, g, u, q[:, i]) for i, (s, o, g, _, u) in enumerate(JOINTS)], axis=1)


def check_limits(commands: list[JointCommand], start: Array | None = None) -> None:
    """Positions, and derivatives both as emitted and as differences of positions at the command rate."""
    rest = np.array(FR3.home) if start is None else start
    q = np.array([rest] * 3 + [c.q for c in commands])  # at rest before the first
    dq, ddq = (np.array([getattr(c, name) for c in commands]) for name in ("dq", "ddq"))
    assert (q >= LOW).all()
    assert (q <= HIGH).all()
    velocity = np.diff(q, axis=0) / PERIOD_S
    for v, at in ((dq, q[3:]), (velocity, q[1:]), (velocity, q[:-1])):
        assert (v <= upper(at)).all(), (v - upper(at)).max(axis=0)
        assert (v >= lower(at)).all(), (lower(at) - v).max(axis=0)
    for a in (ddq, np.diff(q, 2, axis=0) / PERIOD_S**2, np.diff(dq, axis=0) / PERIOD_S):
        assert np.abs(a).max() <= ACCELERATION
    for j in (np.diff(q, 3, axis=0) / PERIOD_S**3, np.diff(ddq, axis=0) / PERIOD_S):
        assert np.abs(j).max() <= JERK


def test_velocity_bounds_of_the_robot_are_libfrankas() -> None:
    rng = np.random.default_rng(0)
    q = rng.uniform(LOW, HIGH, (500, 7))
    bounds = np.array([FR3.velocity_bounds(row) for row in q])  # (N, 2, 7)
    np.testing.assert_allclose(bounds[:, 1], upper(q) + EPS, atol=1e-12)
    np.testing.assert_allclose(bounds[:, 0], lower(q) - EPS, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_no_target_makes_it_leave_the_limits(seed: int) -> None:
    """Random, extreme, reversing and vanishing targets, held for 1 to 60 periods each."""
    rng = np.random.default_rng(seed)
    safety = SafetyFilter(Arm(EVERYWHERE), PERIOD_S)
    safety.reset(np.array(FR3.home), 0.04)
    commands: list[JointCommand] = []
    while len(commands) < 8_000:
        kind = rng.integers(6)
        target: Array | None = rng.uniform(LOW, HIGH)
        if kind == 0:
            target = None
        elif kind <= 2:
            target = np.where(rng.random(7) < 0.5, LOW - 0.5, HIGH + 0.5)
        elif kind == 3:
            target = np.full(7, rng.choice([np.nan, np.inf, 1e300]))
        elif kind == 4:
            target = safety.q + rng.normal(0, 0.02, 7)
        for _ in range(rng.integers(1, 60)):
            commands.append(safety.step(target, rng.uniform(-1, 1)).command)
    check_limits(commands)
    widths = np.array([c.gripper_width_m for c in commands])
    assert widths.min() >= 0
    assert widths.max() <= FR3.gripper_width_max
    assert np.abs(np.diff(widths)).max() <= FR3.gripper_speed_max * PERIOD_S + 1e-12


@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("side", [-1, 1])
def test_full_speed_into_a_joint_limit(arm: Arm, joint: int, side: int) -> None:
    safety = SafetyFilter(Arm(EVERYWHERE), PERIOD_S)
    start = np.array(FR3.home)
    start[joint] = LOW[joint] + 0.02 if side > 0 else HIGH[joint] - 0.02
    safety.reset(start, 0.0)
    target = start.copy()
    target[joint] = (HIGH if side > 0 else LOW)[joint] + side
    commands = [safety.step(target, 0.0).command for _ in range(600)]
    check_limits(commands, start)
    limit = HIGH[joint] if side > 0 else LOW[joint]
    assert commands[-1].q[joint] == pytest.approx(limit - side * 0.01, abs=1e-6)
    assert np.abs([c.dq[joint] for c in commands]).max() > 0.8 * FR3.velocity_max[joint]


def test_it_reaches_its_target(arm: Arm) -> None:
    safety = SafetyFilter(arm, PERIOD_S)
    home = np.array(FR3.home)
    safety.reset(home, 0.0)
    target = home + 0.1
    for _ in range(100):
        filtered = safety.step(target, 0.08)
    assert filtered.reason is None
    np.testing.assert_allclose(filtered.command.q, target, atol=1e-9)
    assert filtered.command.gripper_width_m == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("target", "reason"),
    [(None, NO_TARGET), (np.full(7, np.nan), NON_FINITE_TARGET), (np.full(7, np.inf), NON_FINITE_TARGET)],
)
def test_it_brakes_to_rest_and_stays(target: Array | None, reason: str) -> None:
    safety = SafetyFilter(Arm(EVERYWHERE), PERIOD_S)
    safety.reset(np.array(FR3.home), 0.0)
    commands = [safety.step(HIGH, 0.0).command for _ in range(30)]
    assert np.abs(commands[-1].dq).max() > 1.0
    braking = [safety.step(target, 0.0) for _ in range(100)]
    commands += [filtered.command for filtered in braking]
    check_limits(commands)
    assert {filtered.reason for filtered in braking} == {reason}
    assert safety.at_rest
    np.testing.assert_array_equal(commands[-1].q, commands[-2].q)


def test_workspace_box_holds_even_at_full_speed(arm: Arm) -> None:
    """Targets far outside: the arm stops inside the box, says why, and can leave the border again."""
    rng = np.random.default_rng(3)
    safety = SafetyFilter(arm, PERIOD_S)
    home = np.array(FR3.home)
    safety.reset(home, 0.0)
    low, high = np.array(FR3.workspace_low), np.array(FR3.workspace_high)
    reasons, commands = set(), []
    for _ in range(40):
        target = home + rng.normal(0, 0.8, 7)
        for _ in range(rng.integers(5, 60)):
            filtered = safety.step(target, 0.0)
            reasons.add(filtered.reason)
            commands.append(filtered.command)
            assert (safety.pose.position > low - 0.0005).all(), safety.pose.position
            assert (safety.pose.position < high + 0.0005).all(), safety.pose.position
    check_limits(commands)
    assert reasons == {None, WORKSPACE}
    for _ in range(300):
        filtered = safety.step(home, 0.0)
    assert filtered.reason is None


def test_from_outside_the_box_it_may_only_come_back(arm: Arm) -> None:
    home = np.array(FR3.home)
    outside = arm.solve(arm.forward(home).moved(np.array([0.0, 0.45, 0.0]), np.zeros(3)), home)
    safety = SafetyFilter(arm, PERIOD_S)
    safety.reset(outside, 0.0)
    further = outside.copy()
    further[0] += 0.3
    assert {safety.step(further, 0.0).reason for _ in range(20)} == {WORKSPACE}
    assert safety.at_rest
    assert {safety.step(home, 0.0).reason for _ in range(300)} == {None}


def test_same_targets_give_the_same_bits(arm: Arm) -> None:
    def run(safety: SafetyFilter) -> list[bytes]:
        rng = np.random.default_rng(7)
        safety.reset(np.array(FR3.home), 0.02)
        steps = [safety.step(np.array(FR3.home) + rng.normal(0, 0.1, 7), 0.0).command for _ in range(200)]
        return [c.q.tobytes() + c.dq.tobytes() + c.ddq.tobytes() for c in steps]

    used = SafetyFilter(arm, PERIOD_S)
    assert run(used) == run(used) == run(SafetyFilter(Arm(FR3), PERIOD_S))


def test_it_must_be_reset_first_and_to_numbers(arm: Arm) -> None:
    safety = SafetyFilter(arm, PERIOD_S)
    with pytest.raises(SafetyError, match="reset"):
        safety.step(None, 0.0)
    with pytest.raises(SafetyError, match="cannot start"):
        safety.reset(np.full(7, np.nan), 0.0)
    with pytest.raises(ValueError, match="period_s"):
        SafetyFilter(arm, 0.0)


def test_only_the_filter_makes_commands_and_only_the_loop_sends_them() -> None:
    """Over the sources: `JointCommand(...)` is called in safety.py alone, `body.send` in control_loop.py."""
    root = Path(__file__).parents[2]
    made, sent = set(), set()
    for area in ("robots", "sim", "vla", "rl", "datasets"):
        for path in (root / area).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                function = ast.unparse(node.func)
                if function.split(".")[-1] == "JointCommand":
                    made.add(str(path.relative_to(root)))
                if function.endswith("body.send") or function in ("robot.send", "self.robot.send"):
                    sent.add(str(path.relative_to(root)))
    assert made == {"robots/safety.py"}
    assert sent == {"robots/control_loop.py"}


def test_an_arm_at_rest_at_the_border_finds_its_way_back() -> None:
    """Its joints, each as fast as it can, would first carry it across; in proportion they do not."""
    arm = Arm(load_robot("so101"))
    stuck = np.array([0.5838, 0.9098, -1.0250, 1.5159, -0.9519])  # 0.3 mm inside y = -0.17 m, hand tilted
    guard = SafetyFilter(arm, PERIOD_S)
    guard.reset(stuck, 0.0)
    start, down = arm.forward(stuck), np.diag([1.0, -1.0, -1.0])
    target = Pose(start.position + np.array([-0.04, 0.025, 0.015]), down)
    for _ in range(300):
        guard.step(arm.step_towards(guard.q, target, PERIOD_S), 0.0)
    assert np.linalg.norm(guard.pose.position - target.position) < 0.01
