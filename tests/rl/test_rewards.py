"""The reward is for what was asked, and for nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from volar.rl.rewards import (
    DenseReward,
    SparseReward,
    Told,
    make_reward,
    potential,
    privileged_size,
    privileged_state,
    told_goal,
)
from volar.robots.errors import Unknown, VolarError
from volar.sim.colors import COLORS
from volar.sim.tasks import TASKS, load_task
from volar.sim.world import StepDriver, TaskWorld


def world(task: str, seed: int = 0) -> TaskWorld:
    found = TaskWorld(task, cameras=())
    found.reset(seed)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_an_episodes_own_instruction_asks_for_its_own_goal(task: str) -> None:
    for seed in range(3):
        w = world(task, seed)
        for text in (w.instruction, w.rephrased()):
            goal = told_goal(w.task, text, w.goal, w.state)
            assert (goal.color, goal.side, goal.other) == (w.goal.color, w.goal.side, w.goal.other)
            assert np.array_equal(goal.start, w.goal.start)


def test_words_that_are_no_order_are_refused() -> None:
    w = world("lift")
    with pytest.raises(VolarError, match="sing a song"):
        told_goal(w.task, "sing a song", w.goal, w.state)


def finished(task: str, told_wrong: bool) -> tuple[float, float]:
    """What the episode earns when the scene's own goal is reached: the reward, and what a reward of its goal says."""
    w = world(task, 1)
    instruction = w.wrong_instruction() if told_wrong else w.instruction
    told = Told(w.task, told_goal(w.task, instruction, w.goal, w.state))
    reward = SparseReward()
    reward.begin(w.state)
    driver, earned = StepDriver(w), 0.0
    driver.reset(1)
    for _ in range(w.task.max_steps):
        driver.step(w.expert().astype(np.float32))
        earned += reward.after_step(w.state, told.success(w.state))
        if w.success():
            break
    return earned, float(w.success())


@pytest.mark.parametrize("task", ["reach", "push", "lift"])
def test_following_another_instruction_earns_nothing(task: str) -> None:
    assert finished(task, told_wrong=False) == (1.0, 1.0)
    assert finished(task, told_wrong=True) == (0.0, 1.0)


def test_what_is_not_asked_for_changes_no_reward() -> None:
    w = world("place_on")
    told = Told(w.task, w.goal)
    state = w.state
    moved = state.blocks.copy()
    others = [i for i, color in enumerate(COLORS) if color != w.goal.color]
    moved[others] += np.random.default_rng(0).uniform(-0.2, 0.2, (3, 3))
    other = replace(state, blocks=moved)
    for name in ("sparse", "dense"):
        found = []
        for s in (state, other):
            reward = make_reward(name, told, 0.9)
            reward.begin(s)
            found.append([reward.after_step(s, False), reward.after_step(s, True)])
        assert found[0] == found[1]
    assert potential(told, state) == potential(told, other)


def test_shaping_adds_only_what_the_start_was_worth() -> None:
    """Over a whole episode that ends, the discounted shaping is minus the first potential, whatever was done."""
    w, gamma = world("push_to"), 0.9
    told = Told(w.task, w.goal)
    reward = DenseReward(told, gamma, weight=2.0)
    start = w.state
    reward.begin(start)
    rng, total = np.random.default_rng(0), 0.0
    for t in range(5):
        state = replace(start, tcp=start.tcp + rng.normal(size=3))
        total += gamma**t * reward.after_step(state, success=t == 4)
    assert total == pytest.approx(gamma**4 - 2.0 * potential(told, start))


def test_nearer_is_better() -> None:
    w = world("lift")
    told, state = Told(w.task, w.goal), w.state
    nearer = replace(state, tcp=(state.tcp + state.block(w.goal.color)) / 2)
    assert -1 <= potential(told, state) < potential(told, nearer) <= 0


@pytest.mark.parametrize("task", TASKS)
def test_what_the_critic_sees_has_one_size(task: str) -> None:
    w = world(task)
    seen = privileged_state(Told(w.task, w.goal), w.state, 1.0, tuple(TASKS))
    assert seen.shape == (privileged_size(tuple(TASKS)),)
    assert np.isfinite(seen).all()
    assert seen[-len(TASKS) :].tolist() == [float(name == task) for name in TASKS]


def test_unknown_rewards_are_named() -> None:
    task = load_task("lift")
    with pytest.raises(Unknown, match="sparse"):
        make_reward("spares", Told(task, world("lift").goal), 0.9)
