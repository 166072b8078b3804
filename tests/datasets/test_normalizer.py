"""Statistics equal NumPy's; the normalizer is OpenVLA's formula, invertible, and never guesses."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from volar.datasets.normalizer import MissingStatistics, Mode, Normalizer, with_normalization
from volar.datasets.statistics import (
    action_mask,
    constant_dimensions,
    field_statistics,
    lerobot_image_statistics,
)
from volar.robots.action_space import end_effector_delta
from volar.robots.contract import PolicyContract
from volar.robots.errors import Unknown, VolarError

MODES: tuple[Mode, ...] = ("q01_q99", "mean_std", "min_max", "identity")
# Physical quantities of an arm: from micrometres to hundreds of units.
values = st.floats(-500, 500, width=32).map(lambda v: float(np.float32(round(v, 4))))
data = arrays(np.float32, st.tuples(st.integers(2, 40), st.just(3)), elements=values)


@given(data, st.integers(1, 39))
def test_statistics_equal_numpy_however_the_frames_are_cut(x: NDArray[np.float32], cut: int) -> None:
    s = field_statistics([x[:cut], x[cut:]])
    assert s == field_statistics(x)
    y = x.astype(np.float64)
    np.testing.assert_array_equal(s.q01, np.quantile(y, 0.01, axis=0))
    np.testing.assert_array_equal(s.q99, np.quantile(y, 0.99, axis=0))
    np.testing.assert_allclose(s.mean, y.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(s.std, y.std(axis=0), atol=1e-9)
    assert (s.min, s.max) == (tuple(y.min(axis=0)), tuple(y.max(axis=0)))
    assert (s.count, s.mask) == (len(x), (True,) * 3)


@given(data, st.sampled_from(MODES))
def test_inverse_returns_what_was_inside_the_range(x: NDArray[np.float32], mode: Mode) -> None:
    s = field_statistics(x)
    normalizer = Normalizer(s, mode)
    low, high = {"q01_q99": (s.q01, s.q99), "min_max": (s.min, s.max)}.get(mode, (-np.inf, np.inf))
    inside = np.clip(x, low, high)
    back = normalizer.unnormalize(normalizer.normalize(x))
    assert back.dtype == np.float32
    # A dimension narrower than CONSTANT_WIDTH returns its constant, so within a micrometre.
    tolerance = 2e-6 + 1e-5 * np.abs(x).max(axis=0)
    constant = np.broadcast_to(normalizer.constant, x.shape)
    assert (np.abs(back - inside) <= tolerance)[~constant].all()
    np.testing.assert_array_equal(back[constant], np.broadcast_to(normalizer.offset, x.shape)[constant])


@given(data)
def test_default_is_the_formula_of_openvla(x: NDArray[np.float32]) -> None:
    s = field_statistics(x, mask=(True, True, False))
    got = Normalizer(s).normalize(x)
    q01, q99 = np.array(s.q01), np.array(s.q99)
    wanted = np.clip(2 * (x - q01) / (q99 - q01 + 1e-8) - 1, -1, 1)
    wanted[:, [i in constant_dimensions(s) for i in range(3)]] = 0.0
    # float32 in physical units, over the range: the wider the offset, the coarser.
    coarse = 1e-5 + 3e-7 * np.abs(x[:, :2]).max() / np.maximum(q99 - q01, 1e-6)[:2]
    assert (np.abs(got[:, :2] - wanted[:, :2]) <= np.minimum(coarse, 2.0)).all()
    np.testing.assert_array_equal(got[:, 2], x[:, 2])


@given(data, st.sampled_from(MODES))
def test_four_arrays_and_a_clip_are_the_whole_of_it(x: NDArray[np.float32], mode: Mode) -> None:
    n = Normalizer(field_statistics(x, mask=(True, False, True)), mode)
    y = np.clip((x - n.offset) * n.scale, n.clip_low, n.clip_high)
    np.testing.assert_array_equal(n.normalize(x), y)
    np.testing.assert_array_equal(n.unnormalize(y), y * n.inverse_scale + n.offset)
    for array in (n.offset, n.scale, n.inverse_scale, n.clip_low, n.clip_high):
        assert array.dtype == np.float32
        assert array.shape == (3,)
    assert np.isfinite(n.scale).all()


@pytest.mark.parametrize("mode", ["q01_q99", "mean_std", "min_max"])
def test_a_constant_dimension_is_zero_and_returns_its_constant(mode: Mode) -> None:
    x = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    x[:, 1] = 0.3
    x[:, 2] = np.float32(1e-9) * x[:, 2]  # a controller's noise
    s = field_statistics(x)
    assert constant_dimensions(s) == (1, 2)
    n = Normalizer(s, mode)
    y = n.normalize(x)
    assert (y[:, 1:] == 0).all()
    assert y[:, 0].std() > 0.1
    # Whatever a network says there, the constant comes back.
    back = n.unnormalize(np.random.default_rng(1).uniform(-1, 1, (50, 3)).astype(np.float32))
    np.testing.assert_allclose(back[:, 1], 0.3, atol=1e-7)
    np.testing.assert_allclose(back[:, 2], 0.0, atol=1e-8)


def test_the_gripper_passes_through(episode: Callable[[int], object]) -> None:
    spec = end_effector_delta()
    assert action_mask(spec) == (True,) * 6 + (False,)
    assert action_mask(replace(spec, gripper="none")) == (True,) * 7
    x = np.random.default_rng(0).uniform(0, 1, (100, 7)).astype(np.float32)
    n = Normalizer(field_statistics(x, action_mask(spec)))
    extremes = np.array([[0.5] * 6 + [7.0]], dtype=np.float32)
    assert n.normalize(extremes)[0, 6] == n.unnormalize(extremes)[0, 6] == 7.0


def test_identity_is_explicit_and_missing_statistics_raise() -> None:
    x = np.array([[-3.0, 9.0]], dtype=np.float32)
    np.testing.assert_array_equal(Normalizer.identity(2).normalize(x), x)
    np.testing.assert_array_equal(Normalizer.identity(2).unnormalize(x), x)
    s = field_statistics(x)
    assert Normalizer.of({"action": s}, "action").statistics == s
    with pytest.raises(MissingStatistics, match=r"observation\.state.*found: action"):
        Normalizer.of({"action": s}, "observation.state")
    with pytest.raises(Unknown, match="did you mean min_max"):
        Normalizer(s, "minmax")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 dimensions, the statistics 2"):
        Normalizer(s).normalize(np.zeros((1, 3), np.float32))


def test_statistics_of_nothing_or_of_nan_are_refused() -> None:
    with pytest.raises(VolarError, match="empty"):
        field_statistics([])
    with pytest.raises(VolarError, match=r"dimensions \[1\]"):
        field_statistics(np.array([[0.0, np.nan]], dtype=np.float32))


def test_image_statistics_equal_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 9, 7, 3), np.uint8)
    s = lerobot_image_statistics(images)
    x = images.reshape(-1, 3) / 255.0
    for name, wanted in {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}.items():
        np.testing.assert_allclose(np.ravel(s[name]), wanted, atol=1e-12)  # type: ignore[call-overload]
    np.testing.assert_allclose(np.ravel(s["q50"]), np.quantile(x, 0.5, axis=0, method="inverted_cdf"))  # type: ignore[call-overload]
    assert s["count"] == [4]


def test_the_mode_is_saved_with_the_contract(contract: PolicyContract) -> None:
    rng = np.random.default_rng(0)
    actions, states = rng.normal(size=(90, 7)).astype(np.float32), rng.normal(size=(90, 10)).astype(np.float32)
    statistics = {"action": field_statistics(actions), "observation.state": field_statistics(states)}
    full = replace(contract, statistics=statistics)
    assert with_normalization(full, "q01_q99").sha256 == full.sha256
    for mode in MODES:
        carried = PolicyContract.from_json(with_normalization(full, mode).to_json())
        got = Normalizer.of_contract(carried, "action")
        assert got.mode == mode
        np.testing.assert_array_equal(got.normalize(actions), Normalizer(statistics["action"], mode).normalize(actions))
    with pytest.raises(MissingStatistics, match=r"'observation\.state'.*found: action"):
        Normalizer.of_contract(replace(full, statistics={"action": statistics["action"]}), "observation.state")
    with pytest.raises(Unknown, match="did you mean min_max"):
        Normalizer.of_contract(replace(full, preprocessing={"normalization": "min-max"}), "action")
    with pytest.raises(ValueError, match="statistics for action have 10 dimensions, the contract 7"):
        replace(full, statistics={"action": statistics["observation.state"]})
