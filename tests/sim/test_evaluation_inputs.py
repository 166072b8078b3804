"""What an evaluation depends on is looked at before anything is written, and again before it is continued."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest

from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.spec import load_robot
from volar.sim.closed_loop import ClosedLoop
from volar.sim.collect import CollectConfig, collect
from volar.sim.comparison import require_paired
from volar.sim.episode_record import read_records
from volar.sim.evaluate import EvaluateConfig, evaluate
from volar.sim.evaluation_folder import read_results

FRICTION = "terms:\n  - {field: friction, scope: table, operation: scale, distribution: {uniform: [%s, %s]}}\n"


@pytest.fixture
def config(artifact_folder: Path, tmp_path: Path) -> EvaluateConfig:
    return EvaluateConfig(
        policy=artifact_folder, tasks=("reach",), episodes=1, max_steps=2, wrong_instruction=False, videos=0, workers=1,
        output=tmp_path / "out",
    )  # fmt: skip


def test_a_broken_file_of_terms_costs_no_earlier_result(config: EvaluateConfig, tmp_path: Path) -> None:
    evaluate(config)
    before = (config.output / "results.json").read_bytes()
    for text, says in (
        (FRICTION % ("a", 2), "a"),
        (FRICTION % (-1.0, 2.0), "positive"),
        (FRICTION.replace("friction", "frction") % (1, 2), "did you mean friction"),
        (FRICTION.replace("table", "tabel") % (1, 2), "scope of friction"),
        ("terms:\n  - {field: mass, scope: object/*, operation: add, distribution: {uniform: [-1, 0]}}\n", "outside"),
        ("terms:\n  - {field: friction, scope: 3, distribution: {uniform: [1, 2]}}\n", "scope must be"),
        ("terms:\n  - {field: ambient, shared: 'no', distribution: {uniform: [0, 1]}}\n", "shared must be"),
    ):
        bad = tmp_path / "bad.yaml"
        bad.write_text(text)
        with pytest.raises((UsageError, Unknown), match=says):
            evaluate(replace(config, randomization=str(bad), overwrite=True))
        with pytest.raises((UsageError, Unknown), match=says):
            collect(CollectConfig(output=config.output, tasks=("reach",), randomization=str(bad), overwrite=True))
    assert (config.output / "results.json").read_bytes() == before


def test_a_policy_that_cannot_be_loaded_costs_no_earlier_result(config: EvaluateConfig, tmp_path: Path) -> None:
    evaluate(config)
    before = {path.name: path.read_bytes() for path in config.output.iterdir() if path.is_file()}
    assert config.policy is not None
    damaged = shutil.copytree(config.policy, tmp_path / "damaged")
    next(damaged.glob("*.onnx")).write_bytes(b"")
    with pytest.raises(VolarError):
        evaluate(replace(config, policy=damaged, overwrite=True))
    assert {path.name: path.read_bytes() for path in config.output.iterdir() if path.is_file()} == before
    evaluate(replace(config, seed=1, overwrite=True))
    assert read_results(config.output)["seed"] == 1


def test_results_are_there_before_films_are_made(config: EvaluateConfig) -> None:
    config.output.mkdir()
    (config.output / "videos").write_text("")  # no folder: a film cannot be written
    (config.output / "evaluation.json").write_text("{}")
    with pytest.raises(VolarError, match="videos"):
        evaluate(replace(config, videos=1, resume=True))
    assert read_results(config.output)["overall"]["episodes"] == 1
    (config.output / "videos").unlink()
    found = evaluate(replace(config, videos=1, resume=True))
    assert read_results(config.output)["replay"] == found["replay"] == {"episodes": 1, "identical": 1}


def test_a_file_of_terms_that_was_edited_is_not_continued(config: EvaluateConfig, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(FRICTION % (0.9, 1.1))
    varied = replace(config, randomization=f"none,{mine}")
    evaluate(varied)
    evaluate(replace(varied, episodes=2, resume=True))
    mine.write_text(FRICTION % (0.01, 0.02))
    with pytest.raises(VolarError, match=r"holds another evaluation \(randomization .*mine\.yaml was"):
        evaluate(replace(varied, episodes=3, resume=True))
    evaluate(replace(config, episodes=2, resume=True))  # what does not depend on it goes on


def test_an_evaluation_is_continued_with_the_software_that_began_it(config: EvaluateConfig) -> None:
    first = evaluate(config)
    settings = config.output / "evaluation.json"
    identity = json.loads(settings.read_text())
    assert identity["version of mujoco"] == mujoco.__version__
    settings.write_text(json.dumps(identity | {"version of mujoco": "3.2.0"}))
    with pytest.raises(VolarError, match=r"\(version of mujoco was 3\.2\.0, is .*\); go back to what was"):
        evaluate(replace(config, episodes=2, resume=True))
    older = {key: value for key, value in identity.items() if not key.startswith("version")}
    settings.write_text(json.dumps(older))
    assert evaluate(replace(config, episodes=2, resume=True))["episodes"][:1] == first["episodes"]
    assert json.loads(settings.read_text()) == identity


def test_terms_about_props_of_other_tasks_are_idle(config: EvaluateConfig, tmp_path: Path) -> None:
    drawers = tmp_path / "drawers.yaml"
    drawers.write_text((FRICTION % (0.9, 1.1)).replace("table", "object/drawer_*"))
    found = evaluate(replace(config, tasks=("reach", "open_drawer"), randomization=str(drawers)))
    drawn = {episode["task"]: episode["draws"]["friction@object/drawer_*"] for episode in found["episodes"]}
    assert drawn["reach"] == {}
    assert len(drawn["open_drawer"]) > 10


def _arm(path: Path, armature: float) -> str:
    spec = mujoco.MjSpec()
    load_robot("fr3").add_to(spec)
    for joint in spec.joints:
        joint.armature = armature
    spec.compile()
    path.write_text(str(spec.to_xml()))
    load_robot.cache_clear()
    return f"menagerie:{path}"


def test_another_model_of_the_robot_is_another_evaluation(config: EvaluateConfig, tmp_path: Path) -> None:
    asset = _arm(tmp_path / "arm.xml", 0.1)
    first = evaluate(replace(config, asset=asset))
    plain = evaluate(replace(config, output=tmp_path / "plain"))
    with pytest.raises(VolarError, match="did not run the same episodes: asset"):
        require_paired(first, plain, ("a", "b"))
    assert str(tmp_path / "arm.xml") in (config.output / "report.html").read_text()
    _arm(tmp_path / "arm.xml", 2.0)
    with pytest.raises(VolarError, match=r"holds another evaluation \(asset was"):
        evaluate(replace(config, asset=asset, episodes=2, resume=True))


def test_damaged_files_are_named(config: EvaluateConfig) -> None:
    evaluate(replace(config, episodes=2))
    episodes, settings = config.output / "episodes.jsonl", config.output / "evaluation.json"
    first, second = episodes.read_text().splitlines()
    episodes.write_text(f"{first[:40]}\n{second}\n")
    with pytest.raises(VolarError, match="line 1 is no episode"):
        read_records(episodes)
    assert episodes.read_text().endswith(f"{second}\n")  # nothing is thrown away
    settings.write_text("")
    with pytest.raises(VolarError, match=r"evaluation\.json cannot be read"):
        evaluate(replace(config, resume=True))
    assert read_results(config.output)["overall"]["episodes"] == 2


def test_a_machine_without_ros_2_is_said_before_anything_is_written(
    config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rclpy", None)  # as where it is not installed
    with pytest.raises(VolarError, match=r"pip install 'volar\[ros2\]'"):
        evaluate(replace(config, through="ros2"))
    assert not config.output.exists()


def test_a_margin_needs_a_stop() -> None:
    with pytest.raises(UsageError, match="stop=sequential"):
        EvaluateConfig(margin=0.2)


def test_startup_terms_follow_the_evaluations_seed(config: EvaluateConfig, tmp_path: Path) -> None:
    terms = tmp_path / "startup.yaml"
    terms.write_text("terms:\n  - {field: ambient, mode: startup, distribution: {uniform: [0.2, 0.5]}}\n")
    drawn = []
    for seed in (0, 0, 1):
        varied = replace(config, randomization=str(terms), seed=seed, output=tmp_path / f"out{len(drawn)}")
        drawn.append(evaluate(varied)["episodes"][0]["draws"]["ambient"])
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_scene_that_diverges_is_a_failure_and_not_a_seed_less(
    artifact_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = ClosedLoop(ExportedPolicy(artifact_folder), "reach", max_steps=2)
    advance = loop.world.body.advance

    def poisoned(dt_s: float) -> None:
        loop.world.data.qvel[0] = np.nan
        advance(dt_s)

    monkeypatch.setattr(loop.world.body, "advance", poisoned)
    record = loop.run(3)
    assert (record.valid, record.broken, record.success) == (True, True, False)
    assert "SimulationDiverged" in record.reason
    loop.close()


def test_an_invalid_seed_keeps_its_own_draws(artifact_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volar.sim.premise._what_moved", lambda before, after: "it moves")
    loop = ClosedLoop(ExportedPolicy(artifact_folder), "reach", randomization="dynamics")
    first, _, again = (loop.run(seed) for seed in (1, 2, 1))
    assert first.draws == again.draws
    assert json.dumps(first.to_dict()) == json.dumps(again.to_dict())
    loop.close()
