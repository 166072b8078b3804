"""Demonstrations are determined by seed and number; collecting can be cut and continued."""

from pathlib import Path

import numpy as np
import pytest

from volar.datasets.durable_file import OutputExists
from volar.datasets.lerobot_format import load_contract, read_episodes
from volar.robots.errors import UsageError, VolarError
from volar.sim.collect import CollectConfig, collect
from volar.sim.demonstration import Disturbances, demonstration_seed, rollout
from volar.sim.world import StepDriver, TaskWorld


@pytest.fixture(scope="module")
def driver() -> StepDriver:
    return StepDriver(TaskWorld("reach", image_size=32))


def test_a_demonstration_is_its_seed(driver: StepDriver) -> None:
    first = rollout(driver, 7)
    rollout(driver, 8)
    again = rollout(driver, 7)
    assert first.success
    assert first.instruction == again.instruction
    for name in ("state", "actions", "points"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    np.testing.assert_array_equal(first.images["wrist"], again.images["wrist"])


def test_noise_disturbs_what_happens_and_not_what_is_recorded(driver: StepDriver) -> None:
    """The first answer is the expert's own, and the same with and without; the states then differ."""
    clean, noisy = (rollout(driver, 3, Disturbances(scale=scale)) for scale in (0.0, 1.0))
    np.testing.assert_array_equal(clean.actions[0], noisy.actions[0])
    assert np.abs(clean.state[1] - noisy.state[1]).max() > 1e-4
    assert np.isfinite(noisy.points[:, 0]).all()


def test_demonstration_seeds_are_not_evaluation_seeds() -> None:
    seeds = {
        demonstration_seed(run, number, attempt) for run in range(3) for number in range(50) for attempt in range(3)
    }
    assert len(seeds) == 3 * 50 * 3
    assert min(seeds) >= 2**32


def test_collect_resumes_to_the_same_data_with_any_number_of_workers(tmp_path: Path) -> None:
    settings = {"tasks": ("reach",), "image_size": 32}
    collect(CollectConfig(tmp_path / "whole", episodes=4, workers=2, **settings))
    collect(CollectConfig(tmp_path / "parts", episodes=2, workers=1, resume=True, **settings))  # nothing yet: it begins
    collect(CollectConfig(tmp_path / "parts", episodes=4, workers=1, resume=True, **settings))
    whole, parts = ((tmp_path / name) for name in ("whole", "parts"))
    for a, b in zip(read_episodes(whole), read_episodes(parts), strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.images["front"], b.images["front"])
        assert (a.instruction, a.seed) == (b.instruction, b.seed)
    assert load_contract(whole).sha256 == load_contract(parts).sha256
    with pytest.raises(OutputExists, match="overwrite=true"):
        collect(CollectConfig(whole, episodes=1, workers=1, **settings))
    with pytest.raises(VolarError, match="seed: 0, now 1"):
        collect(CollectConfig(whole, episodes=4, seed=1, resume=True, **settings))


def test_what_was_drawn_is_kept_with_the_demonstrations(tmp_path: Path) -> None:
    """Also over an interruption; with it, the first picture can be made again."""
    settings = {"tasks": ("reach",), "image_size": 32, "workers": 1, "randomization": "visual"}
    collect(CollectConfig(tmp_path, episodes=2, **settings))
    collect(CollectConfig(tmp_path, episodes=3, resume=True, **settings))
    world = TaskWorld("reach", image_size=32, randomization="visual")
    for episode in read_episodes(tmp_path):
        world.reset(episode.seed + 1, episode.info["draws"])  # the draws alone decide how it looks
        light = world.model.light_diffuse.copy()
        world.reset(episode.seed, episode.info["draws"])
        np.testing.assert_array_equal(world.model.light_diffuse, light)
        np.testing.assert_array_equal(world.body.images()["front"], episode.images["front"][0])
    world.close()
    with pytest.raises(VolarError, match="randomization: 'visual', now 'full'"):
        collect(CollectConfig(tmp_path, episodes=4, resume=True, **settings | {"randomization": "full"}))


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="episodes must be at least 1"):
        CollectConfig(tmp_path, episodes=0)
    with pytest.raises(UsageError, match="exclude"):
        CollectConfig(tmp_path, resume=True, overwrite=True)
    for wrong in ({"robot": "fr4"}, {"cameras": ("wrsit",)}, {"tasks": ("lfit",)}, {"suite": "desk"}):
        with pytest.raises(UsageError, match="unknown"):
            collect(CollectConfig(tmp_path / "x", **wrong))
    with pytest.raises(UsageError, match="did you mean visual"):
        CollectConfig(tmp_path, randomization="vsual")
    assert not (tmp_path / "x").exists()
