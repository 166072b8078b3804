"""Stopping early, more conditions, checkpoints, and extending what there is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.limit_margins import LimitMargins
from volar.sim import conditions
from volar.sim.checkpoints import checkpoint_policies
from volar.sim.episode_record import EpisodeRecord
from volar.sim.evaluate import EvaluateConfig, evaluate
from volar.sim.evaluation_plan import Plan
from volar.sim.randomization import PRESETS
from volar.sim.sequential import confidence_sequence


@pytest.fixture(scope="module")
def config(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    """No episode is long enough to succeed: every one fails."""
    return EvaluateConfig(
        policy=artifact_folder,
        tasks=("reach", "lift"),
        episodes=60,
        max_steps=1,
        stop="sequential",
        margin=0.15,
        wrong_instruction=False,
        videos=0,
        workers=2,
        output=tmp_path_factory.mktemp("sequential") / "out",
    )


@pytest.fixture(scope="module")
def results(config: EvaluateConfig) -> dict[str, Any]:
    return evaluate(config)


def test_a_sequential_evaluation_ends_each_task_when_its_interval_is_narrow_enough(results: dict[str, Any]) -> None:
    enough = next(n for n in range(1, 60) if confidence_sequence(0, n)[1] <= 0.3)
    for tally in results["tasks"].values():
        assert tally["episodes"] == enough < 60
        assert tally["stopped"]
        assert tally["wilson95"] is None  # it would pretend that the number was fixed before
        assert tally["sequence95"] == list(confidence_sequence(0, enough))
    overall = results["overall"]
    assert overall["stopped"]
    assert overall["success_rate"] == 0.0
    assert overall["sequence95"][1] > results["tasks"]["lift"]["sequence95"][1]  # both tasks must hold at once
    assert [e["index"] for e in results["episodes"]] == [*range(enough), *range(enough)]


def test_the_stopping_point_is_the_same_with_one_worker_and_after_an_interruption(
    config: EvaluateConfig, results: dict[str, Any], tmp_path: Path
) -> None:
    one = evaluate(replace(config, workers=1, output=tmp_path / "one"))
    assert one["episodes"] == results["episodes"]
    assert one["tasks"] == results["tasks"]
    lines = (config.output / "episodes.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) >= len(results["episodes"])  # two workers may have been ahead
    cut = tmp_path / "cut"
    shutil.copytree(config.output, cut)
    (cut / "episodes.jsonl").write_text("".join(lines[:7]))
    assert evaluate(replace(config, output=cut, resume=True))["episodes"] == results["episodes"]


def test_episodes_that_were_stopped_early_make_no_gap(config: EvaluateConfig, tmp_path: Path) -> None:
    """How many there are of each condition depends on how they went."""
    few = replace(config, tasks=("reach",), episodes=2, wrong_instruction=True, workers=1, output=tmp_path / "few")
    assert "grounding_gap" not in evaluate(few)
    fixed = replace(few, stop="never", margin=None, output=tmp_path / "fixed")
    assert evaluate(fixed)["grounding_gap"]["overall"]["difference"] == 0


def test_an_evaluation_is_extended_without_repeating_anything(
    config: EvaluateConfig, results: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "longer"
    shutil.copytree(config.output, output)
    before = (output / "episodes.jsonl").read_text()
    longer = evaluate(replace(config, output=output, stop="never", margin=None, episodes=30, resume=True))
    assert longer["tasks"]["reach"]["episodes"] == 30
    assert longer["tasks"]["reach"]["wilson95"] is not None
    assert longer["episodes"][:10] == results["episodes"][:10]
    assert (output / "episodes.jsonl").read_text().startswith(before)
    shorter = evaluate(replace(config, output=output, stop="never", margin=None, episodes=4, resume=True))
    assert shorter["overall"]["episodes"] == 8


def test_a_margin_that_is_not_reached_is_not_claimed(
    config: EvaluateConfig, results: dict[str, Any], tmp_path: Path
) -> None:
    """Fewer episodes than those after which it had stopped, as a resumed evaluation may ask for."""
    output = tmp_path / "shorter"
    shutil.copytree(config.output, output)
    enough = results["tasks"]["lift"]["episodes"]
    for episodes, stopped in ((enough - 1, False), (enough, True)):
        found = evaluate(replace(config, output=output, episodes=episodes, resume=True))
        assert found["overall"]["stopped"] == found["tasks"]["lift"]["stopped"] == stopped
        how = "each task stopped" if stopped else "not every task came"
        assert f"confidence sequences, {how} within ±15 points" in (output / "report.html").read_text()


def test_a_plan_hands_out_no_episode_beyond_the_stopping_point(tmp_path: Path) -> None:
    plan = Plan(("reach",), ("standard",), 200, 0, tmp_path, margin=0.2)
    handed = 0
    for job in plan.missing():
        handed += 1
        plan.add(EpisodeRecord(*job.key, job.seed, "", True, 1, "", True, "", {}, {}, LimitMargins()))
    assert handed == plan.wanted == plan.done < 30
    assert list(plan.missing()) == []


@pytest.mark.parametrize("margin", [0.0, 0.5, -1.0])
def test_an_impossible_margin_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin={margin} must be between"):
        EvaluateConfig(margin=margin)


def test_randomizations_are_named_one_by_one_or_all_at_once(tmp_path: Path) -> None:
    assert conditions.randomizations("none") == ("none",)
    assert conditions.randomizations("all") == PRESETS
    mine = tmp_path / "mine.yaml"
    mine.write_text("terms: []\n")
    assert conditions.randomizations(f"full, none,{mine}") == ("full", "none", str(mine))
    with pytest.raises(UsageError, match="no such file"):
        conditions.randomizations("none,yours.yaml")
    with pytest.raises(Unknown, match=r"did you mean visual\?.*full, none, unseen, visual"):
        conditions.randomizations("none,visaul")
    with pytest.raises(UsageError, match="names none twice"):
        conditions.randomizations("none,none")
    config = EvaluateConfig(randomization="full,visual", paraphrases=True)
    assert config.conditions == ("standard", "wrong_instruction", "held_out_instruction", "randomization:visual")
    assert conditions.randomization_of("randomization:visual", "full") == "visual"
    assert conditions.randomization_of("wrong_instruction", "full") == "full"
    with pytest.raises(Unknown, match=r"choices: .*randomization:visual, standard"):
        conditions.check_condition("standrad")


def test_every_randomization_is_run_on_the_same_seeds(config: EvaluateConfig, tmp_path: Path) -> None:
    plain = replace(
        config, tasks=("reach",), episodes=3, stop="never", margin=None, randomization="all", output=tmp_path / "out"
    )
    found = evaluate(plain)
    assert found["conditions"] == [conditions.under_randomization(name) for name in PRESETS[1:]]
    for key in found["conditions"]:
        assert [e["seed"] for e in found[key]["episodes"]] == [e["seed"] for e in found["episodes"]]
        for here, there in zip(found[key]["episodes"], found["episodes"], strict=True):
            assert here["draws"]
            assert here["start_sha256"] != there["start_sha256"]
    one = evaluate(replace(plain, randomization="none", output=tmp_path / "one"))
    assert one["episodes"] == found["episodes"]  # what runs beside it changes nothing


@pytest.mark.parametrize("name", ["workers", "max_steps", "episodes"])
def test_a_number_that_is_too_small_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        EvaluateConfig(**{name: 0})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def training_run(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints; the last is what `last` points to."""
    run = tmp_path_factory.mktemp("run")
    for step in (100, 200, 1000):
        folder = run / "checkpoints" / f"{step:06d}" / "pretrained_model"
        shutil.copytree(artifact_folder, folder)
        (folder / "notes.txt").write_text(str(step))  # other bytes, so another policy
    (run / "checkpoints" / "last").symlink_to("001000")
    return run


def test_every_checkpoint_is_evaluated_on_the_same_episodes(
    training_run: Path, config: EvaluateConfig, tmp_path: Path
) -> None:
    plain = replace(
        config, policy=training_run, tasks=("reach",), episodes=2, stop="never", margin=None, checkpoints="all"
    )
    found = evaluate(replace(plain, output=tmp_path / "out"))
    assert [point["step"] for point in found["learning_curve"]] == [100, 200, 1000]
    assert all(point["episodes"] == 2 for point in found["learning_curve"])
    assert "Success against training" in (tmp_path / "out" / "report.html").read_text()
    folders = sorted(item.name for item in (tmp_path / "out" / "checkpoints").iterdir())
    assert folders == ["000100", "000200"]  # the last is the evaluation itself
    early = json.loads((tmp_path / "out" / "checkpoints" / "000100" / "results.json").read_text())
    assert early["policy"].endswith("000100/pretrained_model")
    assert early["policy_sha256"] != found["policy_sha256"]
    assert [e["start_sha256"] for e in early["episodes"]] == [e["start_sha256"] for e in found["episodes"]]
    again = evaluate(replace(plain, output=tmp_path / "out", resume=True))
    assert again["learning_curve"] == found["learning_curve"]


def test_checkpoints_are_found_from_anywhere_in_the_run(training_run: Path, artifact_folder: Path) -> None:
    for path in ("", "checkpoints", "checkpoints/last", "checkpoints/000200", "checkpoints/000200/pretrained_model"):
        assert list(checkpoint_policies(training_run / path)) == [100, 200, 1000], path
    with pytest.raises(VolarError, match="has no checkpoints; give policy=OUTPUT of volar-train"):
        checkpoint_policies(artifact_folder)
