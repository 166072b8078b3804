"""The report's first page: rates with intervals, by task and by condition."""

from collections.abc import Iterable, Mapping
from typing import Any

from volar.sim.conditions import HELD_OUT_INSTRUCTION, THROUGH_ROS2, WRONG_INSTRUCTION, under_randomization
from volar.sim.failures import failures
from volar.sim.instruction_gaps import GAPS, GROUNDING, points, points_interval
from volar.sim.report_page import bar, card, e, note, rate, row, section, spread, table
from volar.sim.tasks import SUITES

Results = Mapping[str, Any]
# Conditions that differ in what the policy is told, or in how it reaches the arm: in a table's head, and in a sentence.
_TOLD = {
    WRONG_INSTRUCTION: ("wrong instruction", "told another order"),
    HELD_OUT_INSTRUCTION: ("new phrasing", "told in a phrasing that no demonstration has"),
    THROUGH_ROS2: ("through ROS 2", "through two ROS 2 nodes, in real time"),
}


def label(condition: str) -> str:
    """A condition in the head of a table."""
    return _TOLD[condition][0] if condition in _TOLD else condition.removeprefix(under_randomization(""))


def told(results: Results) -> list[str]:
    """The conditions that differ in what the policy is told, or in how it reaches the arm."""
    return [key for key in _TOLD if key in results]


def randomized(results: Results) -> list[str]:
    """The conditions that differ in what randomization draws."""
    return [key for key in results if key.startswith(under_randomization(""))]


def rows(results: Results, others: Iterable[str]) -> Iterable[tuple[str, Results, Mapping[str, Results]]]:
    """(name, tally, tallies under `others`) of each task, then overall."""
    keys = list(others)
    for name, tally in results["tasks"].items():
        yield name, tally, {key: results[key]["tasks"][name] for key in keys}
    yield "overall", results["overall"], {key: results[key]["overall"] for key in keys}


def evaluated(results: Results) -> str:
    """The suite, or its tasks by name where they are not all that it has."""
    whole = results["tasks"].keys() == set(SUITES.get(results["suite"], ()))
    return str(results["suite"]) if whole else ", ".join(results["tasks"])


def kind_of_interval(results: Results) -> str:
    """What the intervals of an evaluation are."""
    overall = results["overall"]
    if "sequence95" not in overall:
        return "Wilson 95 % intervals"
    how = "each task stopped" if overall["stopped"] else "not every task came"
    return f"95 % confidence sequences, {how} within ±{100 * overall['margin']:g} points"


def figures(results: Results) -> str:
    """The few numbers that matter most."""

    def figure(value: str, text: str) -> str:
        return card(f'<div class="big">{value}</div><div class="soft">{text}</div>')

    overall = results["overall"]
    cards = [figure(rate(overall), f"success in {overall['episodes']} episodes, {spread(overall)}")]
    for key in told(results):
        cards.append(figure(rate(results[key]["overall"]), f"{_TOLD[key][1]}, {spread(results[key]['overall'])}"))
    if GROUNDING in results:
        gap = results[GROUNDING]["overall"]
        text = f"points, the grounding gap: right order less another one, paired, {points_interval(gap)}"
        cards.append(figure(points(gap), text))
    if found := randomized(results):
        worst = min(found, key=lambda key: results[key]["overall"]["success_rate"] or 0.0)
        text = f"under randomization “{e(label(worst))}”, the hardest, {spread(results[worst]['overall'])}"
        cards.append(figure(rate(results[worst]["overall"]), text))
    margin = min(results["margins"].values())
    cards.append(figure(f"{margin:.1%}", "smallest margin to a position, velocity, acceleration or jerk limit"))
    return f'<div class="figures">{"".join(cards)}</div>'


def success_section(results: Results) -> str:
    """The table of tasks, with what was told beside it."""
    others = told(results)
    found = []
    for name, tally, beside in rows(results, others):
        cells = [
            e(name),
            f"{tally['successes']}/{tally['episodes']}",
            _rate_and_spread(tally),
            bar(tally, beside.get(WRONG_INSTRUCTION)),
            *_told_cells(results, name, beside),
            str(tally["broken"]),
            str(tally["invalid"]),
        ]
        line = row(*cells, number=True)
        found.append(line.replace("<tr>", "<tr class=all>", 1) if name == "overall" else line)
    heads = ["task", "success", "rate", "", *_told_heads(results, others), "broke down", "invalid"]
    text = f"Bars: success rate and {kind_of_interval(results)}."
    if "sequence95" in results["overall"]:
        text += " They hold whenever one stops; the overall rate is the mean of the tasks'."
    if WRONG_INSTRUCTION in others:
        text += (
            " Wrong instruction (the thin bar): the same scenes, told another order, judged by the original goal; a "
            "policy that listens scores low."
        )
    if any(name in results for name, _ in GAPS.values()):
        text += (
            " Gaps: points by which the rate is higher under the right order than under another (grounding), or under "
            "a new phrasing than under the usual one (phrasing), with Newcombe's paired 95 % interval."
        )
    text += " Broke down: crashed, counted as failures. Invalid: the scene itself was not as it should be; not counted."
    return section("Success by task", card(table(heads, found)), _why(results["episodes"]), note(text))


def _told_heads(results: Results, others: Iterable[str]) -> list[str]:
    """Each condition, and the gap it makes where it makes one."""
    found = ((label(key), *(name.replace("_", " ") for name in _gap_of(results, key))) for key in others)
    return [head for heads in found for head in heads]


def _told_cells(results: Results, task: str, beside: Mapping[str, Results]) -> list[str]:
    """What stands below `_told_heads`, of a task or `overall`."""
    found = []
    for key, tally in beside.items():
        found.append(_rate_and_spread(tally))
        for name in _gap_of(results, key):
            gap = results[name]["overall"] if task == "overall" else results[name]["tasks"].get(task)
            found.append(f"{points(gap)}<br><small>{points_interval(gap)}</small>" if gap else "–")
    return found


def _gap_of(results: Results, condition: str) -> list[str]:
    """The name of the gap that a condition makes, where the results have it: older ones lack it."""
    return [name for key, (name, _) in GAPS.items() if key == condition and name in results]


def randomization_section(results: Results) -> str:
    """Success under each preset, on the same seeds."""
    others = randomized(results)
    if not others:
        return ""
    found = []
    for name, tally, beside in rows(results, others):
        line = row(e(name), *map(_rate_and_spread, (tally, *beside.values())), number=True)
        found.append(line.replace("<tr>", "<tr class=all>", 1) if name == "overall" else line)
    overall = (results["overall"], *(results[key]["overall"] for key in others))
    found.append(row("", *(bar(tally, width=110) for tally in overall)))
    heads = ["task", results["randomization"], *map(label, others)]
    why = (_why(results[key]["episodes"], f"{label(key)}: ") for key in others)
    return section(
        "Success under randomization", card(table(heads, found)), *why, note("The same seeds under each preset.")
    )


def _why(episodes: Iterable[Results], name: str = "") -> str:
    """Of those that failed, in a sentence that `name` begins."""
    said = failures(episodes)
    text = f"{name}{said}." if name else f"O{said.removeprefix('o')}."
    return f"<p>{e(text)}</p>" if said else ""


def _rate_and_spread(tally: Results) -> str:
    return f"{rate(tally)}<br><small>{spread(tally)}</small>"
