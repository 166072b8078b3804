"""Comparing evaluations that ran the same episodes: who is better, by how much, what would settle it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volar.robots.errors import VolarError
from volar.sim.paired_test import ALPHA, Pairs, episodes_needed, holm, mcnemar, paired_interval

# What must be the same for two evaluations to have had the same episodes, and to differ by the policy alone.
_PAIRING = ("robot", "asset", "seed", "randomization", "max_steps", "latency_ms")
_PAIRING_WHERE_KNOWN = ("randomization_fingerprint",)  # older results lack it
Results = Mapping[str, Any]


def require_paired(first: Results, other: Results, names: tuple[str, str]) -> None:
    """Raises `VolarError` naming every field in which two evaluations' episodes differ."""
    where = " and ".join(names)
    for name, found in zip(names, (first, other), strict=True):
        if found.get("stop", "never") != "never":
            raise VolarError(
                f"{name} stopped early, when its own rate was settled, and its interval is no ground for comparing; "
                "continue it with stop=never resume=true"
            )
    fields = {key: (first.get(key), other.get(key)) for key in _PAIRING}
    known = [key for key in _PAIRING_WHERE_KNOWN if key in first and key in other]
    fields |= {key: (first[key], other[key]) for key in known}
    fields["tasks"] = (", ".join(first["tasks"]), ", ".join(other["tasks"]))
    fields["episodes"] = (_number_of_episodes(first), _number_of_episodes(other))
    differing = [f"{key} {a} and {b}" for key, (a, b) in fields.items() if a != b]
    if differing:
        raise VolarError(
            f"{where} did not run the same episodes: {'; '.join(differing)}; run one again with the other's settings"
        )
    for a, b in zip(first["episodes"], other["episodes"], strict=True):
        starts = {episode.get("start_sha256") for episode in (a, b)} - {"", None}  # a dead worker could tell none
        if any(a.get(key) != b.get(key) for key in ("task", "index", "seed", "valid")) or len(starts) > 1:
            raise VolarError(
                f"{where} did not start episode {a['index']} of {a['task']} in the same scene (seeds {a['seed']} and "
                f"{b['seed']}; versions {_versions(first)} and {_versions(other)}); run both with the same volar"
            )


def versions_note(first: Results, other: Results, names: tuple[str, str]) -> str:
    """That volar or MuJoCo differ, or an empty string.

    A note and no refusal: `require_paired` has seen that every episode began alike, so results of an older commit stay
    comparable; but what came after the start may differ for another reason than the policy.
    """
    a, b = _versions(first), _versions(other)
    return "" if a == b else f"note: {names[0]} ran with {a}, {names[1]} with {b}; physics may differ between them"


def compare(first: Results, others: Sequence[Results]) -> list[dict[str, Any]]:
    """Each of `others` against the first: `overall`, and `tasks` by name, as `judge` has them.

    `overall` is corrected for the number of comparisons, and a task for the number of tasks (Holm). Call
    `require_paired` before.
    """
    by_task = [outcomes(first, other) for other in others]
    overall = _judge_all([Pairs.count(o for pairs in found.values() for o in pairs) for found in by_task])
    tasks = [
        dict(zip(found, _judge_all([Pairs.count(pairs) for pairs in found.values()]), strict=True)) for found in by_task
    ]
    return [{"overall": judged, "tasks": judged_tasks} for judged, judged_tasks in zip(overall, tasks, strict=True)]


def outcomes(first: Results, other: Results) -> dict[str, list[tuple[bool, bool]]]:
    """Task -> outcomes of both in every episode that counts; without the tasks in which none does."""
    found: dict[str, list[tuple[bool, bool]]] = {}
    for a, b in zip(first["episodes"], other["episodes"], strict=True):
        if a["valid"]:
            found.setdefault(a["task"], []).append((a["success"], b["success"]))
    return found


def _judge_all(pairs: Sequence[Pairs]) -> list[dict[str, Any]]:
    corrected = holm([mcnemar(found.only_a, found.only_b) for found in pairs])
    return [judge(found, p, len(pairs)) for found, p in zip(pairs, corrected, strict=True)]


def judge(pairs: Pairs, p_holm: float | None = None, tests: int = 1) -> dict[str, Any]:
    """What the pairs say, as plain values. `p_holm`: the p-value corrected for the number of `tests`.

    `better`: `a`, `b` or None while it is not settled at 5 %; `difference`: success rate of b less that of a, with
    its `interval`; `p`: of the exact test; `confidence`: 1 - `p_holm`, the highest level at which a difference is
    found; `more_episodes`: how many more would settle it with a probability of 80 %, should the rates observed so far
    be the true ones: 0 when it is settled, None when more than 20000 would be needed. To extend both evaluations by
    them and to test again is a second look, which is no longer a test at 5 %; as many as now and these, all fresh, are.
    """
    p, n = mcnemar(pairs.only_a, pairs.only_b), pairs.episodes
    p_holm = p if p_holm is None else p_holm
    settled = p_holm <= ALPHA
    needed = n if settled else episodes_needed(pairs.only_a / n, pairs.only_b / n, ALPHA / tests)
    return {
        "episodes": n,
        "success_rate_a": (pairs.both + pairs.only_a) / n,
        "success_rate_b": (pairs.both + pairs.only_b) / n,
        "both": pairs.both,
        "only_a": pairs.only_a,
        "only_b": pairs.only_b,
        "neither": pairs.neither,
        "difference": pairs.difference,
        "interval": list(paired_interval(pairs)),
        "p": p,
        "p_holm": p_holm,
        "confidence": 1 - p_holm,
        "better": ("b" if pairs.difference > 0 else "a") if settled else None,
        "more_episodes": None if needed is None else max(needed - n, 0 if settled else 1),
    }


def sentence(found: Results, a: str, b: str) -> str:
    """The judgement of `judge` in words, for policies called `a` and `b`; the better one, or b, comes first."""
    (low, high), sign = found["interval"], 1
    rates = found["success_rate_b"], found["success_rate_a"]
    if found["better"] == "a":
        low, high, sign, rates = -high, -low, -1, rates[::-1]
    facts = (
        f"({rates[0]:.1%} against {rates[1]:.1%} in {found['episodes']} episodes; difference "
        f"{100 * sign * found['difference']:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}; exact "
        f"McNemar p = {found['p_holm']:.2g})"
    )
    if found["better"]:
        winner, loser = (b, a) if found["better"] == "b" else (a, b)
        return f"{winner} is better than {loser}, with {_confidence(found['p_holm'])} confidence {facts}"
    if found["more_episodes"] is None:
        more = "at the rates seen so far, 20000 would not"
    else:
        fresh = found["episodes"] + found["more_episodes"]
        more = (
            f"should these rates hold, about {fresh} under another seed would settle it, or about "
            f"{found['more_episodes']} more of this one, but a second look errs in more than 5 %"
        )
    return f"not settled: {b} against {a} {facts}; {more}"


def _confidence(p: float) -> str:
    return "more than 99.9 %" if p < 0.001 else f"{100 * (1 - p):.1f} %"


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short names that tell evaluations apart: the last parts of their paths, as many as needed."""
    folders = [path.parent if path.suffix == ".json" else path for path in map(Path.resolve, paths)]
    for count in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{folder} ({i})" for i, folder in enumerate(folders, 1)]


def _number_of_episodes(results: Results) -> str:
    counts = {found["episodes"] + found["invalid"] for found in results["tasks"].values()}
    return "/".join(map(str, sorted(counts)))


def _versions(results: Results) -> str:
    return ", ".join(f"{name} {results['versions'].get(name)}" for name in ("volar", "mujoco"))
