"""A short fuzz of the safety filter, and that its checker, which shares no code with the filter, sees what is wrong."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.robots.kinematics import Arm
from volar.robots.spec import load_robot

FUZZ: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "fuzz.py"))
each_robot = pytest.mark.parametrize("name", ["fr3", "so101", "ur5e"])
# Seeds in which the arm once came out of the box between the moments that were looked at.
FOUND = {"fr3": (20, 164, 178), "ur5e": (), "so101": ()}


@each_robot
def test_no_random_target_breaks_a_limit(name: str) -> None:
    arm = Arm(load_robot(name))
    assert {seed: broken for seed in (*range(8), *FOUND[name]) if (broken := FUZZ["run"](name, arm, seed))} == {}


@each_robot
def test_the_checkers_kinematics_are_the_arms(name: str) -> None:
    spec, rng = load_robot(name), np.random.default_rng(0)
    arm, q = Arm(spec), rng.uniform(spec.position_min, spec.position_max, (50, spec.joints))
    np.testing.assert_allclose(FUZZ["tip"](name, q), [arm.forward(row).position for row in q], atol=1e-9)


@each_robot
@pytest.mark.parametrize(
    ("kind", "step"),
    [("jerk", 0.003), ("acceleration", 0.01), ("velocity", 0.06), ("position", 9.0), ("workspace", 1.5)],
)
def test_the_checker_sees_a_jump(name: str, kind: str, step: float) -> None:
    spec = load_robot(name)
    q = np.tile(spec.home, (40, 1))
    q[20:, 0] += step
    found = FUZZ["violations"](name, q, np.zeros(40))
    assert found[kind] > 0
    assert FUZZ["violations"](name, q[:20], np.zeros(20)) == {}


@each_robot
def test_the_checker_sees_the_gripper(name: str) -> None:
    q, width_m = np.tile(load_robot(name).home, (40, 1)), np.zeros(40)
    width_m[20:] = 0.2
    assert set(FUZZ["violations"](name, q, width_m)) == {"gripper width", "gripper speed"}
