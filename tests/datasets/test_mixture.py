"""A mixture is a function of sizes, weights, seed and place: shared out, resumed and repeated without a difference."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from volar.datasets.augmentation import Augmentation
from volar.datasets.frame_cache import FrameCache
from volar.datasets.mixture import MIXTURES, Mixture, MixtureLoader, load_mixture, sources_of
from volar.datasets.mixture_contract import MixtureRules
from volar.datasets.mixture_order import BLOCK, MixtureOrder
from volar.datasets.normalizer import MissingStatistics
from volar.datasets.statistics import action_mask, field_statistics
from volar.robots.contract import CameraSpec, ContractError, PolicyContract
from volar.robots.errors import Unknown, UsageError, VolarError

Data = tuple[FrameCache, PolicyContract]
Make = Callable[..., Data]


@pytest.fixture
def data(contract: PolicyContract) -> Make:
    """`data(n, offset)`: n frames in episodes of five; the first of the state's and actions' numbers is the frame's."""

    def make(n: int, offset: float = 0.0, cameras: tuple[CameraSpec, ...] = contract.cameras) -> Data:
        rng = np.random.default_rng(n)
        state = rng.normal(size=(n, 10)).astype(np.float32)
        actions = rng.uniform(-0.05, 0.05, (n, 7)).astype(np.float32)
        state[:, 0] = actions[:, 0] = offset + np.arange(n)
        cache = FrameCache.from_arrays(
            images={c.name: rng.integers(1, 256, (n, c.height, c.width, 3), np.uint8) for c in cameras},
            state=state,
            action=actions,
            points=rng.uniform(0, 1, (n, 3, 5)).astype(np.float32),
            instruction_id=(np.arange(n) % 2).astype(np.int32),
            instructions=(f"lift {offset}", f"push {offset}"),
            episode_end=np.minimum((np.arange(n) // 5 + 1) * 5, n).astype(np.int64),
        )
        statistics = {
            "action": field_statistics(actions, action_mask(contract.action)),
            "observation.state": field_statistics(state),
        }
        return cache, replace(contract, cameras=cameras, statistics=statistics)

    return make


def mixed(
    datasets: dict[str, Data], weights: dict[str, float], rules: MixtureRules | None = None, **options: Any
) -> Mixture:
    rules = rules or MixtureRules()
    caches, contracts = [d[0] for d in datasets.values()], [d[1] for d in datasets.values()]
    options = {"seed": 3, "weights": rules.weights} | options
    return Mixture(sources_of(weights, caches, contracts, rules), **options)


def frame_numbers(batch: dict[str, Any], datasets: dict[str, Data]) -> list[tuple[int, int]]:
    """(source, index of the frame) of each sample, from the instruction and the image."""
    found = []
    images = [cache.images["front"] for cache, _ in datasets.values()]
    for k, source in enumerate(batch["source"].tolist()):
        image = batch["observation.images.front"][k].numpy()
        (index,) = np.flatnonzero((images[source] == image).all(axis=(1, 2, 3)))
        found.append((source, int(index)))
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
def test_every_sample_is_taken_once_by_whatever_share_it_out(data: Make, ranks: int, workers: int) -> None:
    datasets = {"only": data(96)}
    seen: Counter[tuple[int, int]] = Counter()
    order: dict[int, list[tuple[int, int]]] = {}
    for rank in range(ranks):
        mixture = mixed(datasets, {"only": 1.0}, batch_size=4, rank=rank, ranks=ranks)
        for k, batch in enumerate(islice(MixtureLoader(mixture, workers), 24 // ranks)):
            order[k * ranks + rank] = frame_numbers(batch, datasets)
            seen.update(order[k * ranks + rank])
    assert seen == Counter({(0, i): 1 for i in range(96)})
    alone = mixed(datasets, {"only": 1.0}, batch_size=4)
    for k, batch in enumerate(islice(alone, 24)):
        assert order[k] == frame_numbers(batch, datasets)


def test_shares_are_those_of_the_weights(data: Make) -> None:
    datasets = {"a": data(30), "b": data(500, 1000.0), "c": data(7, 5000.0)}
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    batch = mixed(datasets, weights, batch_size=BLOCK).batch(2)
    for s, weight in enumerate(weights.values()):
        assert (batch.source == s).mean() == pytest.approx(weight, abs=1e-4)
    batch = mixed(datasets, weights, MixtureRules(weights="frames"), batch_size=BLOCK).batch(0)
    total = 0.5 * 30 + 0.3 * 500 + 0.2 * 7
    assert (batch.source == 2).mean() == pytest.approx(0.2 * 7 / total, abs=1e-4)
    # Nearby places are mixed too, not only the whole.
    assert set(mixed(datasets, weights, batch_size=64).batch(5).source) == {0, 1, 2}
    with pytest.raises(VolarError, match="share of c is below 1/"):
        mixed(datasets, weights | {"c": 1e-9}, batch_size=4)
    with pytest.raises(VolarError, match="above 0"):
        mixed(datasets, weights | {"c": -1.0}, batch_size=4)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 1.0)), min_size=1, max_size=4),
    st.integers(0, 2**31),
    st.integers(500, 5000),
)
def test_each_dataset_goes_through_its_epochs(parts: list[tuple[int, float]], seed: int, batch: int) -> None:
    sizes = {str(i): n for i, (n, _) in enumerate(parts)}
    shares = {str(i): w for i, (_, w) in enumerate(parts)}
    order = MixtureOrder(sizes, shares, seed)
    pieces = [order.at(np.arange(k, k + batch)) for k in range(0, 2 * BLOCK, batch)]
    source, index = (np.concatenate([piece[i] for piece in pieces]) for i in (0, 1))
    for s, n in enumerate(sizes.values()):
        mine = index[source == s]
        epochs = len(mine) // n
        counts = np.bincount(mine[: epochs * n], minlength=n)
        assert (counts == epochs).all()
        if epochs:
            assert sorted(mine[:n]) == list(range(n))


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 3), (2, 0)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_resumed_loader_goes_on_exactly(data: Make, before: int, after: int) -> None:
    datasets = {"a": data(30), "b": data(21, 100.0)}
    weights = {"a": 0.6, "b": 0.4}

    def loader(workers: int, **options: Any) -> MixtureLoader:
        augmentation = Augmentation(crop=0.7, brightness=0.3, hue=0.1)
        options = {"batch_size": 5, "augmentation": augmentation, "rank": 1, "ranks": 2} | options
        return MixtureLoader(mixed(datasets, weights, **options), workers)

    whole = list(islice(loader(before), 12))
    first = loader(before)
    assert len(list(islice(first, 7))) == 7
    state = first.state_dict()
    second = loader(after)
    second.load_state_dict(state)
    for got, wanted in zip(islice(second, 5), whole[7:], strict=True):
        assert got.keys() == wanted.keys()
        for key, value in wanted.items():
            assert torch.equal(got[key], value) if isinstance(value, torch.Tensor) else got[key] == value, key
    assert second.state_dict()["batches"] == 2 * 12
    other = loader(0, rank=0, ranks=7)  # 14 batches were taken: seven processes can go on too
    other.load_state_dict(state)
    assert other.batches == 2
    with pytest.raises(VolarError, match="3 processes do not divide"):
        loader(0, rank=0, ranks=3).load_state_dict(state)
    with pytest.raises(VolarError, match="seed: was 3, is 4"):
        loader(0, seed=4).load_state_dict(state)
    with pytest.raises(VolarError, match="batch_size: was 5, is 6"):
        loader(0, batch_size=6).load_state_dict(state)
    datasets, weights = dict(reversed(datasets.items())), dict(reversed(weights.items()))
    with pytest.raises(VolarError, match=r"sizes: was {'a': 30, 'b': 21}, is {'b': 21, 'a': 30}"):
        loader(0).load_state_dict(state)


def test_samples_carry_their_own_instruction_and_chunk(data: Make) -> None:
    datasets = {"a": data(30), "b": data(500, 1000.0)}
    mixture = mixed(datasets, {"a": 1.0, "b": 1.0}, batch_size=64, chunk_length=6)
    batch = mixture.batch(1)
    assert batch.actions.shape == (64, 6, 7)
    for k, s in enumerate(batch.source.tolist()):
        cache = list(datasets.values())[s][0]
        i = int(batch.state[k, 0]) - (1000 if s else 0)
        end = int(cache.episode_end[i])
        np.testing.assert_array_equal(batch.state[k], cache.state[i])
        np.testing.assert_array_equal(batch.actions[k], cache.action[np.minimum(np.arange(i, i + 6), end - 1)])
        assert batch.action_mask[k].tolist() == [i + h < end for h in range(6)]
        np.testing.assert_array_equal(batch.images["wrist"][k], cache.images["wrist"][i])
        assert batch.instructions[k] == cache.instructions[i % 2] == mixture.instructions[batch.instruction_id[k]]


def test_statistics_of_all_frames_or_of_each_dataset(data: Make) -> None:
    datasets = {"a": data(40), "b": data(60, 1000.0)}
    weights = {"a": 1.0, "b": 1.0}
    joint = mixed(datasets, weights, batch_size=64)
    everything = np.concatenate([cache.action for cache, _ in datasets.values()])
    assert joint.contract.statistics["action"] == field_statistics(everything, (True,) * 6 + (False,))
    own = mixed(datasets, weights, MixtureRules(statistics="own"), batch_size=64)
    assert own.contract.statistics == datasets["a"][1].statistics
    for mixture, gap in ((joint, 1.0), (own, 0.0)):
        batch = next(iter(mixture))
        first = batch["action"][:, 0, 0]
        distance = first[batch["source"] == 1].mean() - first[batch["source"] == 0].mean()
        assert float(distance) == pytest.approx(1.9 * gap, abs=0.4)
    bare = replace(datasets["b"][1], statistics={"action": datasets["b"][1].statistics["action"]})
    with pytest.raises(MissingStatistics, match=r"observation\.state"):
        next(iter(mixed({"b": (datasets["b"][0], bare)}, {"b": 1.0}, batch_size=4)))


def test_a_missing_camera_is_refused_or_black_and_masked(data: Make, contract: PolicyContract) -> None:
    front, wrist = contract.cameras
    datasets = {"both": data(40), "front_only": data(30, 100.0, (front,)), "wrist_only": data(30, 200.0, (wrist,))}
    weights = dict.fromkeys(datasets, 1.0)
    with pytest.raises(ContractError, match=r"front_only.*cameras\.wrist.*12x20.*none \(it has front\)"):
        mixed(datasets, weights, batch_size=4)
    mixture = mixed(datasets, weights, MixtureRules(missing_cameras="pad"), batch_size=90)
    batch = mixture.batch(0)
    for name, absent in (("wrist", 1), ("front", 2)):
        np.testing.assert_array_equal(batch.camera_mask[name], batch.source != absent)
        assert (batch.images[name][batch.source == absent] == 0).all()
        assert (batch.images[name][batch.source != absent] > 0).any(axis=(1, 2, 3)).all()
    # Points name places in the first camera's image.
    np.testing.assert_array_equal(np.isnan(batch.points).all(axis=(1, 2)), batch.source == 2)
    shown = next(iter(mixture))["observation.images.wrist_is_pad"]
    assert torch.equal(shown, torch.from_numpy(batch.source == 1))


def test_places_of_points_are_those_of_the_first_camera(data: Make, contract: PolicyContract) -> None:
    front, wrist = contract.cameras
    datasets = {"wrist_first": data(30, 200.0, (wrist, front)), "front_first": data(40)}
    batch = mixed(datasets, dict.fromkeys(datasets, 1.0), batch_size=60).batch(0)
    assert np.isfinite(batch.points[..., :3]).all()
    np.testing.assert_array_equal(np.isnan(batch.points[..., 3:]).all(axis=(1, 2)), batch.source == 1)
    assert np.isfinite(batch.points[batch.source == 0]).all()


def test_contracts_that_differ_are_named(data: Make, contract: PolicyContract) -> None:
    cache, wanted = data(20)
    action = replace(contract.action, rate_hz=5.0, gripper="open_is_zero")
    other = replace(wanted, robot="ur5e", action=action, cameras=(CameraSpec("front", 48, 32), contract.cameras[1]))
    images = {"front": np.zeros((20, 32, 48, 3), np.uint8), "wrist": cache.images["wrist"]}
    datasets = {"a": (cache, wanted), "b": (replace(cache, images=images), other)}
    weights = {"a": 1.0, "b": 1.0}
    with pytest.raises(ContractError) as caught:
        mixed(datasets, weights, batch_size=4)
    for name in (
        "dataset b",
        "robot: ",
        "action.rate_hz",
        "action.gripper",
        "cameras.front",
        "24x16",
        "48x32",
        "mix.allow",
    ):
        assert name in str(caught.value)
    allow = ("robot", "action.rate_hz", "cameras")
    with pytest.raises(ContractError, match=r"mixture: action\.gripper: [^:;]*\. leave it out"):
        mixed(datasets, weights, MixtureRules(allow=allow), batch_size=4)
    mixture = mixed(datasets, weights, MixtureRules(allow=(*allow, "action.gripper")), batch_size=8)
    assert mixture.batch(0).images["front"].shape == (8, 16, 24, 3)  # scaled to the first dataset's
    short = replace(wanted, state_names=wanted.state_names[:9], state_units=wanted.state_units[:9], statistics={})
    with pytest.raises(ContractError, match="state_names: policy wants 10 of them, found 9; another size"):
        mixed(
            {"a": datasets["a"], "b": (cache, short)},
            weights,
            MixtureRules(allow=("state_names", "state_units")),
            batch_size=4,
        )
    with pytest.raises(Unknown, match="did you mean robot"):
        MixtureRules(allow=("robots",))


def test_mixtures_are_read_from_text_and_yaml(tmp_path: Path) -> None:
    assert load_mixture("runs/a:0.7, /data/b:2") == {"runs/a": 0.7, "/data/b": 2.0}
    assert load_mixture("a,b:3") == {"a": 1.0, "b": 3.0}
    path = tmp_path / "mine.yaml"
    path.write_text("bridge: 1\nfractal: 0.54\n")
    assert load_mixture(str(path)) == {"bridge": 1.0, "fractal": 0.54}
    for text, reason in (("- a\n", "mapping"), ("a: many\n", "weight of a is 'many'"), ("{}\n", "each dataset once")):
        path.write_text(text)
        with pytest.raises(UsageError, match=reason):
            load_mixture(str(path))
    with pytest.raises(UsageError, match="each dataset once"):
        load_mixture("a:1,a:2")
    with pytest.raises(Unknown, match="unknown mixture 'no_such'"):
        load_mixture("no_such")
    for shipped in MIXTURES.glob("*.yaml"):
        assert all(weight > 0 for weight in load_mixture(shipped.stem).values())
