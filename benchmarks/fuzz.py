"""The safety filter against random targets, its commands checked by a program that shares nothing with it.

    python -P benchmarks/fuzz.py [--ticks 500000] [--robot fr3] [--seed 0]

Targets: far steps, noise, slow drifts, single joints to their ends, NaN, infinities, none at all, gripper widths of any
kind, from random places, every other run with a post beside the hand. The checker knows the arms from its own numbers
(libfranka's limits, the makers' tables of Denavit-Hartenberg parameters, the SO-101's URDF) and looks at finite
differences of the commanded positions alone; distances, in one run of ten, are MuJoCo's. A sample is one joint's
command of one tick. A violation is printed with its seed: `--seed SEED --ticks 2000` does it again, and a run that was
interrupted goes on with `--seed`.
"""

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from volar.robots.collision import Box, CollisionGuard
from volar.robots.kinematics import Arm
from volar.robots.safety import SafetyFilter
from volar.robots.spec import load_robot

Array = NDArray[np.float64]
PERIOD_S, RUN, RESETS = 0.01, 2000, 4  # ticks of a seed, and how often it starts anew
EPS = 1e-3  # kLimitEps of libfranka, by which it lowers each of its limits
# Both are looked at in moments: the box gives way by that much, and of a margin of 5 mm to shapes that much is left.
BOX_SLACK_M, NEAREST_M = 1e-4, 0.002
QUARTER = np.pi / 2


@dataclass(frozen=True)
class Maker:
    """What the maker says, typed here once more on purpose: (J,) [rad], [rad/s], then rad/s^2, rad/s^3, m, m/s, m."""

    low: Array
    high: Array
    speed: Array
    acceleration: float
    jerk: float
    width_m: float
    gripper_m_s: float
    box: tuple[tuple[float, ...], tuple[float, ...]]


REACH = ((0.25, -0.35, 0.005), (0.75, 0.35, 0.60))
FULL_TURN = np.deg2rad([360.0, 360, 180, 360, 360, 360])
SO101_END = np.array([1.92, 1.7454, 1.69, 1.6581, 2.7926])
MAKERS = {
    "fr3": Maker(
        np.array([-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159]),
        np.array([2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159]),
        np.array([2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26]), 10.0 - EPS, 5000.0 - EPS, 0.08, 0.1, REACH,
    ),
    "ur5e": Maker(-FULL_TURN, FULL_TURN, np.full(6, np.pi), 10.0, 1000.0, 0.085, 0.15, REACH),
    "so101": Maker(
        -SO101_END, SO101_END, np.full(5, 4.7), 20.0, 1000.0, 0.05, 0.15, ((0.1, -0.17, 0.003), (0.33, 0.17, 0.3))
    ),
}  # fmt: skip
# rate_limiting.h, FR3: speed <= -offset + sqrt(gain (upper end - q)), and its mirror at the lower end.
FR3_OFFSET = np.array([0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35])
FR3_GAIN = np.array([12.0, 5.17, 7.0, 8.0, 34.0, 11.0, 34.0])
FR3_LOWER_END = np.array([-2.7501, -1.7918, -2.9065, -3.0481, -2.8101, 0.54092, -3.0196])
FR3_UPPER_END = np.array([2.7501, 1.7918, 2.9065, -0.1458, 2.8101, 4.5205, 3.0196])

FR3_DH = ([0, 0, 0, 0.0825, -0.0825, 0, 0.088], [0, -1, 1, 1, -1, 1, 1], [0.333, 0, 0.316, 0, 0.384, 0, 0])
FR3_TIP_M = 0.107 + 0.1034  # flange, and the Franka hand's tool centre point
UR5E_DH = ([0.1625, 0, 0, 0.1333, 0.0997, 0.0996], [0, -0.425, -0.3922, 0, 0, 0], [1, 0, 0, 1, -1, 0])
UR5E_TIP_M = 0.1538
# Origin, x and y axes of each joint in the one before; the last turns the other way round.
SO101_FRAMES = (
    ((0.0388353, 0, 0.0624), (-1, 0, 0), (0, 1, 0)),
    ((-0.0303992, -0.0182778, -0.0542), (0, 0, 1), (1, 0, 0)),
    ((-0.11257, -0.028, 0), (0, 1, 0), (-1, 0, 0)),
    ((-0.1349, 0.0052, 0), (0, -1, 0), (1, 0, 0)),
    ((0, -0.0611, 0.0181), (0, 0, 1), (-1, 0, 0)),
)
SO101_TIP_M = (0.0, 0.0066, 0.0921)


def frame(rotation: object, position: object) -> Array:
    """A homogeneous transform (4, 4) from a rotation (3, 3) and a position (3,)."""
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = rotation, position
    return transform


def about_x(angle: float) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def about_z(angle: Array) -> Array:
    """Transforms (T, 4, 4) for angles (T,) [rad]."""
    turned = np.tile(np.eye(4), (len(angle), 1, 1))
    turned[:, 0, 0] = turned[:, 1, 1] = np.cos(angle)
    turned[:, 1, 0] = np.sin(angle)
    turned[:, 0, 1] = -turned[:, 1, 0]
    return turned


def tip(name: str, q: Array) -> Array:
    """Tool centre point (T, 3) at positions (T, J), in the base frame."""
    frames, end = np.eye(4), (0.0, 0.0, FR3_TIP_M)
    if name == "fr3":  # Craig: along and about x before the joint
        for i, (a, quarter, d) in enumerate(zip(*FR3_DH, strict=True)):
            frames = frames @ frame(about_x(quarter * QUARTER), (a, 0, 0)) @ about_z(q[:, i])
            frames = frames @ frame(np.eye(3), (0, 0, d))
    elif name == "ur5e":  # after the joint; ROS's base_link is turned by pi
        frames, end = frame(np.diag([-1, -1, 1]), (0, 0, 0)), (0.0, 0.0, UR5E_TIP_M)
        for i, (d, a, quarter) in enumerate(zip(*UR5E_DH, strict=True)):
            frames = frames @ about_z(q[:, i]) @ frame(about_x(quarter * QUARTER), (a, 0, d))
    else:
        end = SO101_TIP_M
        for i, (origin, x, y) in enumerate(SO101_FRAMES):
            turn = -q[:, i] if i == 4 else q[:, i]
            frames = frames @ frame(np.stack([x, y, np.cross(x, y)], axis=1), origin) @ about_z(turn)
    reached: Array = (frames @ np.array([*end, 1.0]))[:, :3]
    return reached


def fr3_speeds(q: Array) -> tuple[Array, Array]:
    """libfranka's velocity limits at positions (T, 7): lower and upper."""
    speed = MAKERS["fr3"].speed
    upper = np.clip(np.sqrt(np.maximum(0, FR3_GAIN * (FR3_UPPER_END - q))) - FR3_OFFSET, 0, speed) - EPS
    lower = np.clip(np.sqrt(np.maximum(0, FR3_GAIN * (q - FR3_LOWER_END))) - FR3_OFFSET, 0, speed) - EPS
    return -np.maximum(lower, 0), np.maximum(upper, 0)


def violations(name: str, q: Array, width_m: Array) -> Counter[str]:
    """What breaks a limit in commands (T, J), widths (T,) after a rest at the first: kind -> how many samples."""
    maker = MAKERS[name]
    rest = np.concatenate([q[:1], q[:1], q])
    dq, ddq, dddq = (np.diff(rest, n, axis=0) / PERIOD_S**n for n in (1, 2, 3))
    at = tip(name, q)
    outside_m = np.maximum(np.array(maker.box[0]) - at, at - np.array(maker.box[1])).max(axis=1)
    found = {
        "position": (q < maker.low) | (q > maker.high),
        "velocity": np.abs(dq) > maker.speed + 1e-9,
        "acceleration": np.abs(ddq) > maker.acceleration,
        "jerk": np.abs(dddq) > maker.jerk,
        "gripper width": (width_m < 0) | (width_m > maker.width_m),
        "gripper speed": np.abs(np.diff(width_m)) > maker.gripper_m_s * PERIOD_S + 1e-12,
        "workspace": outside_m > max(0.0, float(outside_m[0])) + BOX_SLACK_M,
    }
    if name == "fr3":
        broken = np.zeros(dq.shape, bool)
        for there in (rest[1:], rest[:-1]):  # where a period begins, and where it ends
            lower, upper = fr3_speeds(there)
            broken |= (dq > upper) | (dq < lower)
        found["velocity at a position"] = broken
    return Counter({kind: int(broken.sum()) for kind, broken in found.items() if broken.any()})


def next_target(rng: np.random.Generator, maker: Maker, home: Array, here: Array, target: Array | None) -> Array | None:
    """Another target (J,), the one before, or that a little off; None for none at all."""
    kind, joints = rng.integers(0, 80), len(home)
    if kind == 0:
        return rng.uniform(maker.low - 0.5, maker.high + 0.5)
    if kind == 1:
        return home + rng.normal(0, 0.4, joints)
    if kind == 2:
        return np.where(rng.random(joints) < 0.3, rng.choice([np.nan, np.inf, -np.inf]), home)
    if kind == 3:
        return None
    if kind == 4:
        return np.asarray(rng.choice([maker.low, maker.high]) + rng.normal(0, 0.02, joints))
    if kind == 5:
        return np.full(joints, rng.choice([1e300, -1e300, 1e9]))
    if kind in (6, 7):  # stay, or one joint to its end
        joint = rng.integers(joints)
        return here if kind == 6 else np.where(np.arange(joints) == joint, rng.choice([maker.low, maker.high]), here)
    return target + rng.normal(0, 0.02, joints) if kind < 25 and target is not None else target


def run(name: str, arm: Arm, seed: int) -> Counter[str]:
    """The violations of one seed's commands: `RUN` ticks."""
    rng, maker, home = np.random.default_rng(seed), MAKERS[name], np.array(arm.spec.home)
    beside = arm.forward(home).position + rng.uniform([0.0, 0.08, -0.1], [0.15, 0.2, 0.0])
    posts = [Box("post", tuple(beside.tolist()), (0.03, 0.03, 0.1))] if seed % 2 else []
    safety, found = SafetyFilter(arm, PERIOD_S, obstacles=posts), Counter[str]()
    exact = CollisionGuard(arm.spec, posts) if seed % 10 == 1 else None
    for _ in range(RESETS):
        start = np.clip(home + rng.normal(0, 0.03, len(home)), maker.low + 1e-3, maker.high - 1e-3)
        q, width_m = np.empty((RUN // RESETS + 1, len(home))), np.empty(RUN // RESETS + 1)
        q[0], width_m[0] = start, rng.uniform(0, maker.width_m)
        safety.reset(start, float(width_m[0]))
        target: Array | None = home
        for i in range(1, len(q)):
            target = next_target(rng, maker, home, q[i - 1], target)
            # Seldom: one that is not finite brakes the arm, too, and an arm that always brakes tries no limit.
            odd = [np.nan, np.inf, -np.inf] if rng.random() < 0.005 else [rng.uniform(-0.1, 0.2), 1e300, 0.0, 0.04]
            command = safety.step(target, float(rng.choice(odd))).command
            q[i], width_m[i] = command.q, command.gripper_width_m
        found += violations(name, q, width_m)
        if exact is not None:
            distance_m = min(exact.distance(row)[0] for row in q[1::5])
            found["distance"] += distance_m < min(NEAREST_M, exact.distance(start)[0] - 5e-4)
    return +found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=int, default=500_000)
    parser.add_argument("--robot", default="fr3", choices=tuple(MAKERS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    arm, found, runs = Arm(load_robot(options.robot)), Counter[str](), -(-options.ticks // RUN)
    seeds, begun = range(options.seed, options.seed + runs), time.perf_counter()
    for seed in track(seeds, description=options.robot, disable=not sys.stderr.isatty()):
        broken = run(options.robot, arm, seed)
        if broken:
            print(f"seed {seed}: {dict(broken)}", flush=True)
        found += broken
    samples, seconds = runs * RUN * arm.spec.joints, time.perf_counter() - begun
    ticks = f"{samples:,} samples in {runs * RUN:,} ticks, {seconds:.0f} s"
    print(f"{options.robot}: {ticks}, violations: {dict(found) or 'none'}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
