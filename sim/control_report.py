"""What control.json says about runs in real time, and how the terminal shows it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from volar.robots.limit_margins import LimitMargins
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


def summarize(runs: Sequence[Run], period_s: float) -> dict[str, Any]:
    """Success with its interval, timing, holds and margins over all runs, then each run; plain values.

    `reason` of a run, where it broke down; it counts as a failure, and `invalid` counts such runs.
    """
    results = [run.result for run in runs]
    successes = sum(result.success for result in results)
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
        "success_rate": successes / len(runs),
        "invalid": sum(bool(result.reason) for result in results),
        "wilson95": list(wilson_interval(successes, len(runs))),
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
        low, high = result["wilson95"]
        console.print(f"success {result['successes']}/{result['episodes']} ({100 * low:.0f}–{100 * high:.0f} %)")
    for run in result.get("runs", ()):
        if run["reason"]:
            console.print(f"broke down and counts as a failure: {run['reason']}")
    holds = ", ".join(f"{reason} {count}" for reason, count in result["holds"].items()) or "none"
    console.print(f"holds, in {result['ticks']} control periods: {holds}")
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
