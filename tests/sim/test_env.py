"""The environments keep Gymnasium's contract and ours: `reset(seed)` alone determines an episode."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from volar.robots.errors import Unknown
from volar.sim.env import TabletopEnv, decode_instruction, encode_instruction, environment_id
from volar.sim.sim_robot import SimulationDiverged
from volar.sim.tasks import TASKS


@pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric")  # actions are in metres, on purpose
@pytest.mark.parametrize("task", TASKS)
def test_registered_environments_pass_both_checkers(task: str) -> None:
    env = gymnasium.make(f"volar.sim.gymnasium_ids:{environment_id(task)}", image_size=36, render_mode="rgb_array")
    check_env(env.unwrapped)
    check_env_sb3(env.unwrapped)
    env.close()


def test_ids() -> None:
    names = ("reach", "push", "lift", "place_on")
    ids = ["volar/Reach-v0", "volar/Push-v0", "volar/Lift-v0", "volar/PlaceOn-v0"]
    assert [environment_id(task) for task in names] == ids


def test_reset_alone_determines_the_episode() -> None:
    """Bitwise the same observations after different histories."""
    env = TabletopEnv("lift", image_size=32)
    actions = np.random.default_rng(0).uniform(env.action_space.low, env.action_space.high, (6, 7)).astype(np.float32)

    def play() -> list[dict[str, np.ndarray]]:
        seen = [env.reset(seed=11)[0]]
        return seen + [env.step(action)[0] for action in actions]

    first = play()
    env.reset(seed=5)
    for action in -actions[:4]:
        env.step(np.clip(action, env.action_space.low, env.action_space.high))
    for a, b in zip(first, play(), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    env.close()


def test_unseeded_resets_differ_and_follow_from_the_first_seed() -> None:
    env = TabletopEnv("reach", cameras=())

    def three() -> list[int]:
        return [env.reset(seed=3)[1]["seed"], env.reset()[1]["seed"], env.reset()[1]["seed"]]

    seeds = three()
    assert len(set(seeds)) == 3
    assert three() == seeds


def test_success_terminates_and_time_truncates() -> None:
    env = TabletopEnv("reach", cameras=(), max_steps=4)
    env.reset(seed=0)
    results = [env.step(np.array([0, 0, 0, 0, 0, 0, 1], np.float32)) for _ in range(4)]
    assert [(terminated, truncated) for _, _, terminated, truncated, _ in results] == [(False, False)] * 3 + [
        (False, True)
    ]
    env = TabletopEnv("reach", cameras=())
    env.reset(seed=0)
    terminated = truncated = False
    while not (terminated or truncated):
        _, reward, terminated, truncated, info = env.step(env.world.expert().astype(np.float32))
        assert reward == float(terminated) == float(info["is_success"])
    assert terminated
    assert not truncated


def test_instruction_is_in_the_observation() -> None:
    env = TabletopEnv("push", cameras=())
    observation, info = env.reset(seed=2)
    assert decode_instruction(observation["instruction"]) == info["instruction"]
    with pytest.raises(ValueError, match="at most 96"):
        encode_instruction("x" * 97)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(Unknown, match="did you mean wrist"):
        TabletopEnv("lift", cameras=("wrsit",))
    with pytest.raises(Unknown, match="did you mean lift"):
        TabletopEnv("lfit")
    with pytest.raises(ValueError, match="max_steps"):
        TabletopEnv("lift", max_steps=0)


def test_diverging_physics_ends_that_episode_only() -> None:
    env = TabletopEnv("lift", cameras=())
    env.reset(seed=42)
    env.world.data.qvel[:] = np.nan
    still = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    with pytest.raises(SimulationDiverged, match="seed 42"):
        env.step(still)
    observation, _ = env.reset(seed=43)
    assert np.isfinite(observation["state"]).all()
    assert np.isfinite(env.step(still)[0]["state"]).all()


def test_an_action_that_is_not_finite_is_refused() -> None:
    env = TabletopEnv("lift", cameras=())
    env.reset(seed=0)
    with pytest.raises(ValueError, match="non_finite"):
        env.step(np.full(7, np.nan, np.float32))
