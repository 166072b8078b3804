"""From records to rates: what results.json says of each task and of all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from volar.robots.limit_margins import LimitMargins
from volar.sim.episode_record import EpisodeRecord
from volar.sim.sequential import confidence_sequence, mean_interval
from volar.sim.wilson import wilson_interval


def tally(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Success rate with its Wilson interval. `invalid`: seeds that do not count, which `episodes` leaves out;
    `broken`: episodes that crashed, which count as failures. Without any episode, rate and interval are None."""
    counted = [record for record in records if record.valid]
    successes, episodes = sum(record.success for record in counted), len(counted)
    return {
        "successes": successes,
        "episodes": episodes,
        "success_rate": successes / episodes if episodes else None,
        "wilson95": list(wilson_interval(successes, episodes)) if episodes else None,
        "invalid": len(records) - episodes,
        "broken": sum(record.broken for record in counted),
    }


def summarize(records: Sequence[EpisodeRecord], tasks: Iterable[str]) -> dict[str, Any]:
    """`overall`, `tasks` and `episodes` of one condition, ordered by task and index."""
    by_task = {task: sorted((r for r in records if r.task == task), key=lambda r: r.index) for task in tasks}
    ordered = [record for found in by_task.values() for record in found]
    return {
        "overall": tally(ordered),
        "tasks": {task: tally(found) for task, found in by_task.items()},
        "episodes": [record.to_dict() for record in ordered],
    }


def summarize_sequential(
    records: Sequence[EpisodeRecord], ends: Mapping[str, int | None], margin: float
) -> dict[str, Any]:
    """As `summarize`, where each task of `ends` stopped after that index (None: it did not reach its `margin`).

    `wilson95` is None everywhere: it is the interval of a number of episodes that was fixed before, and this one was
    not. `sequence95` is valid whenever one stops. The overall rate is the mean of the tasks' rates, because the number
    of episodes of a task depends on its rate; `stopped` says of a task whether its interval is as narrow as wanted,
    and overall whether all are.
    """
    summary = summarize(records, ends)
    for task, found in summary["tasks"].items():
        bounds = confidence_sequence(found["successes"], found["episodes"])
        found |= {"wilson95": None, "sequence95": list(bounds), "stopped": ends[task] is not None, "margin": margin}
    tallies = list(summary["tasks"].values())
    rates = [found["success_rate"] for found in tallies]
    summary["overall"] |= {
        "success_rate": None if None in rates else sum(rates) / len(rates),
        "wilson95": None,
        "sequence95": list(mean_interval((found["successes"], found["episodes"]) for found in tallies)),
        "stopped": all(found["stopped"] for found in tallies),
        "margin": margin,
    }
    return summary


def interval(tally: Mapping[str, Any]) -> tuple[float, float]:
    """The 95 % interval of a tally, of whichever kind it has; all of [0, 1] without any episode."""
    low, high = tally.get("sequence95") or tally["wilson95"] or (0.0, 1.0)
    return low, high


def worst_margins(records: Iterable[EpisodeRecord]) -> dict[str, float]:
    """The smallest of each margin over all episodes."""
    margins = LimitMargins()
    for record in records:
        margins = margins.worst(record.margins)
    return asdict(margins)
