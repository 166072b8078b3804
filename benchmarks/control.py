"""Timing of the control side: cost of a tick, and the loop on the wall clock while the policy is late.

    python -P benchmarks/control.py [ARTIFACT] [--seconds 60] [--latency-ms 50 150 300]

The body is the simulated arm, with its cameras; the policy answers in its own process, each chunk handed on once the
replayed latency has passed: the base, 3 % spikes up to 1 s, 10 % of replies lost. Another process burns one core
meanwhile. Without an artifact only the costs of a tick and of the safety filter are printed. What other rules make of
such a trace: benchmarks/control_rules.py; random targets: benchmarks/fuzz.py; through ROS 2: benchmarks/ros2.py.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from volar.robots.body import JointCommand, JointState
from volar.robots.control_loop import ControlLoop
from volar.robots.fr3 import FR3
from volar.robots.interface import ActionChunk, Observation
from volar.robots.kinematics import Arm
from volar.robots.policy_process import PolicyProcess
from volar.robots.real_time import Pacer, real_time_scheduling, without_garbage_collection
from volar.robots.safety import SafetyFilter
from volar.robots.spec import RobotSpec
from volar.sim.closed_loop import world_for
from volar.sim.wall_clock import run_in_real_time

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


def filter_cost(ticks: int = 20000) -> None:
    """Time of one `SafetyFilter.step` towards targets that change every 20 periods, a quarter of them out of bounds."""
    safety, rng, took = SafetyFilter(Arm(FR3), PERIOD_S), np.random.default_rng(0), []
    safety.reset(np.array(FR3.home), 0.0)
    target = np.array(FR3.home)
    for i in range(ticks):
        if i % 20 == 0:
            target = np.array(FR3.home) + rng.normal(0, 0.6, 7)
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


class LateSource:
    """A policy's process whose replies are late, and sometimes lost; `PolicyProcess` does the rest."""

    def __init__(self, policy: PolicyProcess, latency_s: float, seed: int = 0) -> None:
        self._policy, self._latency_s, self._rng = policy, latency_s, np.random.default_rng(seed)
        self._due_ns, self._held, self._lost = 0, None, False  # type: int, ActionChunk | None, bool

    @property
    def pending(self) -> bool:
        return self._policy.pending or self._held is not None

    @property
    def failure(self) -> str | None:
        return self._policy.failure

    def reset(self, seed: int) -> None:
        """What is awaited is of another episode, whose clock began anew."""
        self._held = None
        self._policy.reset(seed)

    def submit(self, observation: Observation) -> None:
        spike = self._rng.random() < 0.03
        wait_s = self._rng.uniform(0.5, 1.0) if spike else self._latency_s + self._rng.normal(0, 0.005)
        self._lost = self._rng.random() < 0.1
        self._due_ns = observation.stamp_ns + round(1e9 * max(0.0, wait_s))
        self._policy.submit(observation)

    def poll(self, now_ns: int) -> ActionChunk | None:
        self._held = self._held or self._policy.poll(now_ns)
        if self._held is None or now_ns < self._due_ns:
            return None
        chunk, self._held = self._held, None
        return None if self._lost else chunk


def real_time(artifact: Path, seconds: float, latency_ms: float) -> None:
    """Episodes of lift at 100 Hz on the wall clock until `seconds` have passed."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with PolicyProcess(artifact) as policy:
            world = world_for("lift", "fr3", policy.contract)
            source, pacer = LateSource(policy, latency_ms / 1e3), Pacer(round(PERIOD_S * 1e9))
            loop = ControlLoop.for_policy(world.body, Arm(FR3), policy.contract, source)
            errors: list[float] = []
            chunks: list[float] = []
            busy_s: list[float] = []
            holds, skipped, successes, runs, margin = Counter[str](), 0, 0, 0, 1.0
            while len(errors) < seconds / PERIOD_S:
                world.reset(runs)
                loop.set_instruction(world.instruction)
                source.reset(runs)
                run = run_in_real_time(world, loop, source, pacer, 20.0, 10)
                errors += (1e3 * run.timing.period_errors_s(PERIOD_S)).tolist()
                chunks += [1e3 * s for s in run.timing.chunk_s]
                busy_s += [1e3 * s for s in run.timing.busy_s]
                holds.update(run.holds)
                margin = min(margin, *vars(run.margins).values())
                skipped, successes, runs = skipped + run.timing.skipped, successes + run.success, runs + 1
            world.close()
    finally:
        busy.kill()
        busy.wait()
    print(f"\nlatency {latency_ms:g} ms, spikes to 1 s, 10 % lost; one core busy with something else")
    percentiles("period error", errors, "ms")
    percentiles("loop, physics and rendering in a period", busy_s, "ms")
    percentiles("observation to chunk", chunks, "ms")
    print(f"periods left out {skipped}, holds {dict(holds)}, smallest margin {margin:.3f}, success {successes}/{runs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, nargs="?", help="folder written by volar-export")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--latency-ms", type=float, nargs="+", default=[50.0, 150.0, 300.0])
    options = parser.parse_args()
    os.environ.setdefault("LP_NUM_THREADS", "0")  # as volar-control: Mesa renders in the loop's thread
    with without_garbage_collection(), real_time_scheduling():  # as the loop runs
        filter_cost()
        tick_cost()
    for latency_ms in options.latency_ms if options.artifact is not None else []:
        real_time(options.artifact, options.seconds, latency_ms)


if __name__ == "__main__":
    main()
