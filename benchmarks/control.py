"""Timing of the control side: period error of the loop with the policy in its own process, cost of a tick.

    python benchmarks/control.py ARTIFACT [--seconds 30]

The body is an exact one on the wall clock, so that nothing but the loop, the filter and the policy is
measured. Without an artifact only the costs of a tick and of the safety filter are printed.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from volar.robots.body import JointCommand, JointState
from volar.robots.control_loop import ControlLoop
from volar.robots.fr3 import FR3
from volar.robots.interface import ActionChunk
from volar.robots.kinematics import Arm
from volar.robots.policy_process import PolicyProcess
from volar.robots.safety import SafetyFilter
from volar.robots.spec import RobotSpec

Vector = NDArray[np.float64]
PERIOD_S = 0.01


class ExactBody:
    """Does what it is told, at once; images of noise in the sizes asked for."""

    def __init__(self, clock: Callable[[], int], sizes: dict[str, tuple[int, int]]) -> None:
        rng = np.random.default_rng(0)
        self._clock = clock
        self._state: tuple[Vector, Vector, float] = np.array(FR3.home), np.zeros(7), FR3.gripper_width_max
        self._images = {name: rng.integers(0, 256, (h, w, 3), np.uint8) for name, (h, w) in sizes.items()}

    @property
    def spec(self) -> RobotSpec:
        return FR3

    def joint_state(self) -> JointState:
        return JointState(*self._state, self._clock())

    def images(self) -> dict[str, NDArray[np.uint8]]:
        for image in self._images.values():
            image[0, 0] += 1  # no camera gives the same bytes twice
        return self._images

    def send(self, command: JointCommand) -> None:
        self._state = command.q, command.dq, command.gripper_width_m


def percentiles(name: str, values: list[float], unit: str) -> None:
    p50, p99, p999 = np.percentile(values, [50, 99, 99.9])
    print(
        f"{name:42s} p50 {p50:8.3f}  p99 {p99:8.3f}  p99.9 {p999:8.3f}  max {max(values):8.3f} {unit}  n {len(values)}"
    )


def filter_cost(ticks: int = 5000) -> None:
    """Time of one `SafetyFilter.step` towards targets that change every 20 periods."""
    safety, rng, took = SafetyFilter(Arm(FR3), PERIOD_S), np.random.default_rng(0), []
    safety.reset(np.array(FR3.home), 0.0)
    target = np.array(FR3.home)
    for i in range(ticks):
        if i % 20 == 0:
            target = np.array(FR3.home) + rng.normal(0, 0.1, 7)
        start = time.perf_counter()
        safety.step(target, 0.0)
        took.append(1e6 * (time.perf_counter() - start))
    percentiles("safety filter, one step", took, "us")


def tick_cost(ticks: int = 5000) -> None:
    """Time of one tick without a policy: integration, inverse kinematics, filter."""
    now_ns, took = 0, []
    loop = ControlLoop(ExactBody(lambda: now_ns, {}), Arm(FR3), FR3.action)
    loop.reset(0)
    for i in range(ticks):
        if i % 10 == 0:
            angle = i / 300
            action = [0.01 * np.cos(angle), 0.01 * np.sin(angle), 0.0, 0.0, 0.0, 0.0, 1.0]
            loop.push(ActionChunk(np.array([action], np.float32), now_ns, 0.1), now_ns)
        start = time.perf_counter()
        loop.tick(now_ns)
        took.append(1e6 * (time.perf_counter() - start))
        now_ns += round(PERIOD_S * 1e9)
    percentiles("control tick, without a policy", took, "us")


def period_error(artifact: Path, seconds: float) -> None:
    """The loop at 100 Hz on the wall clock while the policy answers in its process."""
    with PolicyProcess(artifact) as policy:
        sizes = {camera.name: (camera.height, camera.width) for camera in policy.contract.cameras}
        loop = ControlLoop.for_policy(ExactBody(time.monotonic_ns, sizes), Arm(FR3), policy.contract, policy)
        loop.set_instruction("lift the red block")
        loop.reset(time.monotonic_ns())
        starts: list[int] = []
        took: list[float] = []
        predicted: list[float] = []
        reasons: dict[str, int] = {}
        next_ns = time.monotonic_ns()
        while len(starts) < seconds / PERIOD_S:
            time.sleep(max(0.0, (next_ns - time.monotonic_ns()) / 1e9))
            now_ns = time.monotonic_ns()
            starts.append(now_ns)
            report = loop.tick(now_ns)
            took.append((time.monotonic_ns() - now_ns) / 1e3)
            if report.reason:
                reasons[report.reason] = reasons.get(report.reason, 0) + 1
            if report.chunk is not None and policy.status.predict_s is not None:
                predicted.append(1e3 * policy.status.predict_s)
            next_ns += round(PERIOD_S * 1e9)
    percentiles("period error, policy in its process", (np.abs(np.diff(starts) / 1e6 - 1e3 * PERIOD_S)).tolist(), "ms")
    percentiles("control tick, with a policy", took, "us")
    percentiles("policy inference", predicted, "ms")
    print(f"holds: {reasons or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, nargs="?", help="folder written by volar-export")
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    filter_cost()
    tick_cost()
    if options.artifact is not None:
        period_error(options.artifact, options.seconds)


if __name__ == "__main__":
    main()
