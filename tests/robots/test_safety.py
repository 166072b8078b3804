"""The safety filter against an independent check of what it emits, with libfranka's formulas."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from volar.robots import safety as safety_filter
from volar.robots.body import JointCommand
from volar.robots.errors import Unknown
from volar.robots.fr3 import FR3
from volar.robots.kinematics import Arm, Pose
from volar.robots.safety import (
    COLLISION,
    NO_TARGET,
    NO_TRAJECTORY,
    NON_FINITE_TARGET,
    WORKSPACE,
    SafetyError,
    SafetyFilter,
)
from volar.robots.spec import RobotSpec, load_robot

Array = NDArray[np.float64]
PERIOD_S = 0.01
EPS = 1e-3  # kLimitEps of libfranka, by which it lowers each of its limits


def _upper(speed: float, offset: float, gain: float, limit: float, q: Array) -> Array:
    return np.asarray(np.minimum(speed, np.maximum(0.0, -offset + np.sqrt(np.maximum(0.0, gain * (limit - q))))) - EPS)


def _lower(speed: float, offset: float, gain: float, limit: float, q: Array) -> Array:
    return np.asarray(np.maximum(-speed, np.minimum(0.0, offset - np.sqrt(np.maximum(0.0, gain * (limit + q))))) + EPS)


# libfranka 0.15 `rate_limiting.h`, Franka Research 3: computeUpperLimitsJointVelocity, computeLowerLimitsJointVelocity.
JOINTS = [  # speed, offset, gain, upper limit, lower limit (as libfranka writes it: limit + q)
    (2.62, 0.30, 12.0, 2.75010, 2.75010),
    (2.62, 0.20, 5.17, 1.79180, 1.79180),
    (2.62, 0.20, 7.00, 2.90650, 2.90650),
    (2.62, 0.30, 8.00, -0.1458, 3.04810),
    (5.26, 0.35, 34.0, 2.81010, 2.81010),
    (4.18, 0.35, 11.0, 4.52050, -0.54092),
    (5.26, 0.35, 34.0, 3.01960, 3.01960),
]


def fr3_upper(q: Array) -> Array:
    """q (N, 7) -> upper velocity limits (N, 7)."""
    return np.stack([_upper(s, o, g, u, q[:, i]) for i, (s, o, g, u, _) in enumerate(JOINTS)], axis=1)


def fr3_lower(q: Array) -> Array:
    return np.stack([_lower(s, o, g, u, q[:, i]) for i, (s, o, g, _, u) in enumerate(JOINTS)], axis=1)


@dataclass(frozen=True)
class Limits:
    """What a robot's maker allows, written here again: (J,) [rad], (N, J) -> (N, J) [rad/s], rad/s^2, rad/s^3."""

    low: Array
    high: Array
    lower: Callable[[Array], Array]
    upper: Callable[[Array], Array]
    acceleration: float
    jerk: float


LIMITS = {
    "fr3": Limits(  # kMaxJointAcceleration, kMaxJointJerk
        np.array([-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159]),
        np.array([2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159]),
        fr3_lower,
        fr3_upper,
        10.0 - EPS,
        5000.0 - EPS,
    ),
    "ur5e": Limits(  # datasheet: 360 deg, elbow 180 deg, 180 deg/s
        np.deg2rad([-360.0, -360, -180, -360, -360, -360]),
        np.deg2rad([360.0, 360, 180, 360, 360, 360]),
        lambda q: np.full_like(q, -np.pi),
        lambda q: np.full_like(q, np.pi),
        10.0,
        1000.0,
    ),
    "so101": Limits(  # so101_new_calib.urdf, roll about its middle; STS3215 datasheet
        np.array([-1.92, -1.7454, -1.69, -1.6581, -2.7926]),
        np.array([1.92, 1.7454, 1.69, 1.6581, 2.7926]),
        lambda q: np.full_like(q, -4.7),
        lambda q: np.full_like(q, 4.7),
        20.0,
        1000.0,
    ),
}
each_robot = pytest.mark.parametrize("name", LIMITS)


@cache
def arm_of(name: str) -> Arm:
    return Arm(load_robot(name))


@cache
def unbounded_arm(name: str) -> Arm:
    """Without a workspace box."""
    return Arm(replace(load_robot(name), workspace_low=(-2.0, -2.0, -2.0), workspace_high=(2.0, 2.0, 2.0)))


def unbounded(name: str) -> SafetyFilter:
    """The filter for joint limits alone: an arm that folds through itself reaches all of them."""
    return SafetyFilter(unbounded_arm(name), PERIOD_S, collision_margin_m=-np.inf)


def check_limits(
    spec: RobotSpec, commands: list[JointCommand], start: Array | None = None, period_s: float = PERIOD_S
) -> None:
    """Positions, and derivatives both as emitted and as differences of positions at the command rate."""
    limits = LIMITS[spec.name]
    rest = np.array(spec.home) if start is None else start
    q = np.array([rest] * 3 + [c.q for c in commands])  # at rest before the first
    dq, ddq = (np.array([getattr(c, name) for c in commands]) for name in ("dq", "ddq"))
    assert (q >= limits.low).all()
    assert (q <= limits.high).all()
    velocity = np.diff(q, axis=0) / period_s
    for v, at in ((dq, q[3:]), (velocity, q[1:]), (velocity, q[:-1])):
        assert (v <= limits.upper(at)).all(), (v - limits.upper(at)).max(axis=0)
        assert (v >= limits.lower(at)).all(), (limits.lower(at) - v).max(axis=0)
    for a in (ddq, np.diff(q, 2, axis=0) / period_s**2, np.diff(dq, axis=0) / period_s):
        assert np.abs(a).max() <= limits.acceleration
    for j in (np.diff(q, 3, axis=0) / period_s**3, np.diff(ddq, axis=0) / period_s):
        assert np.abs(j).max() <= limits.jerk


def test_every_robot_is_checked_here() -> None:
    with pytest.raises(Unknown) as error:
        load_robot("none of them")
    assert error.value.choices == sorted(LIMITS)


def test_velocity_bounds_of_the_fr3_are_libfrankas() -> None:
    rng = np.random.default_rng(0)
    q = rng.uniform(FR3.position_min, FR3.position_max, (500, 7))
    bounds = np.array([FR3.velocity_bounds(row) for row in q])  # (N, 2, 7)
    np.testing.assert_allclose(bounds[:, 1], fr3_upper(q) + EPS, atol=1e-12)
    np.testing.assert_allclose(bounds[:, 0], fr3_lower(q) - EPS, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
@each_robot
def test_no_target_makes_it_leave_the_limits(name: str, seed: int) -> None:
    """Random, extreme, reversing and vanishing targets, held for 1 to 60 periods each."""
    rng = np.random.default_rng(seed)
    spec, low, high = load_robot(name), LIMITS[name].low, LIMITS[name].high
    safety = unbounded(name)
    safety.reset(np.array(spec.home), 0.04)
    commands: list[JointCommand] = []
    while len(commands) < 8_000:
        kind = rng.integers(6)
        target: Array | None = rng.uniform(low, high)
        if kind == 0:
            target = None
        elif kind <= 2:
            target = np.where(rng.random(spec.joints) < 0.5, low - 0.5, high + 0.5)
        elif kind == 3:
            target = np.full(spec.joints, rng.choice([np.nan, np.inf, 1e300]))
        elif kind == 4:
            target = safety.q + rng.normal(0, 0.02, spec.joints)
        for _ in range(rng.integers(1, 60)):
            commands.append(safety.step(target, rng.uniform(-1, 1)).command)
    check_limits(spec, commands)
    widths = np.array([c.gripper_width_m for c in commands])
    assert widths.min() >= 0
    assert widths.max() <= spec.gripper_width_max
    assert np.abs(np.diff(widths)).max() <= spec.gripper_speed_max * PERIOD_S + 1e-12


@pytest.mark.parametrize("period_s", [0.02, 0.002])
@each_robot
def test_the_limits_hold_at_the_slowest_and_the_fastest_rate(name: str, period_s: float) -> None:
    rng, spec = np.random.default_rng(11), load_robot(name)
    safety = SafetyFilter(unbounded_arm(name), period_s, collision_margin_m=-np.inf)
    safety.reset(np.array(spec.home), 0.04)
    commands: list[JointCommand] = []
    while len(commands) < 4_000:
        target = None if rng.random() < 0.2 else rng.uniform(LIMITS[name].low - 0.2, LIMITS[name].high + 0.2)
        commands += [safety.step(target, 0.0).command for _ in range(round(rng.uniform(0.02, 0.8) / period_s))]
    check_limits(spec, commands, period_s=period_s)


@pytest.mark.parametrize(("name", "joint"), [(name, i) for name in LIMITS for i in range(load_robot(name).joints)])
@pytest.mark.parametrize("side", [-1, 1])
def test_full_speed_into_a_joint_limit(name: str, joint: int, side: int) -> None:
    spec, low, high = load_robot(name), np.array(load_robot(name).position_min), np.array(load_robot(name).position_max)
    safety = unbounded(name)
    start = np.array(spec.home)
    start[joint] = low[joint] + 0.02 if side > 0 else high[joint] - 0.02
    safety.reset(start, 0.0)
    target = start.copy()
    target[joint] = (high if side > 0 else low)[joint] + side
    commands = [safety.step(target, 0.0).command for _ in range(600)]
    check_limits(spec, commands, start)
    limit = high[joint] if side > 0 else low[joint]
    assert commands[-1].q[joint] == pytest.approx(limit - side * 0.01, abs=1e-6)
    assert np.abs([c.dq[joint] for c in commands]).max() > 0.8 * spec.velocity_max[joint]


def test_a_way_for_which_ruckig_finds_no_trajectory_at_first() -> None:
    """To the end of the elbow's range: 0.0019 rad is 2 a^3 / j^2 to rounding."""
    safety = unbounded("ur5e")
    start = np.array(safety.spec.home)
    start[2] = np.nextafter(3.129692653589793, 4.0)
    safety.reset(start, 0.0)
    target = start.copy()
    target[2] = np.pi
    commands = [safety.step(target, 0.0).command for _ in range(50)]
    check_limits(safety.spec, commands, start)
    assert commands[-1].q[2] == pytest.approx(np.pi - 0.01, abs=1e-9)


def test_where_ruckig_finds_no_trajectory_the_arm_brakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same way, without the retries, while another joint is at full speed."""
    monkeypatch.setattr(safety_filter, "JERK_RETRIES", ())
    safety = unbounded("ur5e")
    start = np.array(safety.spec.home)
    start[2] = np.nextafter(3.129692653589793, 4.0)
    safety.reset(start, 0.0)
    target = start.copy()
    target[5] += 3.0
    moving = [safety.step(target, 0.0) for _ in range(60)]
    assert {filtered.reason for filtered in moving} == {None}
    assert moving[-1].command.dq[5] > 1.0
    target[2] = np.pi
    braking = [safety.step(target, 0.0) for _ in range(60)]
    assert {filtered.reason for filtered in braking} == {NO_TRAJECTORY}
    assert safety.at_rest
    check_limits(safety.spec, [filtered.command for filtered in moving + braking], start)
    target[2] = start[2]
    assert safety.step(target, 0.0).reason is None


@each_robot
def test_it_reaches_its_target(name: str) -> None:
    safety = unbounded(name)
    home = np.array(safety.spec.home)
    safety.reset(home, 0.0)
    target, width_m = home + 0.05, safety.spec.gripper_width_max
    for _ in range(100):
        filtered = safety.step(target, width_m)
    assert filtered.reason is None
    np.testing.assert_allclose(filtered.command.q, target, atol=1e-9)
    assert filtered.command.gripper_width_m == pytest.approx(width_m)


@pytest.mark.parametrize(
    ("fill", "reason"), [(None, NO_TARGET), (np.nan, NON_FINITE_TARGET), (np.inf, NON_FINITE_TARGET)]
)
@each_robot
def test_it_brakes_to_rest_and_stays(name: str, fill: float | None, reason: str) -> None:
    safety = unbounded(name)
    safety.reset(np.array(safety.spec.home), 0.0)
    target = None if fill is None else np.full(safety.spec.joints, fill)
    commands = [safety.step(LIMITS[name].high, 0.0).command for _ in range(30)]
    assert np.abs(commands[-1].dq).max() > 1.0
    braking = [safety.step(target, 0.0) for _ in range(100)]
    commands += [filtered.command for filtered in braking]
    check_limits(safety.spec, commands)
    assert {filtered.reason for filtered in braking} == {reason}
    assert safety.at_rest
    np.testing.assert_array_equal(commands[-1].q, commands[-2].q)


@pytest.mark.parametrize("seed", range(3, 7))
@each_robot
def test_workspace_box_holds_even_at_full_speed(name: str, seed: int) -> None:
    """Targets far outside: the arm stops inside the box, says why, and can leave the border again."""
    rng = np.random.default_rng(seed)
    safety = SafetyFilter(arm_of(name), PERIOD_S)
    spec, home = safety.spec, np.array(safety.spec.home)
    safety.reset(home, 0.0)
    low, high = np.array(spec.workspace_low), np.array(spec.workspace_high)
    reasons, commands = set(), []
    for _ in range(40):
        target = home + rng.normal(0, 0.8, spec.joints)
        for _ in range(rng.integers(5, 60)):
            filtered = safety.step(target, 0.0)
            reasons.add(filtered.reason)
            commands.append(filtered.command)
            assert (safety.pose.position > low - 0.0001).all(), safety.pose.position
            assert (safety.pose.position < high + 0.0001).all(), safety.pose.position
    check_limits(spec, commands)
    assert reasons - {COLLISION} == {None, WORKSPACE}
    for _ in range(300):
        filtered = safety.step(home, 0.0)
    assert filtered.reason is None


@each_robot
def test_from_outside_the_box_it_may_only_come_back(name: str) -> None:
    spec = load_robot(name)
    # Narrow enough that turning the first joint leads out of it, for each of the arms.
    narrow = replace(
        spec, workspace_low=(*spec.workspace_low[:1], -0.1, -1.0), workspace_high=(*spec.workspace_high[:1], 0.1, 1.0)
    )
    home = np.array(spec.home)
    outside, further = home.copy(), home.copy()
    outside[0] += 0.8
    further[0] += 1.1
    safety = SafetyFilter(Arm(narrow), PERIOD_S)
    safety.reset(outside, 0.0)
    assert abs(safety.pose.position[1]) > 0.11
    assert {safety.step(further, 0.0).reason for _ in range(20)} == {WORKSPACE}
    assert safety.at_rest
    assert {safety.step(home, 0.0).reason for _ in range(300)} == {None}


@each_robot
def test_same_targets_give_the_same_bits(name: str) -> None:
    spec = load_robot(name)

    def run(safety: SafetyFilter) -> list[bytes]:
        rng = np.random.default_rng(7)
        safety.reset(np.array(spec.home), 0.02)
        steps = [safety.step(np.array(spec.home) + rng.normal(0, 0.1, spec.joints), 0.0).command for _ in range(200)]
        return [c.q.tobytes() + c.dq.tobytes() + c.ddq.tobytes() for c in steps]

    used = SafetyFilter(arm_of(name), PERIOD_S)
    assert run(used) == run(used) == run(SafetyFilter(Arm(spec), PERIOD_S))


def test_it_must_be_reset_first_and_to_numbers(arm: Arm) -> None:
    safety = SafetyFilter(arm, PERIOD_S)
    with pytest.raises(SafetyError, match="reset"):
        safety.step(None, 0.0)
    with pytest.raises(SafetyError, match="cannot start"):
        safety.reset(np.full(7, np.nan), 0.0)
    with pytest.raises(ValueError, match="period_s"):
        SafetyFilter(arm, 0.0)


def test_only_the_filter_makes_commands_and_only_the_loop_sends_them() -> None:
    """Over the sources: `JointCommand(...)` is called in safety.py alone, `body.send` in control_loop.py.

    At the other end of the wire an arm reads commands from messages: sim/through_ros2.py keeps the ones it received.
    """
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
    assert made == {"robots/safety.py", "sim/through_ros2.py"}
    assert sent == {"robots/control_loop.py"}


def test_an_arm_at_rest_at_the_border_finds_its_way_back() -> None:
    """Its joints, each as fast as it can, would first carry it across; in proportion they do not."""
    arm = arm_of("so101")
    stuck = np.array([0.5838, 0.9098, -1.0250, 1.5159, -0.9519])  # 0.3 mm inside y = -0.17 m, hand tilted
    guard = SafetyFilter(arm, PERIOD_S)
    guard.reset(stuck, 0.0)
    start, down = arm.forward(stuck), np.diag([1.0, -1.0, -1.0])
    target = Pose(start.position + np.array([-0.04, 0.025, 0.015]), down)
    for _ in range(300):
        guard.step(arm.step_towards(guard.q, target, PERIOD_S), 0.0)
    assert np.linalg.norm(guard.pose.position - target.position) < 0.01
