"""The tasks can be learned from their rewards by others' algorithms, also over interruptions and without pickle."""

import base64
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from volar.datasets.durable_file import OutputExists
from volar.rl.state_baselines import BaselineConfig, train_baseline
from volar.rl.state_env import StateEnv, observe
from volar.rl.state_learner import MODEL, load_learner, load_weights, make_learner, save_learner
from volar.robots.errors import Unknown, VolarError
from volar.sim.env import TabletopEnv
from volar.sim.world import StepDriver, TaskWorld


def test_the_environment_is_one_and_that_of_the_registered_id(monkeypatch: pytest.MonkeyPatch) -> None:
    made, make = [], gymnasium.make
    monkeypatch.setattr(gymnasium, "make", lambda name, **kwargs: made.append(make(name, **kwargs)) or made[-1])
    check_env(StateEnv("reach"), skip_render_check=True)
    assert made[0].spec.id == "volar/Reach-v0"
    assert isinstance(made[0].unwrapped, TabletopEnv)


def test_a_teacher_sees_in_a_demonstration_what_it_saw_in_training() -> None:
    env, driver = StateEnv("push"), StepDriver(TaskWorld("push", cameras=()))
    seen, _ = env.reset(seed=5)
    driver.reset(5)
    steps = driver.world.task.max_steps
    for step in range(3):
        shown = observe(driver.world, driver.proprio(), 1.0 - step / steps)
        assert seen.keys() == shown.keys()
        for key in seen:
            np.testing.assert_array_equal(seen[key], shown[key])
        seen, *_ = env.step(np.array([0.5, -0.2, -1.0, -1.0], np.float32))
        driver.step(np.array([0.0175, -0.007, -0.035, 0, 0, 0, 0], np.float32))


def test_going_towards_the_block_earns_more_than_going_away() -> None:
    earned = []
    for sign in (1.0, -1.0):
        env = StateEnv("reach")
        seen, _ = env.reset(seed=3)
        total = 0.0
        for _ in range(8):
            way = -sign * seen["scene"][:3]  # the first three: the hand's place relative to the block
            action = np.append(way / np.linalg.norm(way), 1.0).astype(np.float32)
            seen, reward, success, _, _ = env.step(action)
            total += reward
            if success:
                break
        earned.append(total)
    assert earned[0] > earned[1] + 0.1


@pytest.mark.parametrize(("algorithm", "steps"), [("ppo", 320), ("sac", 192)])  # PPO: 128, and a rollout of 192
def test_training_goes_on_where_it_was_cut(algorithm: str, steps: int, tmp_path: Path) -> None:
    config = BaselineConfig(tmp_path, algorithm=algorithm, steps=128, episodes=1)  # type: ignore[arg-type]
    found = train_baseline(config)
    assert json.loads((tmp_path / "results.json").read_text()) == found
    (tmp_path / "results.json").unlink()  # a kill before the end
    with pytest.raises(OutputExists, match="resume=true"):
        train_baseline(config)
    with pytest.raises(VolarError, match="task: 'reach', now 'push'"):
        train_baseline(replace(config, task="push", resume=True))
    found = train_baseline(replace(config, steps=192, resume=True))
    assert (found["steps"], found["robot"], found["step_m"], found["reward"]) == (steps, "fr3", 0.035, "dense")


def test_a_checkpoint_is_all_that_sac_has_learned_and_seen(tmp_path: Path) -> None:
    env = StateEnv("reach")
    model, fresh = make_learner("sac", env, 130, seed=0), make_learner("sac", env, 200, seed=1)
    model.learn(130)
    save_learner(model, tmp_path)
    load_learner(fresh, tmp_path)
    for key, value in model.policy.state_dict().items():
        torch.testing.assert_close(fresh.policy.state_dict()[key], value)
    torch.testing.assert_close(fresh.log_ent_coef, model.log_ent_coef)
    assert fresh.replay_buffer.pos == fresh.replay_buffer.size() == 130
    np.testing.assert_array_equal(fresh.replay_buffer.rewards[:130], model.replay_buffer.rewards)
    scene = [m.replay_buffer.next_observations["scene"][:130] for m in (fresh, model)]
    np.testing.assert_array_equal(*scene)


def test_weights_are_read_and_nothing_is_unpickled(tmp_path: Path) -> None:
    """`model.zip` with a pickle in it that would leave a file behind, as Stable-Baselines3's `load` runs it."""
    env, bombed = StateEnv("reach"), tmp_path / "bombed"
    save_learner(make_learner("ppo", env, seed=0), tmp_path)
    bomb = f"cposix\nsystem\n(S'touch {bombed}'\ntR.".encode()
    data = {"policy_class": {":type:": "x", ":serialized:": base64.b64encode(bomb).decode()}}
    with zipfile.ZipFile(tmp_path / MODEL) as good, zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, json.dumps(data) if name == "data" else good.read(name))
    load_weights(make_learner("ppo", env, seed=1), tmp_path / "bad.zip")
    with zipfile.ZipFile(tmp_path / "worse.zip", "w") as worse:
        worse.writestr("policy.pth", bomb)
    with pytest.raises(VolarError, match=r"worse\.zip"):
        load_weights(make_learner("ppo", env), tmp_path / "worse.zip")
    assert not bombed.exists()
    with pytest.raises(VolarError, match="no weights of this task, robot and algorithm"):
        load_weights(make_learner("sac", env), tmp_path / MODEL)


def test_unknown_tasks_are_named(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="reach"):
        train_baseline(BaselineConfig(tmp_path, task="raech"))
