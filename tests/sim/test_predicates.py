"""Predicates are functions of positions; each holds where it should and stops where it should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volar.sim import predicates
from volar.sim.scene import BLOCK_ON_PLATE_Z_M, BLOCK_ON_TABLE_Z_M

ORIGIN = np.array([0.5, 0.0, BLOCK_ON_TABLE_Z_M])
LEFT, UP = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])


def vectors(low: float = -0.1, high: float = 0.1) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.floats(low, high), min_size=3, max_size=3).map(np.array)


def test_near_counts_height_and_near_horizontally_does_not() -> None:
    above = ORIGIN + UP * 0.1
    assert not predicates.near(above, ORIGIN, 0.05)
    assert predicates.near_horizontally(above, ORIGIN, 0.0)
    assert predicates.near(ORIGIN + np.array([0.03, 0.04, 0.0]), ORIGIN, 0.0501)


@pytest.mark.parametrize(("height_m", "holds"), [(0.059, False), (0.061, True)])
def test_lifted_is_about_the_rest_height(height_m: float, holds: bool) -> None:
    assert predicates.lifted(ORIGIN + UP * height_m, 0.06) is holds


@pytest.mark.parametrize(
    ("moved", "holds"),
    [
        ([0.0, 0.07, 0.0], True),
        ([0.0, 0.05, 0.0], False),  # not far enough
        ([0.0, -0.07, 0.0], False),  # the other way
        ([0.05, 0.07, 0.0], False),  # too far sideways
    ],
)
def test_moved_towards(moved: list[float], holds: bool) -> None:
    assert predicates.moved_towards(ORIGIN + moved, ORIGIN, LEFT, 0.06, 0.04) is holds


@pytest.mark.parametrize(
    ("block", "holds"),
    [
        ([0.5, 0.03, BLOCK_ON_PLATE_Z_M], True),
        ([0.5, 0.05, BLOCK_ON_PLATE_Z_M], False),  # beside the middle
        ([0.5, 0.0, BLOCK_ON_PLATE_Z_M + 0.05], False),  # held above it
    ],
)
def test_on_plate(block: list[float], holds: bool) -> None:
    assert predicates.on_plate(np.array(block), np.array([0.5, 0.0, 0.004])) is holds


def test_resting_and_open() -> None:
    assert predicates.resting_on_table(ORIGIN)
    assert not predicates.resting_on_table(ORIGIN + UP * 0.02)
    assert predicates.gripper_open(0.08)
    assert not predicates.gripper_open(0.04)


@pytest.mark.parametrize(
    ("above", "holds"),
    [
        ([0.0, 0.0, 0.04], True),
        ([0.015, 0.0, 0.04], True),
        ([0.021, 0.0, 0.04], False),  # over the edge: it would tip
        ([0.0, 0.0, 0.06], False),  # held above
        ([0.0, 0.0, 0.0], False),
    ],
)
def test_on_block(above: list[float], holds: bool) -> None:
    assert predicates.on_block(ORIGIN + above, ORIGIN) is holds


@pytest.mark.parametrize(
    ("offset", "height_m", "holds"),
    [(0.0, 0.026, True), (0.044, 0.026, True), (0.046, 0.026, False), (0.0, 0.05, False), (0.0, 0.0, False)],
)
def test_on_mat(offset: float, height_m: float, holds: bool) -> None:
    mat = np.array([0.5, 0.0, 0.0])
    assert predicates.on_mat(mat + np.array([0.0, offset, height_m]), mat) is holds


@pytest.mark.parametrize(
    ("offset", "height_m", "holds"),
    [(0.0, 0.028, True), (0.03, 0.0399, True), (0.06, 0.028, False), (0.0, 0.0401, False)],
)
def test_in_bowl(offset: float, height_m: float, holds: bool) -> None:
    bowl = np.array([0.5, 0.1, 0.0])
    assert predicates.in_bowl(bowl + np.array([offset, 0.0, height_m]), bowl) is holds


@given(point=vectors(), corner=vectors(), size=vectors(low=0.0))
def test_inside_is_what_a_box_holds(point: np.ndarray, corner: np.ndarray, size: np.ndarray) -> None:
    expected = all(low <= x <= low + side for x, low, side in zip(point, corner, size, strict=True))
    assert predicates.inside(point, corner, corner + size) is expected
    assert predicates.inside(corner, corner, corner + size)


@given(value=st.floats(-2, 2), least=st.floats(0.001, 1.0))
def test_joints_are_in_at_most_one_of_two_opposite_states(value: float, least: float) -> None:
    assert not (predicates.turned(value, "left", least) and predicates.turned(value, "right", least))
    assert predicates.turned(value, "left", least) == predicates.turned(-value, "right", least)
    assert not (predicates.opened(value, least) and predicates.closed(value, least / 2))
    assert predicates.pressed(-least, least)
    assert not predicates.pressed(value, least) or value < 0


@given(offset=vectors(), shift=vectors())
def test_relations_do_not_depend_on_where_the_pair_is(offset: np.ndarray, shift: np.ndarray) -> None:
    """Moving two things together changes no relation between them, unless rounding decides at an edge."""
    for relation in (predicates.on_block, predicates.on_mat, predicates.in_bowl):
        jitter = [np.array(signs) * 1e-9 for signs in np.ndindex(3, 3, 3)]
        nearby = {relation(ORIGIN + offset + small - 1e-9, ORIGIN) for small in jitter}
        assert relation(ORIGIN + shift + offset, ORIGIN + shift) in nearby
