"""Predicates are functions of positions; each holds where it should and stops where it should."""

import numpy as np
import pytest

from volar.sim import predicates
from volar.sim.scene import BLOCK_ON_PLATE_Z_M, BLOCK_ON_TABLE_Z_M

ORIGIN = np.array([0.5, 0.0, BLOCK_ON_TABLE_Z_M])
LEFT, UP = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])


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
