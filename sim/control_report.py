"""What control.json says about runs in real time, and how the terminal shows it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from volar.robots.limit_margins import LimitMargins
from volar.robots.loop_state import LATCHING, NOT_THE_POLICYS
from volar.sim.evaluation import versions
from volar.sim.wall_clock import RealTimeRun
from volar.sim.wilson import wilson_interval

PERIOD_ERROR_TARGET_MS = 2.0  # p99 of the period error, with the policy running beside the loop


@dataclass(frozen=True)
class Run:
    """One episode: its scene's seed, what the policy was told, what happened."""

    seed: int
    instruction: str
    result: RealTimeRun

    @property
    def stopped_by(self) -> str:
        """The fault that stopped the arm for good, or ''."""
        return next((reason for reason in self.result.holds if reason in LATCHING), "")  # in order of appearance

    @property
    def counts(self) -> bool:
        """False where the computer or the robot put an end to it: such a run says nothing of the policy."""
        return self.result.success or self.stopped_by not in NOT_THE_POLICYS


def summarize(runs: Sequence[Run], period_s: float) -> dict[str, Any]:
    """Success with its interval, timing, holds and margins over all runs, then each run; plain values.

    `success_rate` and `wilson95` are of the `counted` runs, None without any; `not_counted`: fault -> runs that the
    computer or the robot stopped by it. `reason` of a run, where it broke down; it counts as a failure, and `invalid`
    counts such runs.
    """
    results = [run.result for run in runs]
    successes = sum(result.success for result in results)
    counted = sum(run.counts for run in runs)
    holds: Counter[str] = Counter()
    margins = LimitMargins()
    for result in results:
        holds.update(result.holds)
        margins = margins.worst(result.margins)
    timings = [result.timing for result in results]
    errors_s = [timing.period_errors_s(period_s) for timing in timings]
    return {
        "successes": successes,
        "episodes": len(runs),
        "counted": counted,
        "not_counted": dict(sorted(Counter(run.stopped_by for run in runs if not run.counts).items())),
        "success_rate": successes / counted if counted else None,
        "invalid": sum(bool(result.reason) for result in results),
        "wilson95": list(wilson_interval(successes, counted)) if counted else None,
        "scheduling": "real-time" if all(result.real_time for result in results) else "normal",
        "period_ms": 1e3 * period_s,
        "ticks": sum(len(timing.ticks_ns) for timing in timings),
        "periods_skipped": sum(timing.skipped for timing in timings),
        "period_error_ms": percentiles_ms(np.concatenate(errors_s)),
        "busy_ms": percentiles_ms(np.concatenate([timing.busy_s for timing in timings])),
        "inference_ms": percentiles_ms(np.concatenate([timing.inference_s for timing in timings])),
        "observation_to_chunk_ms": percentiles_ms(np.concatenate([timing.chunk_s for timing in timings])),
        "holds": dict(sorted(holds.items())),
        "margins": asdict(margins),
        "runs": [
            {
                "seed": run.seed,
                "instruction": run.instruction,
                "success": run.result.success,
                "reason": run.result.reason,
                "stopped_by": run.stopped_by,
                "duration_s": run.result.duration_s,
                "holds": run.result.holds,
                "refused": run.result.refused,
                "margins": asdict(run.result.margins),
            }
            for run in runs
        ],
        "versions": versions(),
    }


def percentiles_ms(values_s: ArrayLike) -> dict[str, float] | None:
    """p50, p99 and max of times in seconds, in milliseconds; None without any."""
    values = np.asarray(values_s, np.float64) * 1e3
    if values.size == 0:
        return None
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(float(values.max()), 3)}


def print_summary(result: Mapping[str, Any]) -> None:
    """The figures of control.json on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table("ms", title=f"{result['robot']}: {result['instruction'] or result['task']}")
    for column in ("p50", "p99", "max"):
        table.add_column(column, justify="right")
    for label, key in (
        ("period error", "period_error_ms"),
        ("loop busy", "busy_ms"),
        ("inference", "inference_ms"),
        ("observation to actions", "observation_to_chunk_ms"),
    ):
        if key not in result:
            continue
        values = result[key]
        table.add_row(label, *(f"{values[name]:.2f}" if values else "-" for name in ("p50", "p99", "max")))
    console = Console(highlight=False)
    console.print(table)
    if "successes" in result:  # on a real arm nobody knows
        console.print(_success(result))
    for run in result.get("runs", ()):
        if run["reason"]:
            console.print(f"broke down and counts as a failure: {run['reason']}")
    holds = result["holds"]
    console.print(f"holds, in {result['ticks']} control periods: {_counts(holds) or 'none'}")
    if others := {reason: count for reason, count in holds.items() if reason in NOT_THE_POLICYS}:
        console.print(f"of these the computer's or the robot's, not the policy's: {_counts(others)}")
    if result.get("policy_error"):
        console.print(f"the policy gave no chunk, the last time because: {result['policy_error']}")
    console.print(
        "smallest margins to limits: " + ", ".join(f"{name} {value:.0%}" for name, value in result["margins"].items())
    )
    error = result["period_error_ms"]
    if result["periods_skipped"] or (error and error["p99"] > PERIOD_ERROR_TARGET_MS):
        console.print(
            f"note: the period was not kept (target p99 {PERIOD_ERROR_TARGET_MS:g} ms; {result['periods_skipped']} "
            f"periods skipped): the cores are busy, and scheduling is {result['scheduling']}"
        )


def _success(result: Mapping[str, Any]) -> str:
    text = "success unknown: no episode counts"
    if result["counted"]:
        low, high = result["wilson95"]
        text = f"success {result['successes']}/{result['counted']} ({100 * low:.0f}–{100 * high:.0f} %)"
    if result["not_counted"]:
        text += f"; not counted, stopped by the computer or the robot: {_counts(result['not_counted'])}"
    return text


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.items())
