"""Advantages over decisions that last several steps, against numbers worked out by hand."""

import numpy as np
import pytest

from volar.rl.advantages import decision_advantages, group_advantages, normalized
from volar.rl.episodes import per_decision


def test_rewards_of_a_chunk_are_discounted_to_its_beginning() -> None:
    # Seven steps; decisions at 0, 2 and 6. gamma = 1/2.
    rewards, steps = per_decision([1.0, 2.0, 4.0, 0.0, 8.0, 0.0, 16.0], [0, 2, 6], 0.5)
    assert steps.tolist() == [2, 4, 1]
    assert rewards.tolist() == [1 + 1.0, 4 + 2.0, 16.0]


def test_the_next_decision_is_discounted_by_the_steps_executed() -> None:
    # V = 1, 2; decisions of 2 and 1 steps; gamma = 1/2, so the second is worth a quarter of its value to the first.
    # delta_1 = 3 + 0 - 2 = 1; delta_0 = 0 + 1/4 * 2 - 1 = -1/2; A_0 = -1/2 + 1/4 * lambda * 1 with lambda = 1/2.
    found, returns = decision_advantages(np.array([0.0, 3.0]), np.array([2, 1]), np.array([1.0, 2.0]), 0.0, 0.5, 0.5)
    assert found.tolist() == [-0.375, 1.0]
    assert returns.tolist() == [0.625, 3.0]


def test_an_episode_that_the_clock_cut_off_is_bootstrapped() -> None:
    terminated, _ = decision_advantages(np.array([0.0]), np.array([4]), np.array([0.25]), 0.0, 0.5, 1.0)
    truncated, _ = decision_advantages(np.array([0.0]), np.array([4]), np.array([0.25]), 8.0, 0.5, 1.0)
    assert terminated.tolist() == [-0.25]
    assert truncated.tolist() == [-0.25 + 8 / 16]


def test_lambda_one_is_the_return_less_the_value() -> None:
    rng = np.random.default_rng(0)
    rewards, values, steps = rng.normal(size=6), rng.normal(size=6), rng.integers(1, 5, 6)
    _, returns = decision_advantages(rewards, steps, values, 0.7, 0.9, 1.0)
    until = np.concatenate([[0], np.cumsum(steps)])
    wanted = [
        sum(rewards[k] * 0.9 ** (until[k] - until[t]) for k in range(t, 6)) + 0.7 * 0.9 ** (until[6] - until[t])
        for t in range(6)
    ]
    assert returns == pytest.approx(wanted, abs=1e-6)


def test_groups_without_variance_say_nothing() -> None:
    found, useful = group_advantages([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0], [0, 0, 1, 1, 2, 2, 0, 0])
    assert useful.tolist() == [True, True, False, False, False, False, True, True]
    assert found.tolist() == [0.5, -0.5, 0, 0, 0, 0, 0.5, -0.5]


def test_each_task_has_its_own_mean_and_scale() -> None:
    found = normalized(np.array([2.0, 0.0, 50.0, -150.0], np.float32), ["a", "a", "b", "b"])
    assert found == pytest.approx([1, -1, 1, -1], rel=1e-4)
