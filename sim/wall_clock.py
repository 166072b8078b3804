"""A simulated arm in real time: the control loop ticked at absolute deadlines of the wall clock."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from volar.robots.body import ChunkSource
from volar.robots.control_loop import ControlLoop
from volar.robots.limit_margins import LimitMargins, MarginMeter
from volar.robots.real_time import Pacer, real_time_scheduling, without_garbage_collection
from volar.sim.sim_robot import SimulationDiverged
from volar.sim.world import TaskWorld


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
    with without_garbage_collection(), real_time_scheduling() as real_time:
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
