"""An evaluation is its settings: same episodes at any number of workers, resumable, never over something else."""

import json
import shlex
import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest

from volar.robots.command_line import parse
from volar.robots.contract import ContractError, PolicyContract
from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.interface import ActionChunk, Observation
from volar.robots.limit_margins import LimitMargins
from volar.robots.spec import load_robot
from volar.sim.closed_loop import ClosedLoop, episode_seed, periods_of_step
from volar.sim.colors import COLORS
from volar.sim.conditions import STANDARD, WRONG_INSTRUCTION
from volar.sim.episode_record import EpisodeRecord
from volar.sim.evaluate import EvaluateConfig, evaluate
from volar.sim.evaluation import Job, film
from volar.sim.films import select_for_film
from volar.sim.tasks import TASKS
from volar.sim.wilson import wilson_interval

EPISODES = 2


@pytest.fixture(scope="module")
def loop(artifact_folder: Path) -> ClosedLoop:
    return ClosedLoop(ExportedPolicy(artifact_folder), "reach", latency_s=0.02)


@pytest.fixture(scope="module")
def config(artifact_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    output = tmp_path_factory.mktemp("evaluation") / "out"
    return EvaluateConfig(
        policy=artifact_folder, tasks=("reach",), episodes=EPISODES, videos=1, workers=1, output=output
    )


@pytest.fixture(scope="module")
def results(config: EvaluateConfig) -> dict[str, Any]:
    return evaluate(config)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # The closed form, to four digits; 81/263 is example 1 of Newcombe (Statistics in Medicine 1998), method 3.
    [(81, 263, 0.2553, 0.3662), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634)],
)
def test_wilson_interval_known_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_interval_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes of"):
        wilson_interval(successes, trials)


def test_an_episode_is_its_seed_whatever_ran_before(loop: ClosedLoop) -> None:
    first = loop.run(11)
    other = loop.run(12)
    again = loop.run(11)
    assert first == again
    assert first.valid
    assert first.steps > 0
    assert first.episode_sha256 != other.episode_sha256


def test_commands_stay_inside_every_limit(loop: ClosedLoop) -> None:
    margins = loop.run(13).margins
    for name in ("position", "velocity", "acceleration", "jerk"):
        assert 0.0 < getattr(margins, name) <= 1.0


@pytest.mark.parametrize("rate_hz", [10.0, 25.0, 30.0, 40.0, 60.0])
def test_an_episode_lasts_the_tasks_time_at_any_rate(artifact_folder: Path, rate_hz: float) -> None:
    contract = replace(ExportedPolicy(artifact_folder).contract, action=load_robot("fr3").joint_action(rate_hz))
    slow = ClosedLoop(_Still(contract), "reach")
    record = slow.run(11)
    assert record.steps == round(4.0 * rate_hz)
    assert slow.world.body.now_ns == 4_000_000_000
    periods = {periods_of_step(step, rate_hz) for step in range(1000)}
    assert periods == ({100 // rate_hz} if 100 % rate_hz == 0 else {100 // rate_hz, 100 // rate_hz + 1})
    slow.close()


class _Still:
    """A policy of joint positions that stays where it is."""

    def __init__(self, contract: PolicyContract) -> None:
        self.contract = contract

    def reset(self, seed: int) -> None: ...

    def predict(self, observation: Observation) -> ActionChunk:
        actions = np.tile([*load_robot("fr3").home, 1.0], (self.contract.chunk_length, 1))
        return ActionChunk(actions.astype(np.float32), observation.stamp_ns, 1.0 / self.contract.action.rate_hz)


def test_the_wrong_instruction_names_another_colour_in_the_same_scene(loop: ClosedLoop) -> None:
    right, wrong = loop.run(14), loop.run(14, condition=WRONG_INSTRUCTION)
    named = [next(color for color in COLORS if color in record.instruction) for record in (right, wrong)]
    assert named[0] != named[1]
    assert loop.world.goal.color == named[0]  # success is still that of the original goal


def test_a_broken_episode_is_recorded_and_the_next_one_runs(artifact_folder: Path) -> None:
    place = ClosedLoop(ExportedPolicy(artifact_folder), "place_on")
    seed = next(s for s in range(100) if _words(place, s) > 7)  # more than this policy takes
    record = place.run(seed)
    assert record.broken
    assert record.valid  # it counts, as a failure
    assert not record.success
    assert "TokenizerError" in record.reason
    assert not place.run(next(s for s in range(100) if _words(place, s) <= 7)).broken
    place.close()


def _words(loop: ClosedLoop, seed: int) -> int:
    loop.world.reset(seed)
    return len(loop.world.instruction.split())


def test_results_have_the_documented_form(config: EvaluateConfig, results: dict[str, Any]) -> None:
    written = json.loads((config.output / "results.json").read_text())
    assert written == json.loads(json.dumps(results))
    assert written["contract_sha256"] == ExportedPolicy(config.policy or Path()).contract.sha256
    assert written["overall"]["episodes"] == written["tasks"]["reach"]["episodes"] == EPISODES
    assert set(written["overall"]) >= {"successes", "episodes", "success_rate", "wilson95"}
    assert [e["seed"] for e in written["episodes"]] == [episode_seed(0, "reach", i) for i in range(EPISODES)]
    assert set(written["episodes"][0]) >= {"task", "seed", "instruction", "success", "steps", "episode_sha256", "valid"}
    assert {"volar", "mujoco", "python"} <= set(written["versions"])


def test_the_command_in_the_results_makes_them_again(config: EvaluateConfig, results: dict[str, Any]) -> None:
    made = results["made"]
    words = shlex.split(made["command"])
    assert words[0] == "volar-evaluate"
    assert parse(EvaluateConfig, words[1:]) == config
    assert not any(word.startswith(("seed=", "robot=")) for word in words)  # the defaults
    assert datetime.fromisoformat(made["date"]).utcoffset() == timedelta(0)
    assert made["time"]["timed"] == made["time"]["episodes"] == 2 * EPISODES  # of each instruction
    assert made["time"]["seconds"] > 0
    page = (config.output / "report.html").read_text()
    for text in (made["date"], made["machine"]["cpu"], "How it was made", f"for {2 * EPISODES} episodes"):
        assert text in page


def test_films_replay_the_same_bits(config: EvaluateConfig, results: dict[str, Any]) -> None:
    assert results["replay"] == {"episodes": 1, "identical": 1}
    film = (config.output / results["videos"][0]["file"]).read_bytes()
    assert film[4:8] == b"ftyp"


def test_a_film_lasts_as_long_as_its_episode(artifact_folder: Path, tmp_path: Path) -> None:
    contract = replace(ExportedPolicy(artifact_folder).contract, action=load_robot("fr3").joint_action(12.5))
    slow = ClosedLoop(_Still(contract), "reach", max_steps=10)
    record = film(slow, Job("reach", STANDARD, 0, 11, str(tmp_path / "film.mp4")))
    facts = imageio.immeta(tmp_path / "film.mp4", plugin="pyav")
    assert facts["fps"] == 12.5
    assert facts["duration"] * 12.5 == pytest.approx(record.steps + 1)
    slow.close()


def test_the_wrong_instruction_is_paired_and_reported_apart(results: dict[str, Any]) -> None:
    wrong = results["wrong_instruction"]
    assert [e["seed"] for e in wrong["episodes"]] == [e["seed"] for e in results["episodes"]]
    assert wrong["tasks"]["reach"]["episodes"] == EPISODES
    assert all(
        a["instruction"] != b["instruction"] for a, b in zip(wrong["episodes"], results["episodes"], strict=True)
    )
    gap, rate = results["grounding_gap"], results["overall"]["success_rate"]
    assert gap["overall"]["difference"] == pytest.approx(rate - wrong["overall"]["success_rate"])
    assert gap["tasks"]["reach"] == gap["overall"]
    assert "phrasing_gap" not in results


def test_paraphrases_can_be_added_to_an_evaluation(
    config: EvaluateConfig, results: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "more"
    shutil.copytree(config.output, output)
    more = evaluate(replace(config, output=output, resume=True, paraphrases=True, videos=0))
    for key in ("episodes", "wrong_instruction"):
        assert more[key] == results[key]
    held_out = more["held_out_instruction"]
    assert more["grounding_gap"] == results["grounding_gap"]
    assert more["phrasing_gap"]["overall"]["episodes"] == EPISODES
    assert [e["seed"] for e in held_out["episodes"]] == [e["seed"] for e in results["episodes"]]
    texts = [template.split("{")[0] for template in TASKS["reach"].held_out_templates]
    for episode in held_out["episodes"]:
        assert episode["condition"] == "held_out_instruction"
        assert any(episode["instruction"].startswith(text) for text in texts)


def test_hashes_do_not_depend_on_the_number_of_workers(
    config: EvaluateConfig, results: dict[str, Any], loop: ClosedLoop, tmp_path: Path
) -> None:
    two = evaluate(replace(config, workers=2, videos=0, output=tmp_path / "two"))
    for key in ("episodes", "overall", "wrong_instruction"):
        assert two[key] == results[key]
    apart = {"made", "videos", "replay"}  # how, where and when; and what was filmed
    assert {key: two[key] for key in two.keys() - apart} == {key: results[key] for key in results.keys() - apart}
    here = loop.run(results["episodes"][0]["seed"])  # in this process, after other episodes
    assert here.episode_sha256 == results["episodes"][0]["episode_sha256"]


def test_an_interrupted_evaluation_continues(config: EvaluateConfig, results: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "resumed"
    shutil.copytree(config.output, output)
    lines = (output / "episodes.jsonl").read_text().splitlines(keepends=True)
    (output / "episodes.jsonl").write_text("".join(lines[:2]) + lines[2][:40])  # cut while writing
    (output / "results.json").unlink()
    resumed = evaluate(replace(config, output=output, resume=True, videos=0))
    assert resumed["episodes"] == results["episodes"]
    assert len((output / "episodes.jsonl").read_text().splitlines()) == len(lines)
    before, after = results["made"], resumed["made"]
    assert after["time"]["timed"] == len(lines)
    assert after["time"]["seconds"] > before["time"]["seconds"]  # that of both parts
    assert "resume=" not in after["command"]
    (output / "times.jsonl").unlink()
    unknown = evaluate(replace(config, output=output, resume=True, videos=0, episodes=EPISODES + 1))["made"]["time"]
    assert (unknown["timed"], unknown["episodes"]) == (2, len(lines) + 2)
    with pytest.raises(VolarError, match="seed was 0, is 1"):
        evaluate(replace(config, output=output, resume=True, seed=1))


def test_an_output_that_holds_something_is_left_alone(
    config: EvaluateConfig, results: dict[str, Any], tmp_path: Path
) -> None:
    before = (config.output / "results.json").read_bytes()
    with pytest.raises(VolarError, match="resume=true continues it, overwrite=true replaces it"):
        evaluate(config)
    assert (config.output / "results.json").read_bytes() == before
    (tmp_path / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(VolarError, match=r"holds something else \(thesis.tex\)"):
            evaluate(replace(config, output=tmp_path, overwrite=overwrite))
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_policy_for_another_body_is_refused_with_every_field(config: EvaluateConfig, tmp_path: Path) -> None:
    assert config.policy is not None
    folder = tmp_path / "other"
    shutil.copytree(config.policy, folder)
    contract = ExportedPolicy(config.policy).contract
    action = replace(contract.action, gripper="open_is_zero", rate_hz=20.0)
    replace(contract, robot="ur5e", action=action).save(folder / "contract.json")
    with pytest.raises(ContractError) as refusal:
        evaluate(replace(config, policy=folder, output=tmp_path / "out"))
    for named in ("ur5e", "action.gripper", "open_is_zero", "action.rate_hz"):
        assert named in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "choices"),
    [
        ({"suite": "kitchen"}, "tabletop"),
        ({"tasks": ("lfit",)}, "did you mean lift"),
        ({"robot": "fr2"}, "fr3"),
        ({"randomization": "fulll"}, "full"),
    ],
)
def test_unknown_names_list_the_choices(
    config: EvaluateConfig, changes: dict[str, Any], choices: str, tmp_path: Path
) -> None:
    with pytest.raises(Unknown, match=choices):
        evaluate(replace(config, output=tmp_path / "out", **changes))


def test_no_task_at_all_is_refused(config: EvaluateConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tasks is empty"):
        evaluate(replace(config, tasks=(), output=tmp_path / "out"))


def test_films_show_failures_first_and_some_success() -> None:
    def record(index: int, success: bool) -> EpisodeRecord:
        return EpisodeRecord("lift", "standard", index, index, "", success, 1, "", True, "", {}, {}, LimitMargins())

    mixed = [record(i, success=i % 3 > 0) for i in range(9)]
    assert [r.success for r in select_for_film(mixed, 3)] == [False, False, True]
    assert [r.index for r in select_for_film([record(i, success=True) for i in range(4)], 2)] == [0, 1]
    assert select_for_film(mixed, 0) == []
