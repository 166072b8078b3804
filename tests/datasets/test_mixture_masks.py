"""What an episode or a dataset lacks is masked for exactly its samples: cameras, and numbers of the state."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from volar.datasets.encoded_frames import encoded_frames
from volar.datasets.episode import MISSING_CAMERAS, Episode
from volar.datasets.episode_writer import EpisodeWriter
from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_format import load_contract, read_episodes
from volar.datasets.mixture import Mixture, sources_of
from volar.datasets.mixture_contract import MixtureRules
from volar.datasets.normalizer import Normalizer
from volar.datasets.statistics import field_statistics
from volar.robots.contract import ContractError, PolicyContract

LACKS = {0: (), 1: ("wrist",), 2: ("front", "wrist"), 3: ()}  # episode -> cameras


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory, episode: Callable[[int], Episode], dataset: Path) -> Path:
    root = tmp_path_factory.mktemp("partial") / "dataset"
    writer = EpisodeWriter.create(root, load_contract(dataset), shard_episodes=3)
    for number, missing in LACKS.items():
        one = episode(number)
        images = {name: x if name not in missing else np.zeros_like(x) for name, x in one.images.items()}
        info = {MISSING_CAMERAS: list(missing), "source": number}
        writer.append(replace(one, images=images, info=info))
    writer.finalize()
    return root


def expected(camera: str, episode: Callable[[int], Episode]) -> np.ndarray:
    return np.concatenate([np.full(len(episode(k)), camera not in missing) for k, missing in LACKS.items()])


def test_the_mask_survives_the_disk(partial: Path, episode: Callable[[int], Episode], tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    assert [e.missing_cameras for e in read_episodes(partial)] == list(LACKS.values())
    assert LeRobotDataset("volar/partial", root=partial).num_episodes == 4
    built = FrameCache.build(partial)
    built.save(tmp_path / "copy")
    for cache in (built, FrameCache.build(partial), encoded_frames(partial), FrameCache.open(tmp_path / "copy")):
        for camera in ("front", "wrist"):
            np.testing.assert_array_equal(cache.camera_mask[camera], expected(camera, episode))


def test_a_dataset_without_gaps_has_no_masks(dataset: Path, tmp_path: Path) -> None:
    cache = FrameCache.build(dataset, tmp_path)
    assert cache.camera_mask == {}
    assert not list(tmp_path.rglob("camera_mask*"))


def test_samples_of_such_episodes_are_masked_or_the_dataset_refused(
    partial: Path, dataset: Path, episode: Callable[[int], Episode], tmp_path: Path
) -> None:
    caches = [FrameCache.build(partial), FrameCache.build(dataset, tmp_path)]
    contracts = [load_contract(partial), load_contract(dataset)]
    weights = {"partial": 1.0, "whole": 1.0}
    counts = {camera: int((~expected(camera, episode)).sum()) for camera in ("front", "wrist")}
    total = len(caches[0])
    says = rf"front in {counts['front']} of {total} frames; camera wrist in {counts['wrist']} of {total}.*=pad"
    with pytest.raises(ContractError, match=rf"dataset partial lack camera {says}"):
        sources_of(weights, caches, contracts, MixtureRules())
    only_front = replace(contracts[1], cameras=contracts[1].cameras[:1])  # a gap in a camera that nobody wants
    kept = replace(caches[0], camera_mask={"wrist": caches[0].camera_mask["wrist"]})
    sources_of(weights, [caches[1], kept], [only_front, contracts[0]], MixtureRules())
    mixture = Mixture(
        sources_of(weights, caches, contracts, MixtureRules(missing_cameras="pad")), batch_size=64, seed=0
    )
    _, index = mixture.order.at(np.arange(64))
    batch, tensors = mixture.batch(0), next(iter(mixture))
    for camera in ("front", "wrist"):
        there = np.where(batch.source == 0, expected(camera, episode)[index % total], True)
        np.testing.assert_array_equal(batch.camera_mask[camera], there)
        assert not there.all()
        assert not batch.images[camera][~there].any()
        assert torch.equal(tensors[f"observation.images.{camera}_is_pad"], torch.from_numpy(~there))
    # Points say where something is in the first camera's image.
    np.testing.assert_array_equal(np.isnan(batch.points).all(axis=(1, 2)), ~batch.camera_mask["front"])


def states(contract: PolicyContract, n: int, *named: tuple[str, str]) -> tuple[FrameCache, PolicyContract]:
    """n frames whose state has those numbers: 100 times the number's place, plus noise."""
    rng = np.random.default_rng(n)
    state = (100 * np.arange(len(named)) + rng.normal(size=(n, len(named)))).astype(np.float32)
    action = rng.normal(size=(n, 7)).astype(np.float32)
    cache = FrameCache.from_arrays(
        images={},
        state=state,
        action=action,
        points=np.full((n, 3, 5), np.nan, np.float32),
        instruction_id=np.zeros(n, np.int32),
        instructions=("go",),
    )
    statistics = {"action": field_statistics(action), "observation.state": field_statistics(state)}
    names, units = zip(*named, strict=True)
    return cache, replace(contract, state_names=names, state_units=units, cameras=(), statistics=statistics)


@pytest.mark.parametrize("statistics", ["own", "joint"])
def test_states_are_joined_by_name_and_what_is_not_there_is_masked(contract: PolicyContract, statistics: str) -> None:
    found = [
        states(contract, 40, ("x", "m"), ("y", "m"), ("gripper", "1")),
        states(contract, 60, ("gripper", "m"), ("q1", "rad"), ("y", "m")),
        states(contract, 50, ("none", "1")),
    ]
    weights = {"a": 1.0, "b": 1.0, "c": 1.0}
    caches, contracts = [f[0] for f in found], [f[1] for f in found]
    with pytest.raises(ContractError, match=r"dataset b.*state_names.*mix\.states=pad or drop"):
        sources_of(weights, caches, contracts, MixtureRules())
    rules = MixtureRules(states="pad", statistics=statistics)  # type: ignore[arg-type]
    mixture = Mixture(sources_of(weights, caches, contracts, rules), batch_size=96, seed=0)
    names = ("x", "y", "gripper", "gripper [m]", "q1", "none")
    assert mixture.contract.state_names == names
    assert mixture.contract.state_units == ("m", "m", "1", "m", "rad", "1")
    assert mixture.contract == PolicyContract.from_json(mixture.contract.to_json())
    has = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]], bool)
    batch, tensors = mixture.batch(0), next(iter(mixture))
    assert batch.state_mask is not None
    np.testing.assert_array_equal(batch.state_mask, has[batch.source])
    assert torch.equal(tensors["observation.state_is_pad"], torch.from_numpy(~batch.state_mask))
    shown = tensors["observation.state"].numpy()
    assert (shown[~batch.state_mask] == 0).all()
    assert np.abs(shown[batch.state_mask]).max() > 0.5
    _, index = mixture.order.at(np.arange(96))
    second = batch.source == 1
    np.testing.assert_array_equal(batch.state[second][:, [3, 4, 1]], caches[1].state[index[second]])
    # Each number's statistics are of the frames that have it.
    y = np.concatenate([caches[0].state[:, 1:2], caches[1].state[:, 2:3]]) if statistics == "joint" else None
    wanted = field_statistics(caches[0].state[:, 1:2] if y is None else y)
    assert mixture.contract.statistics["observation.state"].q99[1] == wanted.q99[0]
    at_robot = Normalizer.of_contract(mixture.contract, "observation.state")
    assert np.isfinite(at_robot.normalize(batch.state)).all()


@pytest.mark.parametrize("statistics", ["own", "joint"])
def test_states_can_be_left_out(contract: PolicyContract, statistics: str) -> None:
    found = [states(contract, 40, ("x", "m"), ("y", "m")), states(contract, 60, ("q1", "rad"))]
    rules = MixtureRules(states="drop", statistics=statistics)  # type: ignore[arg-type]
    for some in (found, found[:1]):
        weights = dict.fromkeys("ab"[: len(some)], 1.0)
        mixture = Mixture(sources_of(weights, *zip(*some, strict=True), rules), batch_size=32, seed=0)  # type: ignore[arg-type]
        assert mixture.contract.state_names == ("no_state",)
        tensors = next(iter(mixture))
        assert tensors["observation.state"].shape == (32, 1)
        assert not tensors["observation.state"].any()
        assert tensors["observation.state_is_pad"].all()


def test_equal_states_are_left_as_they_are(contract: PolicyContract) -> None:
    found = [states(contract, n, ("x", "m"), ("y", "m")) for n in (40, 60)]
    made = sources_of({"a": 1.0, "b": 1.0}, *zip(*found, strict=True), MixtureRules(states="pad"))  # type: ignore[arg-type]
    assert [source.state_places for source in made] == [None, None]
