"""The gaps between what a policy is told: paired, of the right sign, over all episodes and by task."""

from collections.abc import Sequence
from typing import Any

import pytest

from volar.sim.conditions import HELD_OUT_INSTRUCTION, STANDARD, WRONG_INSTRUCTION
from volar.sim.instruction_gaps import GROUNDING, PHRASING, gaps, sentences
from volar.sim.paired_test import Pairs, paired_interval


def summary(outcomes: dict[str, Sequence[bool]], invalid: frozenset[tuple[str, int]] = frozenset()) -> dict[str, Any]:
    """Of one condition, as `summarize` has it, as far as gaps look at it."""
    episodes = [
        {"task": task, "index": i, "success": success, "valid": (task, i) not in invalid}
        for task, found in outcomes.items()
        for i, success in enumerate(found)
    ]
    return {"episodes": episodes}


def test_a_policy_that_listens_has_its_success_rate_as_grounding_gap_and_a_deaf_one_none() -> None:
    right = summary({"reach": [True] * 9 + [False], "lift": [True] * 5 + [False] * 5})
    never = summary({"reach": [False] * 10, "lift": [False] * 10})
    listens, deaf = (gaps({STANDARD: right, WRONG_INSTRUCTION: wrong})[GROUNDING] for wrong in (never, right))
    assert listens["overall"]["difference"] == pytest.approx(0.7)
    assert {task: gap["difference"] for task, gap in listens["tasks"].items()} == {"reach": 0.9, "lift": 0.5}
    assert [gap["episodes"] for gap in (listens["overall"], *listens["tasks"].values())] == [20, 10, 10]
    for gap in (listens["overall"], *listens["tasks"].values()):
        low, high = gap["interval"]
        assert 0 < low < gap["difference"] < high
    assert deaf["overall"]["difference"] == 0
    low, high = deaf["overall"]["interval"]
    assert low < 0 < high


def test_gaps_are_paired_by_episode() -> None:
    """The same rates in the same episodes or in others: the same difference, surer in the first case."""
    usual = [True] * 60 + [False] * 40
    with_it, against_it = [True] * 40 + [False] * 60, [False] * 60 + [True] * 40
    together, apart = (
        gaps({STANDARD: summary({"lift": usual}), HELD_OUT_INSTRUCTION: summary({"lift": told})})[PHRASING]["overall"]
        for told in (with_it, against_it)
    )
    assert together["difference"] == apart["difference"] == pytest.approx(-0.2)  # new less usual
    widths = [gap["interval"][1] - gap["interval"][0] for gap in (together, apart)]
    assert widths[0] < 0.7 * widths[1]
    assert together["interval"] == list(paired_interval(Pairs(both=40, only_a=20, only_b=0, neither=40)))


def test_what_does_not_count_or_was_not_run_makes_no_gap() -> None:
    invalid = frozenset([("lift", 0), ("lift", 1), ("reach", 1)])
    right, wrong = (summary({"reach": [found, True], "lift": [True, True]}, invalid) for found in (True, False))
    assert gaps({STANDARD: right}) == {}
    found = gaps({STANDARD: right, WRONG_INSTRUCTION: wrong})
    assert found.keys() == {GROUNDING}
    assert found[GROUNDING]["overall"]["episodes"] == 1
    assert found[GROUNDING]["tasks"].keys() == {"reach"}
    nothing = summary({"lift": [True, True]}, invalid)
    assert gaps({STANDARD: nothing, WRONG_INSTRUCTION: nothing}) == {}


def test_sentences_say_each_gap_and_nothing_of_results_without_one() -> None:
    right, wrong = summary({"lift": [True] * 40 + [False] * 10}), summary({"lift": [True] * 5 + [False] * 45})
    (said,) = sentences(gaps({STANDARD: right, WRONG_INSTRUCTION: wrong}))
    assert said.startswith("grounding gap (right order less another one, the same 50 episodes): +70.0 points")
    low, high = gaps({STANDARD: right, WRONG_INSTRUCTION: wrong})[GROUNDING]["overall"]["interval"]
    assert f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}" in said
    assert sentences({}) == []
