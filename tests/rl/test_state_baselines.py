"""The tasks can be learned from their rewards by others' algorithms."""

import json
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from volar.rl.state_baselines import BaselineConfig, StateEnv, train_baseline
from volar.robots.errors import Unknown


def test_the_environment_is_one() -> None:
    check_env(StateEnv("reach"), skip_render_check=True)


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


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_both_algorithms_run_and_leave_their_results(algorithm: str, tmp_path: Path) -> None:
    config = BaselineConfig(tmp_path, algorithm=algorithm, steps=120, episodes=1)  # type: ignore[arg-type]
    found = train_baseline(config)
    assert json.loads((tmp_path / "results.json").read_text()) == found
    assert (tmp_path / "model.zip").is_file()


def test_unknown_tasks_are_named(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="reach"):
        train_baseline(BaselineConfig(tmp_path, task="raech"))
