"""The environments keep Gymnasium's contract and ours: `reset(seed)` alone determines an episode."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from volar.robots.errors import Unknown
from volar.sim.env import TabletopEnv, decode_instruction, encode_instruction, environment_id
from volar.sim.sim_robot import SimulationDiverged
from volar.sim.tasks import TASKS

LIFT = "volar.sim.gymnasium_ids:volar/Lift-v0"


@pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric")  # actions are in metres, on purpose
@pytest.mark.parametrize("task", TASKS)
def test_registered_environments_pass_both_checkers(task: str) -> None:
    env = gymnasium.make(f"volar.sim.gymnasium_ids:{environment_id(task)}", image_size=36, render_mode="rgb_array")
    check_env(env.unwrapped)
    check_env_sb3(env.unwrapped)
    env.close()


@pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric")
def test_a_randomized_environment_passes_both_checkers() -> None:
    env = TabletopEnv("lift", image_size=36, randomization="full", control_hz=20.0)
    check_env(env)
    check_env_sb3(env)
    env.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_environments_are_the_single_ones(mode: str) -> None:
    """The same observations for the same seeds, bit for bit, with what was drawn in the infos."""
    settings: dict[str, Any] = {"image_size": 32, "randomization": "full"}
    context = {"context": "spawn"} if mode == "async" else {}  # forking would copy OpenGL's contexts
    many = gymnasium.make_vec(LIFT, num_envs=2, vectorization_mode=mode, vector_kwargs=context, **settings)
    one = gymnasium.make(LIFT, **settings)
    rng = np.random.default_rng(0)
    actions = rng.uniform(many.single_action_space.low, many.single_action_space.high, (3, 2, 7)).astype(np.float32)
    seen, info = many.reset(seed=[7, 8])
    frames = [{key: value.copy() for key, value in seen.items()}]
    frames += [{key: value.copy() for key, value in many.step(action)[0].items()} for action in actions]
    for i, seed in enumerate((7, 8)):
        observation, single = one.reset(seed=seed)
        for k, frame in enumerate(frames):
            for key, value in observation.items():
                np.testing.assert_array_equal(frame[key][i], value, err_msg=f"{key} of {i} at {k}")
            if k < len(actions):
                observation = one.step(actions[k, i])[0]
        assert info["draws"]["image_noise"][i] == single["draws"]["image_noise"]
    many.close()
    one.close()


def test_draws_can_be_repeated() -> None:
    env = TabletopEnv("lift", image_size=32, randomization="visual")
    first, info = env.reset(seed=3)
    other, _ = env.reset(seed=4)
    again, _ = env.reset(seed=3, options={"draws": info["draws"]})
    np.testing.assert_array_equal(first["front"], again["front"])
    assert not np.array_equal(first["front"], other["front"])
    env.close()


def test_a_faster_policy_moves_as_fast_in_smaller_steps() -> None:
    slow, fast = TabletopEnv("lift", cameras=()), TabletopEnv("lift", cameras=(), control_hz=20.0)
    np.testing.assert_allclose(fast.action_space.high[:6], slow.action_space.high[:6] / 2)
    assert (fast.action_space.high[6], fast.max_steps) == (1.0, 2 * slow.max_steps)
    assert fast.metadata["render_fps"] == 20
    for env in (slow, fast):
        env.reset(seed=0)
    action = np.array([0.02, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], np.float32)
    half = np.array([0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], np.float32)
    for _ in range(5):
        slow.step(action)
        fast.step(half)
        fast.step(half)
    assert fast.world.body.now_ns == slow.world.body.now_ns
    np.testing.assert_allclose(fast.world.state.tcp, slow.world.state.tcp, atol=2e-3)
    done = False
    fast.reset(seed=0)
    while not done:
        done = fast.step(fast.world.expert().astype(np.float32))[2]
    with pytest.raises(ValueError, match="control_hz=30"):
        TabletopEnv("lift", control_hz=30.0)


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
    with pytest.raises(Unknown, match="did you mean visual"):
        TabletopEnv("lift", randomization="vsual")
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


def test_an_arm_that_jams_is_stopped_and_the_episode_goes_on() -> None:
    """It is not where it was told to be: the guard stops it, says so, and only a reset starts it again."""
    env = TabletopEnv("lift", cameras=(), max_steps=200)
    env.reset(seed=0)
    env.world.data.joint(env.world.spec.joint_names[1]).qpos[0] += 0.5  # something has moved it
    up = np.array([0, 0, 0.03, 0, 0, 0, 1], np.float32)
    _, _, terminated, truncated, info = env.step(up)
    assert info["stopped"] == "tracking_error"
    for _ in range(20):
        _, _, terminated, truncated, info = env.step(up)
    resting = env.world.state.tcp
    env.step(up)
    np.testing.assert_allclose(env.world.state.tcp, resting, atol=1e-3)
    assert not terminated
    assert not truncated
    env.reset(seed=1)
    start = env.world.state.tcp
    assert env.step(up)[4]["stopped"] == ""
    assert env.world.state.tcp[2] > start[2] + 0.003
