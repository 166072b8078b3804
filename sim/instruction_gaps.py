"""What it changes how a policy is told: success rates of the same episodes, one less the other.

The grounding gap is the rate under the right order less that under another one, both judged by the right order's goal:
as large as the success rate for a policy that does what it is told, 0 for one that does the same whatever it hears.
The phrasing gap is the rate under phrasings that no demonstration has less that under those it has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from volar.sim.comparison import outcomes
from volar.sim.conditions import HELD_OUT_INSTRUCTION, STANDARD, WRONG_INSTRUCTION
from volar.sim.paired_test import Pairs, paired_interval

Results = Mapping[str, Any]
GROUNDING, PHRASING = "grounding_gap", "phrasing_gap"  # in results.json
# Condition that is measured against the standard one -> name of the gap, and a, b: it is the rate of b less that of a.
GAPS = {
    WRONG_INSTRUCTION: (GROUNDING, (WRONG_INSTRUCTION, STANDARD)),
    HELD_OUT_INSTRUCTION: (PHRASING, (STANDARD, HELD_OUT_INSTRUCTION)),
}


def gaps(summaries: Mapping[str, Results]) -> dict[str, Any]:
    """Name -> `overall`, and `tasks` by name: `episodes`, `difference` and its paired `interval` in [-1, 1].

    `summaries`: of each condition, as `volar.sim.results.summarize` has them. Without the gaps whose condition was not
    run, and without the tasks in which no episode counts. Episodes are paired by task and seed; their number must have
    been fixed before, as for every interval of this kind.
    """
    found = {}
    for condition, (name, (a, b)) in GAPS.items():
        if condition not in summaries:
            continue
        by_task = outcomes(summaries[a], summaries[b])
        if by_task:
            together = [pair for pairs in by_task.values() for pair in pairs]
            tasks = {task: _gap(pairs) for task, pairs in by_task.items()}
            found[name] = {"overall": _gap(together), "tasks": tasks}
    return found


def _gap(found: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    pairs = Pairs.count(found)
    interval = list(paired_interval(pairs))
    return {"episodes": pairs.episodes, "difference": pairs.difference, "interval": interval}


def points(gap: Results) -> str:
    """`+90.9`, percentage points."""
    return f"{100 * gap['difference']:+.1f}"


def points_interval(gap: Results) -> str:
    """`+88.3 to +92.9`."""
    low, high = gap["interval"]
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def sentences(results: Results) -> list[str]:
    """Each gap over all episodes, in words; none for results of before they were kept."""
    said = {GROUNDING: "right order less another one", PHRASING: "new phrasing less the usual one"}
    return [
        f"{name.replace('_', ' ')} ({what}, the same {results[name]['overall']['episodes']} episodes): "
        f"{points(results[name]['overall'])} points, 95 % interval {points_interval(results[name]['overall'])}"
        for name, what in said.items()
        if name in results
    ]
