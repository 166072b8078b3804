"""Layouts, language and experts of every task in the dict: a new task is covered by being there."""

import numpy as np
import pytest

from volar.robots.errors import Unknown
from volar.robots.fr3 import FR3
from volar.sim.predicates import near_horizontally
from volar.sim.scene import COLORS, SceneState
from volar.sim.tasks import SUITES, TASKS, load_suite, load_task
from volar.sim.tasks.task import (
    BLOCK_DISTANCE_M,
    BLOCKS_HIGH,
    BLOCKS_LOW,
    PLATE_DISTANCE_M,
    SIDES,
    Goal,
    instruction,
    wrong_instruction,
)
from volar.sim.world import StepDriver, TaskWorld

GOAL = Goal("red", np.array([0.5, 0.0, 0.02]), "left")


@pytest.fixture(scope="module", params=TASKS)
def driver(request: pytest.FixtureRequest) -> StepDriver:
    return StepDriver(TaskWorld(request.param, cameras=()))


def run_expert(driver: StepDriver, seed: int) -> int | None:
    """Steps to success, None when the task's time was not enough."""
    driver.reset(seed)
    for step in range(driver.world.task.max_steps):
        driver.step(driver.world.expert().astype(np.float32))
        if driver.world.success():
            return step + 1
    return None


def test_the_expert_succeeds(driver: StepDriver) -> None:
    # 100 seeds: python benchmarks/sim.py experts
    assert all(run_expert(driver, seed) is not None for seed in range(5))


def test_nothing_succeeds_by_itself(driver: StepDriver) -> None:
    """Standing still at home, open or closed, solves no episode."""
    for seed in range(3):
        driver.reset(seed)
        for _ in range(5):
            driver.step(np.array([0, 0, 0, 0, 0, 0, seed % 2], np.float32))
            assert not driver.world.success()


def test_expert_actions_are_within_the_action_space_and_smooth(driver: StepDriver) -> None:
    """A millimetre of difference in the hand's place changes the motion by millimetres: no bang-bang."""
    action = driver.world.spec.action
    low, high = np.array(action.low), np.array(action.high)
    driver.reset(1)
    world = driver.world
    for _ in range(8):
        here = world.state
        answer = world.expert()
        assert (answer >= low).all()
        assert (answer <= high).all()
        moved = SceneState(here.tcp + np.array([0.001, 0.0, 0.0]), here.blocks, here.plate, here.gripper_width_m)
        assert np.abs(world.task.expert(moved, world.goal) - answer)[:3].max() < 0.006
        driver.step(answer.astype(np.float32))


@pytest.mark.parametrize("name", TASKS)
def test_layouts_keep_their_distances(name: str) -> None:
    for seed in range(100):
        goal, placement = TASKS[name].sample(np.random.default_rng(seed), FR3)
        centres = placement.blocks[:, :2]
        assert (centres >= BLOCKS_LOW).all()
        assert (centres <= BLOCKS_HIGH).all()
        gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + np.eye(len(COLORS))
        assert gaps.min() >= BLOCK_DISTANCE_M
        assert np.linalg.norm(centres - placement.plate[:2], axis=1).min() >= PLATE_DISTANCE_M
        np.testing.assert_array_equal(placement.blocks[COLORS.index(goal.color)], goal.start)


def test_a_push_has_room() -> None:
    """Along the whole way of block and fingers no other block's centre is nearer than the two are wide."""
    for seed in range(100):
        goal, placement = TASKS["push"].sample(np.random.default_rng(seed), FR3)
        way = goal.start + np.linspace(-0.07, 0.08, 16)[:, None] * SIDES[goal.side]  # (16, 3)
        others = [block for block, color in zip(placement.blocks, COLORS, strict=True) if color != goal.color]
        assert not any(near_horizontally(place, other, 0.05) for place in way for other in others)


@pytest.mark.parametrize("name", TASKS)
def test_every_phrasing_names_what_decides(name: str) -> None:
    task = TASKS[name]
    assert len(task.templates) >= 5
    assert task.held_out_templates
    assert not set(task.templates) & set(task.held_out_templates)
    for template in (*task.templates, *task.held_out_templates):
        assert "{color}" in template
        assert ("{side}" in template) == (name == "push")
        assert "{" not in template.format(color="red", side="left")


@pytest.mark.parametrize("name", TASKS)
def test_wrong_instruction_names_another_colour(name: str) -> None:
    task, rng = TASKS[name], np.random.default_rng(0)
    for _ in range(20):
        wrong = wrong_instruction(task, GOAL, rng)
        assert "red" not in wrong.split()
        assert any(color in wrong.split() for color in COLORS)
        assert "red" in instruction(task, GOAL, rng).split()


def test_every_suite_is_made_of_tasks_there_are() -> None:
    assert all([task.name for task in load_suite(name)] == list(SUITES[name]) for name in SUITES)


def test_unknown_names_are_refused_with_the_near_ones() -> None:
    with pytest.raises(Unknown, match="did you mean lift"):
        load_task("lfit")
    with pytest.raises(Unknown, match="tabletop"):
        load_suite("tabeltop")
    with pytest.raises(Unknown, match="choices: fr3, so101, ur5e"):
        TaskWorld("lift", robot="fr4")
