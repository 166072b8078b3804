"""report.html stands alone and says what results.json says."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.sim.report import write_report
from volar.sim.report_terminal import print_table
from volar.sim.sensitivity import sensitivity
from volar.sim.sequential import confidence_sequence
from volar.sim.tasks import SUITES
from volar.sim.video import write_mp4
from volar.sim.wilson import wilson_interval


def _tally(successes: int, episodes: int) -> dict[str, Any]:
    interval = list(wilson_interval(successes, episodes))
    rate = successes / episodes
    tally = {"successes": successes, "episodes": episodes, "success_rate": rate, "wilson95": interval}
    return {**tally, "invalid": 1, "broken": 1}


def _episode(index: int, **other: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "task": "lift",
        "condition": "standard",
        "index": index,
        "seed": 70 + index,
        "steps": 3,
        "success": False,
    }
    return {
        **facts,
        "holds": {"policy_pending": 2},
        "valid": True,
        "broken": False,
        "reason": "",
        "replay": "",
        **other,
    }


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    policy = tmp_path / "run" / "checkpoints" / "000100" / "pretrained_model"
    policy.mkdir(parents=True)
    rows = [{"step": step, "total": 3.0 / (1 + step)} for step in range(0, 100, 10)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step"')
    rng = np.random.default_rng(0)
    for name in ("good", "bad"):
        write_mp4(tmp_path / "videos" / f"{name}.mp4", list(rng.integers(0, 255, (5, 32, 64, 3), np.uint8)), 10.0)
    films = [
        {"task": "lift", "seed": 1, "instruction": "lift", "success": True, "file": "videos/good.mp4"},
        {"task": "lift", "seed": 2, "instruction": "<b>lift</b>", "success": False, "file": "videos/bad.mp4"},
    ]
    standard = {"overall": _tally(28, 30), "tasks": {"reach": _tally(19, 20), "lift": _tally(9, 10)}}
    wrong = {"overall": _tally(3, 30), "tasks": {"reach": _tally(2, 20), "lift": _tally(1, 10)}}
    return {
        "policy": str(policy),
        "policy_sha256": "a" * 64,
        "contract_sha256": "b" * 64,
        "suite": "tabletop",
        "robot": "fr3",
        "seed": 0,
        "randomization": "none",
        "latency_ms": 20.0,
        "versions": {"volar": "0.1.0"},
        **standard,
        "conditions": ["wrong_instruction"],
        "wrong_instruction": wrong | {"episodes": []},
        "episodes": [
            _episode(0),
            _episode(1, broken=True, reason="RuntimeError: <fire>", replay="replays/lift_0001_standard.npz"),
            _episode(2, valid=False, reason="the red block moves by 0.100 m by itself", holds={}),
        ],
        "learning_curve": [],
        "sensitivity": {},
        "margins": {"position": 0.4, "velocity": 0.5, "acceleration": 0.05, "jerk": 0.6},
        "replay": {"episodes": 2, "identical": 2},
        "videos": films,
    }


def test_report_shows_every_task_with_interval_and_films(tmp_path: Path, results: dict[str, Any]) -> None:
    page = write_report(tmp_path, results).read_text()
    for text in ("reach", "lift", "overall", "19/20", "28/30", "93.3%", "policy_pending", "2 of 2 episodes"):
        assert text in page
    assert page.count('class="interval"') == 3
    assert page.count("data:video/mp4;base64,") == 2
    assert page.index("failure</span>") < page.index("success</span>")
    assert "Training loss" in page


def test_other_conditions_have_their_own_columns(
    tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = {"overall": _tally(21, 30), "tasks": {"reach": _tally(15, 20), "lift": _tally(6, 10)}, "episodes": []}
    visual = {"overall": _tally(11, 30), "tasks": {"reach": _tally(8, 20), "lift": _tally(3, 10)}, "episodes": []}
    both = {"held_out_instruction": held_out, "randomization:visual": visual}
    found = results | both | {"conditions": [*results["conditions"], *both]}
    page = write_report(tmp_path, found).read_text()
    for text in ("new phrasing", "no demonstration has", "70.0%", "75.0%", "10.0%"):
        assert text in page
    for text in ("Success under randomization", "<th>none</th><th>visual</th>", "36.7%", "the hardest"):
        assert text in page
    print_table(found)
    said = capsys.readouterr().out
    assert "70.0%" in said
    assert "36.7%" in said
    assert "visual" in said


def test_gaps_stand_beside_the_rates_they_are_the_difference_of(
    tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "grounding gap" not in write_report(tmp_path, results).read_text()  # results of before they were kept
    print_table(results)
    assert "grounding gap" not in capsys.readouterr().out
    reach = {"episodes": 20, "difference": 0.85, "interval": [0.59, 0.931]}
    gap = {"overall": reach | {"difference": 0.833, "interval": [0.64, 0.915]}, "tasks": {"reach": reach}}
    page = write_report(tmp_path, results | {"grounding_gap": gap}).read_text()
    assert "<th>wrong instruction</th><th>grounding gap</th>" in page
    for text in ("10.0%", "+85.0<br><small>+59.0 to +93.1", "+83.3<br><small>+64.0 to +91.5", "<td class=n>–</td>"):
        assert text in page
    assert '<div class="big">+83.3</div>' in page
    assert "phrasing gap" not in page
    print_table(results | {"grounding_gap": gap})
    assert "+83.3 points, 95 % interval +64.0 to +91.5" in capsys.readouterr().out


def test_lost_episodes_are_listed_with_the_command_that_shows_them_again(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    page = write_report(tmp_path, results).read_text()
    assert "RuntimeError: &lt;fire&gt;" in page
    assert f"volar-evaluate replay {tmp_path}/replays/lift_0001_standard.npz" in page
    assert "the red block moves by 0.100 m by itself" in page
    whole = results | {"episodes": [_episode(0)]}
    assert "Lost episodes" not in write_report(tmp_path, whole).read_text()


def test_the_title_names_the_tasks_where_they_are_not_the_whole_suite(
    tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "<h1>Volar evaluation: reach, lift</h1>" in write_report(tmp_path, results).read_text()
    print_table(results)
    assert "success on reach, lift" in " ".join(capsys.readouterr().out.split())
    every = {"tasks": dict.fromkeys(SUITES["tabletop"], _tally(9, 10))}
    whole = results | every | {"wrong_instruction": results["wrong_instruction"] | every}
    assert "<h1>Volar evaluation: tabletop</h1>" in write_report(tmp_path, whole).read_text()


def test_holds_say_how_many_episodes_they_cost(tmp_path: Path, results: dict[str, Any]) -> None:
    stopped = {"policy_pending": 1, "tracking_error": 700}
    lost = [_episode(i, holds=stopped) for i in (3, 4)]
    page = write_report(tmp_path, results | {"episodes": [_episode(0, success=True), *lost]}).read_text()
    for reason, numbers in (("tracking_error", (1400, 2, 2)), ("policy_pending", (4, 3, 2))):
        assert f"<td>{reason}</td>{''.join(f'<td class=n>{n}</td>' for n in numbers)}" in page
    assert "tracking_error: the arm stopped, for the rest of the episode" in page
    assert "the arm stopped" not in write_report(tmp_path, results).read_text()


def test_failures_have_their_reasons(
    tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = _episode(3, holds={"tracking_error": 700})
    visual = {**results["wrong_instruction"], "episodes": [_episode(0), _episode(1, success=True)]}
    found = results | {"episodes": [*results["episodes"], stopped], "randomization:visual": visual}
    page = write_report(tmp_path, found).read_text()
    assert "<p>Of 3 failures: 1 broke down, 1 ran out of time, 1 stopped by tracking_error.</p>" in page
    assert "<p>visual: of 1 failure: 1 ran out of time.</p>" in page
    print_table(found)
    assert "of 3 failures: 1 broke down, 1 ran out of time" in " ".join(capsys.readouterr().out.split())
    whole = found | {"episodes": [_episode(0, success=True)]}
    assert "Of " not in write_report(tmp_path, whole).read_text()


def test_the_report_says_how_it_was_made(tmp_path: Path, results: dict[str, Any]) -> None:
    assert "How it was made" not in write_report(tmp_path, results).read_text()  # results of before it was kept
    made = {
        "command": "volar-evaluate 'policy=my <runs>/policy' seed=3",
        "date": "2026-02-28T23:30:05+00:00",
        "machine": {"cpu": "Some CPU", "cpus": 16, "gpu": None},
        "time": {"seconds": 723.0, "timed": 40, "episodes": 60},
    }
    page = write_report(tmp_path, results | {"made": made}).read_text()
    assert "volar-evaluate &#x27;policy=my &lt;runs&gt;/policy&#x27; seed=3" in page
    for text in ("2026-02-28T23:30:05+00:00", "Some CPU, 16 CPUs, no GPU", "12 min 3 s by the wall clock for 40 of 60"):
        assert text in page
    graphics = made | {"machine": {"cpu": "Some CPU", "cpus": 1, "gpu": "2 × NVIDIA B"}}
    assert "Some CPU, 1 CPU, 2 × NVIDIA B" in write_report(tmp_path, results | {"made": graphics}).read_text()


def test_several_checkpoints_make_a_learning_curve(tmp_path: Path, results: dict[str, Any]) -> None:
    curve = [{"step": 100 * i, **_tally(7 * i, 30)} for i in (1, 2, 3, 4)]
    page = write_report(tmp_path, results | {"learning_curve": curve}).read_text()
    assert "Success against training" in page
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', page)]
    assert len(heights) == 4
    assert heights == sorted(heights, reverse=True)  # better is higher
    assert "step 400: 28 of 30" in page
    assert "Success against training" not in write_report(tmp_path, results | {"learning_curve": curve[:1]}).read_text()


def test_axes_that_matter_come_first(tmp_path: Path, results: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    drawn = [{"gravity": float(g), "friction": float(f)} for g, f in rng.uniform(0, 1, (200, 2))]
    axes = sensitivity([(draws, draws["friction"] > 0.4) for draws in drawn])
    page = write_report(tmp_path, results | {"sensitivity": {"randomization:full": axes}}).read_text()
    assert page.index(">friction<br>") < page.index("matters</span>") < page.index(">gravity<br>")
    assert "no clear effect" in page


def test_a_stopped_evaluation_does_not_call_its_intervals_wilsons(
    tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(tally: dict[str, Any]) -> dict[str, Any]:
        bounds = confidence_sequence(tally["successes"], tally["episodes"])
        return tally | {"wilson95": None, "sequence95": list(bounds), "stopped": True, "margin": 0.1}

    tasks = {task: stopped(tally) for task, tally in results["tasks"].items()}
    found = {key: value for key, value in results.items() if key != "wrong_instruction"} | {"conditions": []}
    found |= {"overall": stopped(results["overall"]), "tasks": tasks}
    page = write_report(tmp_path, found).read_text()
    print_table(found)
    for text in (page, " ".join(capsys.readouterr().out.split())):
        assert "confidence sequences" in text
        assert "Wilson" not in text


def test_report_needs_nothing_from_elsewhere(tmp_path: Path, results: dict[str, Any]) -> None:
    page = write_report(tmp_path, results).read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in page
    assert "<b>lift</b>" not in page  # an instruction is text, not markup


def test_table_on_the_terminal(results: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    print_table(results)
    said = capsys.readouterr().out
    for text in ("reach", "9/10", "overall", "wrong", "broke down"):
        assert text in said
