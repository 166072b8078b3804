"""A simulated arm in real time: the control loop ticked at absolute deadlines of the wall clock."""

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from volar.robots.body import ChunkSource
from volar.robots.control_loop import ControlLoop
from volar.robots.limit_margins import LimitMargins, MarginMeter
from volar.sim.sim_robot import SimulationDiverged
from volar.sim.world import TaskWorld

PRIORITY = 20  # of SCHED_FIFO, 1 to 99: above ordinary threads, below the kernel's interrupt threads (50)
SPIN_S = 0.0003  # a sleep overshoots by 0.06 to 0.2 ms on Linux; the rest is waited for awake


class Pacer:
    """Deadlines `period_ns` apart since `start`; time in nanoseconds since then."""

    def __init__(
        self,
        period_ns: int,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.period_ns = period_ns
        self._clock, self._sleep = clock, sleep
        self._start_ns, self._index = 0, 0

    def start(self) -> None:
        """The first deadline is now."""
        self._start_ns, self._index = self._clock(), -1

    @property
    def now_ns(self) -> int:
        return self._clock() - self._start_ns

    def wait(self) -> int:
        """Returns at the next deadline, or at once when it has passed. The periods that passed entirely are left
        out, not made up for; returns how many."""
        deadline_ns = (self._index + 1) * self.period_ns
        skipped = max(0, (self.now_ns - deadline_ns) // self.period_ns)
        self._index += 1 + skipped
        while (left_s := (self._index * self.period_ns - self.now_ns) / 1e9) > 0:
            if left_s > SPIN_S:
                self._sleep(left_s - SPIN_S)
        return skipped


@dataclass
class Timing:
    """When ticks began [ns] and how long they and the chunks took [s], over one run."""

    ticks_ns: list[int] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)  # tick and physics of one period
    chunk_s: list[float] = field(default_factory=list)  # from an observation's stamp until its chunk was there
    inference_s: list[float] = field(default_factory=list)  # in the policy's process
    skipped: int = 0

    def period_errors_s(self, period_s: float) -> NDArray[np.float64]:
        """How far each period was from `period_s`: absolute difference of successive tick starts [s]."""
        return np.abs(np.diff(np.array(self.ticks_ns, np.float64)) / 1e9 - period_s)


@dataclass(frozen=True)
class RealTimeRun:
    """One episode in real time. `qpos`: the scene after each policy step, for a film made afterwards.
    `real_time`: the loop's thread went before every ordinary one. `reason`: why the episode broke down, or ''."""

    success: bool
    duration_s: float
    holds: dict[str, int]
    refused: dict[str, int]
    margins: LimitMargins
    timing: Timing
    qpos: Sequence[NDArray[np.float64]]
    real_time: bool
    reason: str = ""


def run_in_real_time(
    world: TaskWorld,
    loop: ControlLoop,
    source: ChunkSource,
    pacer: Pacer,
    duration_s: float,
    check_every: int,
    inference_s: Callable[[], float | None] = lambda: None,
) -> RealTimeRun:
    """Ticks until success, looked for every `check_every` periods, or for `duration_s`.

    The world has been reset and the loop has its instruction. Between two ticks the physics goes on by the time
    between their deadlines, with periods that were skipped, so that the world keeps pace with the wall clock.
    `inference_s()`: how long the latest chunk took to compute. Physics that diverges ends the episode as a failure.
    """
    period_s = pacer.period_ns / 1e9
    meter, timing = MarginMeter(world.spec, period_s), Timing()
    holds: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    qpos = [world.data.qpos.copy()]
    success, reason, periods = False, "", round(duration_s / period_s)
    world.body.images()  # the first frame makes the OpenGL context, which takes longer than a period
    loop.reset(world.body.now_ns)
    with _without_garbage_collection(), real_time_scheduling() as real_time:
        pacer.start()
        try:
            for index in range(1, periods + 1):
                if skipped := pacer.wait():
                    timing.skipped += skipped
                    world.advance(skipped * period_s)
                now_ns = pacer.now_ns
                report = loop.tick(now_ns)
                world.advance(period_s)
                timing.ticks_ns.append(now_ns)
                meter.add(report.command)
                holds.update([report.reason] if report.reason else [])
                refused.update([report.refused] if report.refused else [])
                if report.chunk is not None:
                    timing.chunk_s.append((now_ns - report.chunk.stamp_ns) / 1e9)
                    if (seconds := inference_s()) is not None:
                        timing.inference_s.append(seconds)
                if index % check_every == 0:
                    qpos.append(world.data.qpos.copy())
                    success = world.success()
                timing.busy_s.append((pacer.now_ns - now_ns) / 1e9)
                if success or world.body.now_ns >= duration_s * 1e9:
                    break
        except SimulationDiverged as error:  # one broken episode must not take the others with it
            success, reason = False, str(error)
    return RealTimeRun(
        success, world.body.now_ns / 1e9, dict(holds), dict(refused), meter.result(), timing, qpos, real_time, reason
    )


@contextmanager
def real_time_scheduling() -> Iterator[bool]:
    """This thread before every ordinary one (SCHED_FIFO), where the system lets it: says whether it does.

    Threads and processes started meanwhile are ordinary. On a desktop the user needs `rtprio` in
    /etc/security/limits.conf, as for any real robot's driver; without it the loop competes like other programs.
    """
    if not hasattr(os, "SCHED_RESET_ON_FORK"):  # not on Linux
        yield False
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, policy, parameters)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A collection takes up to tens of milliseconds with everything that is imported."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
