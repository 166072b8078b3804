"""No target makes an arm touch itself or an obstacle: checked with distances that the filter does not bound."""

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from volar.robots.body import JointCommand
from volar.robots.collision import MARGIN_M, Box, CollisionGuard
from volar.robots.kinematics import Arm
from volar.robots.safety import COLLISION, WORKSPACE, SafetyFilter
from volar.robots.spec import RobotSpec, load_robot

PERIOD_S = 0.01
each_robot = pytest.mark.parametrize("name", ["fr3", "so101", "ur5e"])


@cache
def unbounded_arm(name: str) -> Arm:
    """Without a workspace box, so that nothing else keeps it from folding."""
    return Arm(replace(load_robot(name), workspace_low=(-2.0, -2.0, -2.0), workspace_high=(2.0, 2.0, 2.0)))


def check_limits(spec: RobotSpec, commands: list[JointCommand]) -> None:
    """Finite differences of the positions, from rest at home."""
    q = np.array([spec.home] * 3 + [c.q for c in commands])
    for order, limits in ((1, spec.velocity_max), (2, spec.acceleration_max), (3, spec.jerk_max)):
        assert (np.abs(np.diff(q, order, axis=0)) / PERIOD_S**order <= limits).all()


def drive(safety: SafetyFilter, seed: int, targets: int = 60) -> tuple[list[JointCommand], Counter[str | None]]:
    """Random targets over the whole range of the joints, each for up to a second."""
    rng, spec = np.random.default_rng(seed), safety.spec
    safety.reset(np.array(spec.home), 0.0)
    commands, reasons = [], Counter[str | None]()
    for _ in range(targets):
        target = rng.uniform(spec.position_min, spec.position_max)
        for _ in range(rng.integers(10, 100)):
            filtered = safety.step(target, 0.0)
            commands.append(filtered.command)
            reasons[filtered.reason] += 1
    return commands, reasons


@each_robot
def test_it_never_touches_itself(name: str) -> None:
    spec, blindly = load_robot(name), []
    exact = CollisionGuard(spec)
    for seed in range(2):
        commands, reasons = drive(SafetyFilter(unbounded_arm(name), PERIOD_S), seed)
        assert min(exact.distance(c.q)[0] for c in commands) > MARGIN_M - 0.0005
        check_limits(spec, commands)
        assert reasons[COLLISION] > 0
        assert reasons[None] > len(commands) / 10
        blind, _ = drive(SafetyFilter(unbounded_arm(name), PERIOD_S, collision_margin_m=-np.inf), seed)
        blindly += [exact.distance(c.q)[0] for c in blind]
    assert min(blindly) < 0  # the same targets do make it


@each_robot
def test_how_fast_a_distance_can_shrink_is_bounded(name: str) -> None:
    """For any two positions: the difference of a pair's distances is at most its gains times the joints' ways."""
    spec, rng = load_robot(name), np.random.default_rng(0)
    guard = CollisionGuard(spec, [Box("post", (0.3, 0.3, 0.2), (0.05, 0.05, 0.2))])
    everywhere, tightest = np.arange(len(guard.pairs)), 0.0
    for _ in range(300):
        first = rng.uniform(spec.position_min, spec.position_max)
        second = first + rng.normal(0, 1, spec.joints) * rng.choice([0.003, 0.03, 0.3])
        guard._measure(everywhere, first)
        before = guard._distance.copy()
        guard._measure(everywhere, second)
        change, bound = np.abs(guard._distance - before), guard._gain @ np.abs(second - first)
        apart = (before > 0) & (guard._distance > 0)  # how deep shapes overlap is no distance
        assert (change[apart] <= bound[apart] + 1e-6).all()
        tightest = max(tightest, float((change[apart] / (bound[apart] + 1e-9)).max()))
    assert tightest > 0.5  # the bound is worth something


@each_robot
def test_an_obstacle_in_the_way(name: str) -> None:
    """Turning towards a wall the arm stops before it, says why, and can turn away."""
    spec = load_robot(name)
    home = np.array(spec.home)
    x, y, z = unbounded_arm(name).forward(home).position
    wall = Box("wall", (x, y + 0.6 * x, z), (x, 0.02, z + 0.3))
    safety = SafetyFilter(unbounded_arm(name), PERIOD_S, obstacles=[wall])
    exact = CollisionGuard(spec, [wall])
    safety.reset(home, 0.0)
    towards, away = home.copy(), home.copy()
    side = np.sign(unbounded_arm(name).forward(home + 0.1 * (np.arange(spec.joints) == 0)).position[1] - y)
    towards[0] += 1.5 * side
    away[0] -= 0.5 * side
    reasons, commands = [], []
    for _ in range(200):
        filtered = safety.step(towards, 0.0)
        reasons.append(filtered.reason)
        commands.append(filtered.command)
    assert reasons[-1] == COLLISION
    assert WORKSPACE not in reasons
    assert safety.at_rest
    smallest, pair = min(exact.distance(c.q) for c in commands)
    assert "wall" in pair
    assert MARGIN_M - 0.0005 < smallest < 0.08
    for _ in range(300):
        filtered = safety.step(away, 0.0)
        commands.append(filtered.command)
    assert filtered.reason is None
    np.testing.assert_allclose(safety.q, away, atol=1e-6)
    check_limits(spec, commands)


def test_from_too_near_it_may_only_come_away() -> None:
    """The arm was put 2 mm from a wall, nearer than the filter would go: no nearer, but away."""
    spec, wall = load_robot("fr3"), Box("wall", (0.5, 0.35, 0.3), (0.5, 0.1, 0.3))
    exact, home, first = CollisionGuard(spec, [wall]), np.array(spec.home), np.arange(7) == 0
    near, far = 0.0, 0.6  # bisection of the first joint's angle
    for _ in range(40):
        middle = (near + far) / 2
        near, far = (middle, far) if exact.distance(home + middle * first)[0] > 0.002 else (near, middle)
    start = home + near * first
    assert exact.distance(start) == (pytest.approx(0.002, abs=1e-5), ("wall", exact.distance(start)[1][1]))
    safety = SafetyFilter(unbounded_arm("fr3"), PERIOD_S, obstacles=[wall])
    safety.reset(start, 0.0)
    assert {safety.step(start + 0.3 * first, 0.0).reason for _ in range(50)} == {COLLISION}
    np.testing.assert_array_equal(safety.q, start)
    assert {safety.step(home, 0.0).reason for _ in range(200)} == {None}
    np.testing.assert_allclose(safety.q, home, atol=1e-6)


def test_a_box_without_size_is_refused() -> None:
    with pytest.raises(ValueError, match="box 'wall': every half_size must be positive"):
        Box("wall", (0.0, 0.0, 0.0), (0.1, 0.0, 0.1))
