"""What randomization drew, against what came of it: on which axes does success depend?

A numeric axis is cut at its terciles, another one falls into its values. The effect is the difference in success
between the highest and the lowest third (between the best and the worst value), with an interval that holds for all
axes of a condition at once (Bonferroni), so that of many axes without any effect one rarely stands out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from volar.sim.episode_record import EpisodeRecord
from volar.sim.wilson import difference_interval, wilson_interval

LEAST = 10  # episodes in a group: with fewer nothing can be said
_MOST_VALUES = 8  # of an axis that is not numeric
_MOST_ELEMENTS = 3  # of an axis that has a value for each, before only their mean is looked at
_COMPONENTS = ("x", "y", "z", "w")
Draws = Mapping[str, Any]


def sensitivities(records: Iterable[EpisodeRecord]) -> dict[str, list[dict[str, Any]]]:
    """Condition -> its axes, the largest effect first, for every condition in which anything was drawn."""
    by_condition: dict[str, list[tuple[Draws, bool]]] = {}
    for record in records:
        if record.valid and record.draws:
            by_condition.setdefault(record.condition, []).append((record.draws, record.success))
    found = {condition: sensitivity(outcomes) for condition, outcomes in by_condition.items()}
    return {condition: axes for condition, axes in found.items() if axes}


def sensitivity(outcomes: Sequence[tuple[Draws, bool]], error: float = 0.05) -> list[dict[str, Any]]:
    """Draws and success of episodes -> the axes: `axis`, `groups` (`label`, `successes`, `episodes`, `success_rate`,
    `wilson95`), `effect` with its `interval`, and `matters`, whether the interval excludes zero.

    `error`: of any axis that has no effect being said to matter. Axes that vary too little to say anything are left
    out.
    """
    axes = {axis: _groups(values) for axis, values in _by_axis(outcomes).items()}
    axes = {axis: groups for axis, groups in axes.items() if len(groups.outcomes) > 1}
    z = NormalDist().inv_cdf(1 - error / (2 * max(sum(groups.comparisons for groups in axes.values()), 1)))
    found = [_judged(axis, groups, z) for axis, groups in axes.items()]
    return sorted(found, key=lambda item: (not item["matters"], -abs(item["effect"])))


@dataclass(frozen=True)
class _Groups:
    """Label -> outcomes. `ordered`: by a number, so that the ends are compared, and not each with each."""

    ordered: bool
    outcomes: Mapping[str, Sequence[bool]]

    @property
    def comparisons(self) -> int:
        return 1 if self.ordered else math.comb(len(self.outcomes), 2)


def _by_axis(outcomes: Sequence[tuple[Draws, bool]]) -> dict[str, list[tuple[Any, bool]]]:
    found: dict[str, list[tuple[Any, bool]]] = {}
    for draws, success in outcomes:
        for axis, drawn in draws.items():
            for name, value in () if axis.endswith("seed") else _parts(axis, drawn):
                found.setdefault(name, []).append((value, success))
    return found


def _parts(axis: str, drawn: Any) -> Iterable[tuple[str, Any]]:
    """What can be judged of a draw: `{"camera": {"wrist": [0.1, 0.2, 0.3]}}` -> camera.wrist.x, .y and .z.

    Of more than `_MOST_ELEMENTS` elements (the objects, the joints) the mean, so that each axis is asked few
    questions. What was drawn again and again within an episode is passed over: no single value says what it did.
    """
    if isinstance(drawn, Mapping):
        elements = [dict(_parts("", value)) for value in drawn.values()]
        if len(elements) <= _MOST_ELEMENTS:
            for name, parts in zip(drawn, elements, strict=True):
                yield from ((f"{axis}.{name}{part}", value) for part, value in parts.items())
        elif all(isinstance(value, (int, float)) for parts in elements for value in parts.values()):
            for part in elements[0]:
                yield f"{axis}{part}, mean of {len(elements)}", float(np.mean([parts[part] for parts in elements]))
    elif isinstance(drawn, (list, tuple)):
        if len(drawn) <= len(_COMPONENTS) and not any(isinstance(value, (Mapping, list, tuple)) for value in drawn):
            yield from ((f"{axis}.{name}", value) for name, value in zip(_COMPONENTS, drawn, strict=False))
    elif drawn is not None:
        yield axis, drawn


def _groups(values: Sequence[tuple[Any, bool]]) -> _Groups:
    """Without any group where the axis cannot be divided into ones of `LEAST`."""
    drawn = [value for value, _ in values]
    ordered = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in drawn)
    groups: dict[str, list[bool]] = {}
    if ordered:
        groups = _terciles(np.array(drawn, np.float64), np.array([success for _, success in values]))
    else:
        for value, success in values:
            groups.setdefault(str(value).lower() if isinstance(value, bool) else str(value), []).append(success)
    if not ordered and len(groups) > _MOST_VALUES:
        return _Groups(ordered, {})
    return _Groups(ordered, {label: found for label, found in groups.items() if len(found) >= LEAST})


def _terciles(drawn: Any, successes: Any) -> dict[str, list[bool]]:
    """Thirds by value; the values themselves where there are only a few (a count, a delay in periods)."""
    distinct = np.unique(drawn)
    if len(distinct) <= 5:
        return {f"{value:.4g}": successes[drawn == value].tolist() for value in distinct}
    edges = np.quantile(drawn, [0.0, 1 / 3, 2 / 3, 1.0])
    third = np.searchsorted(edges[1:3], drawn, side="left")  # (N,) in 0, 1, 2
    return {f"{edges[i]:.3g} to {edges[i + 1]:.3g}": successes[third == i].tolist() for i in range(3)}


def _judged(axis: str, groups: _Groups, z: float) -> dict[str, Any]:
    counts = [(sum(found), len(found)) for found in groups.outcomes.values()]
    low, high = counts[0], counts[-1]
    if not groups.ordered:
        low, high = (choose(counts, key=lambda count: count[0] / count[1]) for choose in (min, max))
    bounds = difference_interval(*high, *low, z=z)
    return {
        "axis": axis,
        "groups": [
            {
                "label": label,
                "successes": successes,
                "episodes": episodes,
                "success_rate": successes / episodes,
                "wilson95": list(wilson_interval(successes, episodes)),
            }
            for label, (successes, episodes) in zip(groups.outcomes, counts, strict=True)
        ],
        "effect": high[0] / high[1] - low[0] / low[1],
        "interval": list(bounds),
        "matters": bounds[0] > 0 or bounds[1] < 0,
    }
