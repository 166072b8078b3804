"""How long the episodes took is summed over the parts of an evaluation; why they failed is told from their records."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from volar.sim.episode_times import EpisodeTimes, time_taken
from volar.sim.evaluation_folder import EPISODES, TIMES
from volar.sim.failures import failures, why_failed
from volar.sim.report_made import duration, made_section, time_line


def run_part(output: Path, *seconds: float) -> None:
    """Episodes that were over after so many seconds each, by a virtual clock."""
    clock: Iterator[float] = accumulate(seconds, initial=100.0)
    times = EpisodeTimes(output, lambda: next(clock))
    for _ in seconds:
        times.add()
        with (output / EPISODES).open("a") as file:
            file.write("{}\n")


def test_the_parts_of_an_evaluation_are_added(tmp_path: Path) -> None:
    assert time_taken(tmp_path) == {"seconds": 0.0, "timed": 0, "episodes": 0}
    run_part(tmp_path, 2.0, 3.0)
    assert time_taken(tmp_path) == {"seconds": 5.0, "timed": 2, "episodes": 2}
    run_part(tmp_path, 1.5)
    assert time_taken(tmp_path) == {"seconds": 6.5, "timed": 3, "episodes": 3}
    assert time_line(time_taken(tmp_path)) == "6.5 s by the wall clock for 3 episodes"


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    (tmp_path / EPISODES).write_text("{}\n{}\n")  # of before times were kept
    assert time_line(time_taken(tmp_path)) == "not known"
    run_part(tmp_path, 4.0)
    said = "4.0 s by the wall clock for 1 of 3 episodes; of the others it is not known"
    assert time_line(time_taken(tmp_path)) == said


def test_a_line_that_was_cut_short_costs_itself_alone(tmp_path: Path) -> None:
    run_part(tmp_path, 2.0, 3.0)
    (tmp_path / TIMES).write_text((tmp_path / TIMES).read_text()[:-9])
    assert time_taken(tmp_path) == {"seconds": 2.0, "timed": 1, "episodes": 2}
    run_part(tmp_path, 1.0, 1.0)
    assert time_taken(tmp_path) == {"seconds": 4.0, "timed": 3, "episodes": 4}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0.0 s"), (59.97, "1 min 0 s"), (723.4, "12 min 3 s"), (7530.0, "2 h 5 min")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def episode(**other: Any) -> dict[str, Any]:
    return {"success": False, "valid": True, "broken": False, "holds": {"policy_pending": 2}, **other}


def test_a_failure_has_one_reason() -> None:
    assert why_failed(episode()) == "ran out of time"
    assert why_failed(episode(holds={"policy_pending": 900, "stale_camera": 7})) == "stopped by stale_camera"
    assert why_failed(episode(broken=True, holds={"stale_camera": 7})) == "broke down"


def test_only_failures_that_count_are_counted() -> None:
    others = [episode(success=True, holds={"tracking_error": 5}), episode(valid=False)]
    assert failures(others) == ""
    assert failures([*others, episode()]) == "of 1 failure: 1 ran out of time"
    stopped = episode(holds={"tracking_error": 5})
    found = failures([*others, stopped, episode(broken=True), episode(), episode(), stopped, episode()])
    assert found == "of 6 failures: 3 ran out of time, 2 stopped by tracking_error, 1 broke down"


def test_results_of_before_say_nothing_of_how_they_were_made() -> None:
    assert made_section({}) == ""
