"""report.html stands alone and says what results.json says."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.sim.report import print_table, write_report
from volar.sim.video import write_mp4
from volar.sim.wilson import wilson_interval


def _tally(successes: int, episodes: int) -> dict[str, Any]:
    interval = list(wilson_interval(successes, episodes))
    rate = successes / episodes
    return {"successes": successes, "episodes": episodes, "success_rate": rate, "wilson95": interval, "invalid": 1}


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
        "wrong_instruction": wrong,
        "episodes": [{"holds": {"policy_pending": 2}}, {"holds": {"policy_pending": 3, "workspace": 1}}],
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


def test_a_third_condition_has_its_own_column(
    tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = {"overall": _tally(21, 30), "tasks": {"reach": _tally(15, 20), "lift": _tally(6, 10)}}
    page = write_report(tmp_path, results | {"held_out_instruction": held_out}).read_text()
    for text in ("new phrasing", "no demonstration has", "70.0%", "75.0%", "10.0%"):
        assert text in page
    print_table(results | {"held_out_instruction": held_out})
    assert "70.0%" in capsys.readouterr().out


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
