"""A trained baseline demonstrates as the scripted expert does; its data is data like any other."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from volar.datasets.lerobot_format import load_contract, read_episodes
from volar.datasets.lerobot_layout import WRITER
from volar.rl.distill import DistillConfig, distill
from volar.rl.state_env import StateEnv
from volar.rl.state_learner import make_learner, save_learner
from volar.rl.state_teacher import StateTeacher
from volar.robots.errors import VolarError
from volar.sim import demonstration
from volar.sim.collect import CollectConfig
from volar.sim.demonstration import Disturbances, rollout
from volar.sim.world import StepDriver, TaskWorld
from volar.vla.train import TrainConfig, train

RESULTS = {"task": "reach", "algorithm": "ppo", "robot": "fr3", "step_m": 0.035, "steps": 1, "reward": "dense"}
COUNTED = {"successes": 9, "episodes": 10}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PPO policy whose weights are set, not learned: half of the way to above the block in each step, open."""
    folder: Path = tmp_path_factory.mktemp("teacher")
    model = make_learner("ppo", StateEnv("reach"), seed=0)
    policy = model.policy
    first, second = (policy.mlp_extractor.policy_net[i] for i in (0, 2))
    with torch.no_grad():
        for layer in (first, second, policy.action_net):
            layer.weight.zero_()
            layer.bias.zero_()
        for axis in range(3):
            first.weight[axis, 10 + axis] = -0.1  # `scene` follows the ten of `proprio`, and begins in units of 0.1 m
            second.weight[axis, axis] = 1.0
            policy.action_net.weight[axis, axis] = 0.5 / 0.035
        first.bias[2] = 0.04
        policy.action_net.bias[3] = 1.0
    save_learner(model, folder)
    (folder / "results.json").write_text(json.dumps(RESULTS | COUNTED))
    return folder


@pytest.fixture(scope="module")
def recorded(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output: Path = tmp_path_factory.mktemp("recorded") / "demos"
    distill(DistillConfig(teacher, output, episodes=3, image_size=32, workers=2))
    return output


def test_demonstrations_are_the_teachers_and_successful(teacher: Path, recorded: Path) -> None:
    episodes = list(read_episodes(recorded))
    assert [episode.success for episode in episodes] == [True] * 3
    assert {episode.task for episode in episodes} == {"reach"}
    assert all("block" in episode.instruction or "cube" in episode.instruction for episode in episodes)
    plain = CollectConfig(recorded, tasks=("reach",), image_size=32).contract
    assert replace(load_contract(recorded), statistics={}) == plain
    driver, act = StepDriver(TaskWorld("reach", cameras=())), StateTeacher.load(teacher).expert()
    driver.reset(episodes[0].seed)
    np.testing.assert_allclose(episodes[0].actions[0], act(driver, 1.0), atol=1e-6)
    source = json.loads((recorded / WRITER).read_text())["source"]
    assert source["teacher"] == "ppo of reach, 1 steps"
    assert (source["made_by"], source["teacher_success"]) == ("volar.rl.distill", "9 of 10")


def test_it_rests_once_it_has_succeeded(teacher: Path) -> None:
    driver = StepDriver(TaskWorld("reach", cameras=()))
    episode = rollout(driver, 3, Disturbances(scale=0.0), StateTeacher.load(teacher).expert())
    assert episode.success
    np.testing.assert_array_equal(episode.actions[-1], [0, 0, 0, 0, 0, 0, 1])


def test_recording_goes_on_where_it_was_cut(teacher: Path, recorded: Path, tmp_path: Path) -> None:
    config = DistillConfig(teacher, tmp_path / "demos", episodes=1, image_size=32, workers=1)
    distill(config)
    distill(replace(config, episodes=3, resume=True))
    for a, b in zip(read_episodes(recorded), read_episodes(config.output), strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.images["wrist"], b.images["wrist"])
    other = tmp_path / "other"
    save_learner(make_learner("ppo", StateEnv("reach"), seed=1), other)
    (other / "results.json").write_text(json.dumps(RESULTS | COUNTED | {"steps": 2}))
    with pytest.raises(VolarError, match="teacher: 'ppo of reach, 1 steps', now 'ppo of reach, 2 steps'"):
        distill(replace(config, teacher=other, episodes=4, resume=True))
    for robot, word in (("ur5e", "another contract"), ("so101", "another contract")):
        (other / "results.json").write_text(json.dumps(RESULTS | COUNTED | {"robot": robot}))
        with pytest.raises(VolarError, match=word):
            distill(replace(config, teacher=other, episodes=4, resume=True))


def test_a_network_trains_on_it(recorded: Path, tmp_path: Path) -> None:
    small = {"width": 32, "layers": 1, "precision": "fp32", "threads": 1}
    train(TrainConfig(dataset=recorded, output=tmp_path / "run", steps=1, batch_size=4, warmup_steps=1, **small))
    assert (tmp_path / "run" / "checkpoints" / "last").exists()


def test_who_cannot_teach_is_refused(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DistillConfig(tmp_path, tmp_path / "demos", episodes=1, image_size=32, workers=1)
    with pytest.raises(VolarError, match="state_baselines output="):
        distill(config)
    results = tmp_path / "results.json"
    results.write_text(json.dumps(RESULTS | COUNTED))
    with pytest.raises(VolarError, match=r"has no model\.zip"):
        distill(config)
    save_learner(make_learner("ppo", StateEnv("reach"), seed=0), tmp_path)
    results.write_text(json.dumps(RESULTS))
    with pytest.raises(VolarError, match="successes"):
        distill(config)
    results.write_text(json.dumps(RESULTS | {"successes": 0, "episodes": 10}))
    with pytest.raises(VolarError, match=r"it succeeded in 0 of 10 \(0.0 to 27.8 %\); train it for more"):
        distill(config)
    results.write_text(json.dumps(RESULTS | COUNTED))
    monkeypatch.setattr(demonstration, "_ATTEMPTS", 1)
    with pytest.raises(VolarError, match=r"failed 1 times .* was evaluated, it succeeded in 9 of 10"):
        distill(config)
