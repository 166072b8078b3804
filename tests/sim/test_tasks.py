"""Layouts, language and experts of every task in the dict: a new task is covered by being there."""

import string
from dataclasses import replace

import numpy as np
import pytest

from volar.robots.errors import Unknown
from volar.robots.fr3 import FR3
from volar.sim.colors import COLORS
from volar.sim.predicates import near_horizontally
from volar.sim.tasks import SUITES, TASKS, load_suite, load_task
from volar.sim.tasks.layout import (
    BLOCK_DISTANCE_M,
    BLOCKS_HIGH,
    BLOCKS_LOW,
    PLATE_DISTANCE_M,
    STRIP_LOW,
    Area,
    NoLayout,
    scatter,
)
from volar.sim.tasks.task import SIDES, instruction, wrong_instruction
from volar.sim.world import StepDriver, TaskWorld

ROBOTS = ("fr3", "ur5e", "so101")


@pytest.fixture(scope="module", params=[(task, robot) for task in TASKS for robot in ROBOTS], ids="-".join)
def driver(request: pytest.FixtureRequest) -> StepDriver:
    task, robot = request.param
    return StepDriver(TaskWorld(task, robot, cameras=()))


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
    assert all(run_expert(driver, seed) is not None for seed in range(3))


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
        shift = np.array([0.001, 0.0, 0.0])
        moved = replace(here, tcp=here.tcp + shift, fingertips=here.fingertips + shift)
        difference = (world.task.expert(moved, world.goal) - world.task.expert(here, world.goal))[:3]
        assert np.abs(difference).max() < 0.006
        driver.step(answer.astype(np.float32))


@pytest.mark.parametrize("name", TASKS)
def test_layouts_keep_their_distances(name: str) -> None:
    for seed in range(100):
        goal, placement = TASKS[name].sample(np.random.default_rng(seed), FR3)
        centres = placement.blocks[:, :2]
        assert (centres >= np.minimum(BLOCKS_LOW, STRIP_LOW)).all()
        assert (centres <= BLOCKS_HIGH).all()
        gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + np.eye(len(COLORS))
        assert gaps.min() >= BLOCK_DISTANCE_M
        solid = [pose[:2] for prop, pose in placement.props.items() if prop != "mark"]
        if "plate" in TASKS[name].props:
            solid.append(placement.plate[:2])
        if solid:  # the nearest are the buttons, which a closed hand presses from above
            least = PLATE_DISTANCE_M if name not in ("press_button",) else 0.1
            assert min(np.linalg.norm(centres - place, axis=1).min() for place in solid) >= least
        assert goal.color in goal.choices


@pytest.mark.parametrize("name", TASKS)
def test_the_target_of_an_order_is_where_it_starts(name: str) -> None:
    """And nothing moves by itself: what is placed rests, in the places that the layout says."""
    world = TaskWorld(name, cameras=())
    for seed in range(5):
        world.reset(seed)
        before = world.state
        if "drawers" not in TASKS[name].props and name not in ("turn_lever", "press_button", "sort"):
            np.testing.assert_allclose(world.task.target(before, world.goal), world.goal.start, atol=1e-9)
        world.advance(0.5)
        after = world.state
        np.testing.assert_allclose(after.blocks, before.blocks, atol=2e-3)
        for prop, place in before.props.items():
            np.testing.assert_allclose(after.props[prop], place, atol=2e-3)


def test_too_crowded_a_table_is_refused() -> None:
    crowd = [Area(np.zeros(2), np.full(2, 0.1), 0.06)] * 4
    with pytest.raises(NoLayout, match="4 things"):
        scatter(np.random.default_rng(0), crowd)


def test_a_push_has_room() -> None:
    """Along the whole way of block and fingers no other block's centre is nearer than the two are wide."""
    for seed in range(100):
        goal, placement = TASKS["push"].sample(np.random.default_rng(seed), FR3)
        way = goal.start + np.linspace(-0.07, 0.08, 16)[:, None] * SIDES[goal.side]  # (16, 3)
        others = [block for block, color in zip(placement.blocks, COLORS, strict=True) if color != goal.color]
        assert not any(near_horizontally(place, other, 0.05) for place in way for other in others)


def _fields(template: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(template) if field}


@pytest.mark.parametrize("name", TASKS)
def test_every_phrasing_names_what_decides(name: str) -> None:
    task = TASKS[name]
    assert len(task.templates) >= 5
    assert task.held_out_templates
    assert not set(task.templates) & set(task.held_out_templates)
    goal, _ = task.sample(np.random.default_rng(0), FR3)
    decides = {"color", *(part for part in ("side", "other") if getattr(goal, part))}
    assert all(_fields(template) == decides for template in (*task.templates, *task.held_out_templates))


@pytest.mark.parametrize("name", TASKS)
def test_wrong_instruction_names_another_colour(name: str) -> None:
    task, rng = TASKS[name], np.random.default_rng(0)
    for seed in range(20):
        goal, _ = task.sample(np.random.default_rng(seed), FR3)
        wrong = wrong_instruction(task, goal, rng).split()
        assert goal.color not in wrong or goal.color == goal.other  # a red block, a red drawer
        assert any(color in wrong for color in goal.choices if color != goal.other)
        assert goal.color in instruction(task, goal, rng).split()


def test_orders_of_different_tasks_differ() -> None:
    """No phrasing means two tasks: what an order says is decided by its words."""
    owners: dict[str, str] = {}
    for name, task in TASKS.items():
        for template in (*task.templates, *task.held_out_templates):
            said = template.format(color="red", side="left", other="blue")
            assert owners.setdefault(said, name) == name


def test_every_suite_is_made_of_tasks_there_are() -> None:
    assert all([task.name for task in load_suite(name)] == list(SUITES[name]) for name in SUITES)


def test_unknown_names_are_refused_with_the_near_ones() -> None:
    with pytest.raises(Unknown, match="did you mean lift"):
        load_task("lfit")
    with pytest.raises(Unknown, match="tabletop"):
        load_suite("tabeltop")
    with pytest.raises(Unknown, match="choices: fr3, so101, ur5e"):
        TaskWorld("lift", robot="fr4")
