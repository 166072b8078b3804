"""Volar's tasks in LeRobot's own evaluation: its program, its loop, its reading of an environment."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.robots.contract import ContractError
from volar.robots.errors import Unknown, UsageError
from volar.robots.policies import default_policy
from volar.sim.closed_loop import episode_seed
from volar.sim.lerobot_plugin import VolarEnv
from volar.sim.world import TaskWorld

POLICY, ENVIRONMENT = "volar.vla.lerobot_plugin", "volar.sim.lerobot_plugin"


@pytest.mark.parametrize(("together", "processes"), [(1, "false"), (2, "true")])
def test_lerobot_eval_runs_the_shipped_policy(tmp_path: Path, together: int, processes: str) -> None:
    """Two episodes in which the policy succeeds, so images, state, order and actions arrive."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lerobot.scripts.lerobot_eval", f"--policy.path={default_policy()}"),
            *(f"--policy.discover_packages_path={POLICY}", f"--env.discover_packages_path={ENVIRONMENT}"),
            *("--env.type=volar", "--env.task=reach", "--seed=0", "--eval.n_episodes=2"),
            *(f"--eval.batch_size={together}", f"--eval.use_async_envs={processes}"),
            *("--policy.device=cpu", f"--output_dir={tmp_path / 'out'}"),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert found["per_task"][0]["metrics"]["successes"] == [True, True]
    assert found["per_group"]["reach"]["pc_success"] == 100.0
    assert [Path(film).stat().st_size > 0 for film in found["overall"]["video_paths"]] == [True, True]


def test_a_wrong_task_is_named_by_lerobot_eval(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lerobot.scripts.lerobot_eval import eval_main

    words = [f"--env.discover_packages_path={ENVIRONMENT}", "--env.type=volar", "--env.task=lfit"]
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *words])
    with pytest.raises(SystemExit) as exited:
        eval_main()
    assert exited.value.code == 1
    assert "unknown task 'lfit'; did you mean lift?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"robot": "fr4"}, "did you mean fr3"),
        ({"cameras": ["wrsit"]}, "did you mean wrist"),
        ({"cameras": []}, "name one of"),
        ({"randomization": "ful"}, "did you mean full"),
    ],
)
def test_other_mistakes_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises((Unknown, UsageError), match=said):
        VolarEnv(**settings)


def test_a_suite_is_its_tasks_and_features_are_what_is_seen() -> None:
    from lerobot.envs import close_envs, make_env, preprocess_observation
    from lerobot.envs.utils import env_to_policy_features

    config = VolarEnv(task="starter,reach", image_size=32, cameras=["wrist"])
    envs = make_env(config, n_envs=1)
    assert list(envs) == ["reach", "push", "lift", "place_on"]
    observation, _ = envs["lift"][0].reset(seed=[7])
    seen = preprocess_observation(observation)
    features = env_to_policy_features(config)
    assert {key: tuple(value.shape[1:]) for key, value in seen.items() if key != "observation.body"} == {
        key: feature.shape for key, feature in features.items() if key != "action"
    }
    assert envs["lift"][0].single_action_space.shape == features["action"].shape
    assert envs["lift"][0].call("_max_episode_steps") == (TaskWorld("lift", cameras=()).task.max_steps,)
    close_envs(envs)
    close_envs(envs)  # LeRobot closes twice


def test_lerobots_seeds_number_the_episodes_of_an_evaluation() -> None:
    """As `volar-evaluate seed=4` has them: scene, images and order; each instance ends for itself and then rests."""
    config = VolarEnv(task="push", seed=4, image_size=32, cameras=["front"], episode_length=2)
    (group,) = config.create_envs(2).values()
    env, world = group[0], TaskWorld("push", "fr3", ("front",), 32)
    observation, _ = env.reset(seed=[0, 1], options={"lerobot_new_rollout": True})
    for index in range(2):
        world.reset(episode_seed(4, "push", index))
        np.testing.assert_array_equal(observation["pixels"]["front"][index], world.body.images()["front"])
        assert env.call("task_description")[index] == world.instruction
    world.close()
    still = np.zeros((2, 7), np.float32)
    ends = [env.step(still)[3].tolist() for _ in range(2)]
    assert ends == [[False, False], [True, True]]
    last = env.step(still)[0]["agent_pos"]  # LeRobot's loop steps on until every instance has ended
    np.testing.assert_array_equal(env.step(still)[0]["agent_pos"], last)
    env.close()


def test_actions_a_second_are_those_of_the_robot_or_told() -> None:
    assert VolarEnv().fps == 10
    (group,) = VolarEnv(task="lift", fps=20).create_envs(1).values()
    assert group[0].metadata["render_fps"] == 20
    assert group[0].call("_max_episode_steps") == (2 * TaskWorld("lift", cameras=()).task.max_steps,)
    group[0].close()


def test_a_policy_of_another_body_is_refused() -> None:
    """The one thing LeRobot compares is names of cameras, and both robots have the same."""
    from lerobot.scripts.lerobot_eval import rollout

    policy, pipelines = volar_policy()
    for settings, said in (
        ({"robot": "ur5e"}, "robot: policy wants fr3, found ur5e"),
        ({"fps": 20}, "the environment 20: --env.fps=10"),
    ):
        (group,) = VolarEnv(episode_length=1, **settings).create_envs(1).values()
        with pytest.raises(ContractError, match=said):
            rollout(group[0], policy, *VolarEnv().get_env_processors(), *pipelines, seeds=[0])
        group[0].close()


def test_a_policy_of_lerobots_own_acts_here() -> None:
    from lerobot.envs.utils import env_to_policy_features
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
    from lerobot.scripts.lerobot_eval import rollout

    environment = VolarEnv(task="lift", image_size=64, cameras=["front"], episode_length=3)
    features = env_to_policy_features(environment)
    config = make_policy_config(
        "act",
        device="cpu",
        input_features={key: feature for key, feature in features.items() if key != "action"},
        output_features={"action": features["action"]},
        chunk_size=3,
        n_action_steps=3,
        dim_model=32,
        n_heads=2,
        dim_feedforward=32,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=8,
        pretrained_backbone_weights=None,
    )
    policy = get_policy_class("act")(config).eval()
    pipelines = make_pre_post_processors(config)
    (group,) = environment.create_envs(2).values()
    done = rollout(group[0], policy, *environment.get_env_processors(), *pipelines, seeds=[0, 1])
    assert done["action"].shape == (2, 3, 7)
    assert done["done"][:, -1].all()
    group[0].close()


def volar_policy() -> tuple[Any, Any]:
    """The shipped one, as LeRobot loads it: the policy and its two pipelines."""
    from importlib import import_module

    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    import_module(POLICY)
    folder = default_policy()
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--device=cpu"])
    return get_policy_class("volar").from_pretrained(folder), make_pre_post_processors(config, str(folder))
