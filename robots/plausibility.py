"""Statistics that cannot be those of the robot a contract names: the mistakes that no field of a contract shows.

A contract says "rad" and "q01" whatever its numbers are. Degrees, another robot's data, a swapped dimension or extremes
in the place of quantiles leave their trace in the numbers; each is named here.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from volar.robots.contract import FieldStatistics, Mismatch, PolicyContract
from volar.robots.spec import STATE_NAMES, RobotSpec

Vector = NDArray[np.float64]

# Share of a range's width that data may lie beyond it: encoders and integrators overshoot, units differ by far more.
SLACK = 0.1
# With fewer frames the extremes are the quantiles.
FEWEST_FRAMES = 1000


def implausible(contract: PolicyContract, robot: RobotSpec) -> list[Mismatch]:
    """What the statistics of a contract say that they cannot say of this robot; empty where there are none."""
    found: list[Mismatch] = []
    for key, statistics in contract.statistics.items():
        of_action = key == "action"
        names = contract.action.names if of_action else contract.state_names
        units = contract.action.units if of_action else contract.state_units
        if len(names) != len(statistics.q01):
            continue  # `PolicyContract` refuses it
        found += _disordered(key, names, statistics)
        bounds = _action_bounds(contract) if of_action else _state_bounds(contract, robot)
        found += _out_of_bounds(key, names, units, statistics, bounds)
    return found


def _disordered(key: str, names: tuple[str, ...], s: FieldStatistics) -> Iterator[Mismatch]:
    """Quantiles that are no quantiles."""
    low, q01, q99, high = (np.array(v) for v in (s.min, s.q01, s.q99, s.max))
    mean, std, width = np.array(s.mean), np.array(s.std), np.array(s.max) - np.array(s.min)
    tiny = 1e-6 + 1e-4 * width
    checks = (
        ("min <= q01 <= q99 <= max", (low <= q01 + tiny) & (q01 <= q99 + tiny) & (q99 <= high + tiny)),
        ("min <= mean <= max", (low <= mean + tiny) & (mean <= high + tiny)),
        ("std at most half of max - min", std <= width / 2 + tiny),
    )
    for rule, holds in checks:
        for i in np.flatnonzero(~holds):
            numbers = f"min {low[i]:.4g}, q01 {q01[i]:.4g}, mean {mean[i]:.4g}, q99 {q99[i]:.4g}, max {high[i]:.4g}"
            yield Mismatch(f"statistics.{key}.{names[i]}", rule, f"{numbers}, std {std[i]:.4g}")
    moving = (width > 1e-6) & np.array(s.mask) & (s.count >= FEWEST_FRAMES)
    extremes = moving & (q01 == low) & (q99 == high)
    if moving.any() and (extremes == moving).all():
        yield Mismatch(
            f"statistics.{key}", "quantiles of all frames", f"q01 = min and q99 = max in {s.count} frames: extremes"
        )


def _action_bounds(contract: PolicyContract) -> dict[str, tuple[float, float]]:
    action = contract.action
    return {name: (low, high) for name, low, high in zip(action.names, action.low, action.high, strict=True)}


def _state_bounds(contract: PolicyContract, robot: RobotSpec) -> dict[str, tuple[float, float]]:
    """Where each named number of the state can be at all."""
    bounds = {
        name: (low, high)
        for name, low, high in zip(robot.joint_names, robot.position_min, robot.position_max, strict=True)
    }
    for axis, low, high in zip("xyz", robot.workspace_low, robot.workspace_high, strict=True):
        bounds[f"ee_{axis}"] = (low, high)
    bounds |= {name: (-1.0, 1.0) for name in STATE_NAMES if name.startswith("ee_r")}
    bounds["gripper_width"] = (0.0, robot.gripper_width_max)
    return {name: bounds[name] for name in contract.state_names if name in bounds}


def _out_of_bounds(
    key: str, names: tuple[str, ...], units: tuple[str, ...], s: FieldStatistics, bounds: dict[str, tuple[float, float]]
) -> Iterator[Mismatch]:
    for i, name in enumerate(names):
        if name not in bounds:
            continue
        low, high = bounds[name]
        slack = SLACK * (high - low)
        if s.q01[i] < low - slack or s.q99[i] > high + slack:
            seen = f"q01 {s.q01[i]:.4g}, q99 {s.q99[i]:.4g}: {_guess(s, i, units[i], high - low)}"
            yield Mismatch(f"statistics.{key}.{name}", f"values in [{low:.4g}, {high:.4g}] {units[i]}", seen)


def _guess(s: FieldStatistics, i: int, unit: str, width: float) -> str:
    """What would explain values beyond a range of that width."""
    seen = max(abs(s.q01[i]), abs(s.q99[i]))
    factor, other = {"rad": (180 / np.pi, "degrees"), "m": (1000.0, "millimetres")}.get(unit, (np.inf, ""))
    if seen > width * factor / 20:
        return f"in {other}?"
    return "of another robot, or of another dimension?"
