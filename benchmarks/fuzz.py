"""The safety filter against random targets, its commands checked by a program that shares nothing with it.

    python -P benchmarks/fuzz.py [--ticks 500000] [--robot fr3] [--seed 0]

Targets: far steps, noise, slow drifts, NaN, infinities, none at all, gripper widths of any kind, from random places.
The checker knows the arm from its own numbers (libfranka's limits, Craig's DH parameters) and looks at finite
differences of the commanded positions alone. A sample is one joint's command of one tick. A violation is printed with
the seed of its run.
"""

import argparse
import sys
import time
from collections import Counter

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from volar.robots.kinematics import Arm
from volar.robots.safety import SafetyFilter
from volar.robots.spec import RobotSpec, load_robot

Array = NDArray[np.float64]
PERIOD_S = 0.01
RUN = 2000  # ticks from one random start
TOLERANCE = 1e-6

# Franka Research 3: libfranka's rate_limiting.h and franka_description, typed here once more on purpose.
FR3_LOW = np.array([-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159])
FR3_HIGH = np.array([2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159])
FR3_SPEED = np.array([2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26])
FR3_DH = ([0, 0, 0, 0.0825, -0.0825, 0, 0.088], [0, -1, 1, 1, -1, 1, 1], [0.333, 0, 0.316, 0, 0.384, 0, 0])
FR3_TIP_M = 0.107 + 0.1034  # flange, and the Franka hand's tool centre point
FR3_OFFSET = np.array([0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35])
FR3_GAIN = np.array([12.0, 5.17, 7.0, 8.0, 34.0, 11.0, 34.0])
FR3_END = np.array(
    [
        [-2.7501, -1.7918, -2.9065, -3.0481, -2.8101, 0.54092, -3.0196],
        [2.7501, 1.7918, 2.9065, -0.1458, 2.8101, 4.5205, 3.0196],
    ]
)


def fr3_speeds(q: Array) -> tuple[Array, Array]:
    """Velocity limits at positions (T, 7): lower and upper."""
    upper = np.clip(np.sqrt(np.maximum(0, FR3_GAIN * (FR3_END[1] - q))) - FR3_OFFSET, 0, FR3_SPEED)
    lower = np.clip(np.sqrt(np.maximum(0, FR3_GAIN * (q - FR3_END[0]))) - FR3_OFFSET, 0, FR3_SPEED)
    return -lower, upper


def fr3_tip(q: Array) -> Array:
    """Tool centre point (T, 3) of positions (T, 7), by Craig's modified DH parameters."""
    frames = np.tile(np.eye(4), (len(q), 1, 1))
    for i, (a, quarter, d) in enumerate(zip(*FR3_DH, strict=True)):
        c, s, ca, sa = np.cos(q[:, i]), np.sin(q[:, i]), np.cos(quarter * np.pi / 2), np.sin(quarter * np.pi / 2)
        step = np.zeros((len(q), 4, 4))
        step[:, 0, 0], step[:, 0, 1], step[:, 0, 3] = c, -s, a
        step[:, 1, 0], step[:, 1, 1], step[:, 1, 2], step[:, 1, 3] = s * ca, c * ca, -sa, -d * sa
        step[:, 2, 0], step[:, 2, 1], step[:, 2, 2], step[:, 2, 3] = s * sa, c * sa, ca, d * ca
        step[:, 3, 3] = 1
        frames = frames @ step
    tip: Array = frames[:, :3, 3] + FR3_TIP_M * frames[:, :3, 2]
    return tip


def violations(spec: RobotSpec, start: Array, q: Array, width_m: Array) -> Counter[str]:
    """What breaks a limit in commands (T, J) after a rest at `start` (J,): kind -> how many samples."""
    fr3 = spec.name == "fr3"
    low, high = (FR3_LOW, FR3_HIGH) if fr3 else (np.array(spec.position_min), np.array(spec.position_max))
    speed = FR3_SPEED if fr3 else np.array(spec.velocity_max)
    acceleration = np.full(7, 10.0) if fr3 else np.array(spec.acceleration_max)
    jerk = np.full(7, 5000.0) if fr3 else np.array(spec.jerk_max)
    rest = np.concatenate([np.tile(start, (3, 1)), q])
    dq, ddq, dddq = (np.diff(rest, n, axis=0) / PERIOD_S**n for n in (1, 2, 3))
    slack = 1 + TOLERANCE
    found = {
        "position": (q < low - TOLERANCE) | (q > high + TOLERANCE),
        "velocity": np.abs(dq) > speed * slack,
        "acceleration": np.abs(ddq) > acceleration * slack,
        "jerk": np.abs(dddq) > jerk * slack,
        "gripper width": (width_m < -TOLERANCE) | (width_m > spec.gripper_width_max + TOLERANCE),
        "gripper speed": np.abs(np.diff(width_m)) > spec.gripper_speed_max * PERIOD_S * slack,
    }
    if fr3:
        lower, upper = fr3_speeds(q)  # a mean velocity over a period in which the limit itself falls
        found["velocity at a position"] = (dq[2:] > upper + 0.02) | (dq[2:] < lower - 0.02)
        tip = fr3_tip(q)
        outside = np.maximum(np.array(spec.workspace_low) - tip, tip - np.array(spec.workspace_high)).max(axis=1)
        found["workspace"] = outside > max(0.0, float(outside[0])) + 0.001
    return Counter({kind: int(broken.sum()) for kind, broken in found.items() if broken.any()})


def run(safety: SafetyFilter, spec: RobotSpec, seed: int) -> tuple[Array, Array, Array]:
    """Where a run begins (J,), its commands (T, J) and widths (T,)."""
    rng = np.random.default_rng(seed)
    low, high, home = np.array(spec.position_min), np.array(spec.position_max), np.array(spec.home)
    start = home + rng.normal(0, 0.02, spec.joints)
    safety.reset(start, rng.uniform(0, spec.gripper_width_max))
    q, width_m = np.empty((RUN, spec.joints)), np.empty(RUN)
    target: Array | None = home
    for i in range(RUN):
        kind = rng.integers(0, 60)
        if kind == 0:
            target = rng.uniform(low - 0.5, high + 0.5)
        elif kind == 1:
            target = home + rng.normal(0, 0.3, spec.joints)
        elif kind == 2:
            target = np.where(rng.random(spec.joints) < 0.3, rng.choice([np.nan, np.inf, -np.inf]), home)
        elif kind == 3:
            target = None
        elif kind == 4:
            target = rng.choice([low, high])
        elif target is not None and kind < 20:
            target = target + rng.normal(0, 0.02, spec.joints)
        width = rng.choice([rng.uniform(-0.1, 0.2), np.nan, np.inf, 0.0, spec.gripper_width_max])
        command = safety.step(target, float(width)).command
        q[i], width_m[i] = command.q, command.gripper_width_m
    return start, q, width_m


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=int, default=500_000)
    parser.add_argument("--robot", default="fr3", choices=("fr3", "ur5e", "so101"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    spec = load_robot(options.robot)
    safety, found, runs = SafetyFilter(Arm(spec), PERIOD_S), Counter[str](), -(-options.ticks // RUN)
    start = time.perf_counter()
    for seed in track(
        range(options.seed, options.seed + runs), description=options.robot, disable=not sys.stderr.isatty()
    ):
        broken = violations(spec, *run(safety, spec, seed))
        if broken:
            print(f"seed {seed}: {dict(broken)}", flush=True)
        found += broken
    samples, seconds = runs * RUN * spec.joints, time.perf_counter() - start
    ticks = f"{samples:,} samples in {runs * RUN:,} ticks, {seconds:.0f} s"
    print(f"{options.robot}: {ticks}, violations: {dict(found) or 'none'}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
