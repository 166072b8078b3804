"""Small episodes with everything a real one has, determined by their number."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from volar.datasets.episode import POINTS_SHAPE, Episode
from volar.datasets.episode_writer import EpisodeWriter
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.fr3 import FR3

INSTRUCTIONS = ("lift the red block", "push the blue block", "reach the green block")


def _contract() -> PolicyContract:
    """FR3 with two cameras of different, not square sizes, so that no axis can be mistaken."""
    return PolicyContract(
        robot="fr3",
        action=FR3.action,
        state_names=FR3.state_names,
        state_units=FR3.state_units,
        cameras=(CameraSpec("front", width=24, height=16), CameraSpec("wrist", width=12, height=20)),
        chunk_length=4,
        execute_steps=2,
    )


def _episode(number: int) -> Episode:
    """3 to 7 steps; the second point is missing, rotations are constant zeros, every fourth fails."""
    rng = np.random.default_rng(number)
    steps = 3 + number % 5
    actions = rng.uniform(-0.05, 0.05, (steps, 7)).astype(np.float32)
    actions[:, 3:6] = 0.0
    actions[:, 6] = rng.integers(0, 2, steps)
    points = rng.uniform(-1, 1, (steps, *POINTS_SHAPE)).astype(np.float32)
    points[:, 1] = np.nan
    return Episode(
        images={c.name: rng.integers(0, 256, (steps, c.height, c.width, 3), np.uint8) for c in _contract().cameras},
        state=rng.normal(size=(steps, 10)).astype(np.float32),
        actions=actions,
        points=points,
        instruction=INSTRUCTIONS[(number * 2) % 3],
        task=("lift", "push", "reach")[(number * 2) % 3],
        success=number % 4 != 3,
        seed=1000 + number,
    )


def _assert_same(a: Episode, b: Episode) -> None:
    """Every field equal, bit for bit, missing points included."""
    assert a.images.keys() == b.images.keys()
    for name in a.images:
        np.testing.assert_array_equal(a.images[name], b.images[name])
    for name in ("state", "actions", "points"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    assert (a.instruction, a.task, a.success, a.seed) == (b.instruction, b.task, b.success, b.seed)


@pytest.fixture
def contract() -> PolicyContract:
    return _contract()


@pytest.fixture(scope="session")
def episode() -> Callable[[int], Episode]:
    return _episode


@pytest.fixture
def assert_same() -> Callable[[Episode, Episode], None]:
    return _assert_same


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven episodes in shards of four: two full and one that is not. Read-only for tests."""
    root = tmp_path_factory.mktemp("data") / "dataset"
    writer = EpisodeWriter.create(root, _contract(), shard_episodes=4, source={"seed": 0})
    for number in range(11):
        writer.append(_episode(number))
    writer.finalize()
    return root
