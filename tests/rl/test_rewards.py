"""The reward is for what was asked, and for nothing else."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from volar.rl.rewards import (
    DenseReward,
    Told,
    make_reward,
    potential,
    privileged_size,
    privileged_state,
    told_goal,
)
from volar.robots.errors import Unknown, VolarError
from volar.sim.colors import COLORS
from volar.sim.distributions import Choice
from volar.sim.randomization import Randomization, Term
from volar.sim.scene import SceneState
from volar.sim.tasks import SUITES, TASKS, load_task
from volar.sim.tasks.task import SIDES
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


def test_what_an_order_leaves_open_stays_as_in_the_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    w = world("stack")
    others = [color for color in COLORS if color != w.goal.color]
    for template in ("stack something on the {other} block", "stack the {color} block on another"):
        monkeypatch.setattr(type(w.task), "templates", (template,))
        for other in others:
            own = replace(w.goal, other=other)
            found = told_goal(w.task, template.format(color=own.color, other=own.other), own, w.state)
            assert (found.color, found.other) == (own.color, own.other)
    w = world("push")
    monkeypatch.setattr(type(w.task), "templates", ("push the {color} block aside",))
    for side in SIDES:
        own = replace(w.goal, side=side)
        assert told_goal(w.task, f"push the {own.color} block aside", own, w.state).side == side


DISTRACTORS = Randomization("distractors", (Term("distractor_count", Choice((3,))),))


@cache
def episode(task: str, randomization: Randomization) -> tuple[TaskWorld, list[SceneState]]:
    """The scripted expert does what the scene's own order asks: the states from reset to success."""
    w = TaskWorld(task, cameras=(), randomization=randomization)
    driver = StepDriver(w)
    driver.reset(1)
    states = [w.state]
    while len(states) <= w.task.max_steps and not w.success():
        driver.step(w.expert().astype(np.float32))
        states.append(w.state)
    return w, states


def earned(name: str, told: Told, states: list[SceneState]) -> list[float]:
    """What the reward of that name gives for each step between these states."""
    reward = make_reward(name, told, 0.9)
    reward.begin(states[0])
    return [reward.after_step(state, told.success(state)) for state in states[1:]]


@pytest.mark.parametrize("task", SUITES["tabletop"])
def test_following_another_instruction_earns_nothing(task: str) -> None:
    w, states = episode(task, Randomization("none"))
    for text, wanted in ((w.instruction, 1.0), (w.wrong_instruction(), 0.0)):
        told = Told(w.task, told_goal(w.task, text, w.goal, states[0]))
        assert sum(earned("sparse", told, states)) == wanted
    assert w.success()


@pytest.mark.parametrize("task", SUITES["tabletop"])
def test_what_is_not_asked_for_changes_no_reward(task: str) -> None:
    """Neither things of other colours that stand about, nor where the blocks are that the order does not name."""
    w, states = episode(task, DISTRACTORS)
    assert len(w.draws["distractor_poses"]) == 3
    told, rng = Told(w.task, w.goal), np.random.default_rng(0)
    others = [i for i, color in enumerate(COLORS) if color not in (w.goal.color, w.goal.other)]
    moved = [replace(state, blocks=state.blocks.copy()) for state in states]
    for state in moved:
        state.blocks[others] += rng.uniform(-0.2, 0.2, (len(others), 3))
    for name in ("sparse", "dense"):
        found = earned(name, told, states)
        assert found == earned(name, told, moved)
        assert found == pytest.approx(earned(name, told, episode(task, Randomization("none"))[1]), abs=1e-3)
    assert told.success(states[-1])


@pytest.mark.parametrize("task", SUITES["tabletop"])
def test_another_block_in_the_place_of_the_right_one_is_no_success(task: str) -> None:
    w, states = episode(task, DISTRACTORS)
    wrong = told_goal(w.task, w.wrong_instruction(), w.goal, states[0]).color
    assert Told(w.task, w.goal).success(states[-1])
    assert not Told(w.task, w.goal).success(exchanged(states[-1], w.goal.color, wrong))


def exchanged(state: SceneState, a: str, b: str) -> SceneState:
    """The blocks of these colours are each where the other was; drawers, buttons and levers likewise."""
    swap = {a: b, b: a}
    order = [COLORS.index(swap.get(color, color)) for color in COLORS]
    joints = {}
    for name, value in state.joints.items():
        kind, _, color = name.rpartition("_")
        joints[name] = state.joints.get(f"{kind}_{swap.get(color, color)}", value)
    return replace(state, blocks=state.blocks[order], joints=joints)


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
