"""A million samples: NumPy's figures within the promised rank, and the same bits in any order."""

import math
import tracemalloc
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from volar.datasets.sketch import FieldSketch
from volar.robots.contract import FieldStatistics
from volar.robots.errors import VolarError

N = 10**6
Rows = NDArray[np.float32]

# What dimensions of robots look like, and what breaks sketches.
DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], NDArray[np.floating]]] = {
    "normal": lambda rng: rng.normal(size=N),
    "far_from_zero": lambda rng: 400 + rng.normal(size=N),
    "cauchy": lambda rng: rng.standard_cauchy(N),
    "twelve_decades": lambda rng: rng.choice([-1, 1], N) * 10 ** rng.uniform(-6, 6, N),
    "steps": lambda rng: np.round(rng.normal(size=N), 2),
    "gripper": lambda rng: rng.integers(0, 2, N),
    "saturated": lambda rng: np.clip(rng.normal(0, 0.7, N), -1, 1),
    "mostly_zero": lambda rng: np.where(rng.random(N) < 0.9, 0.0, rng.normal(size=N)),
    "two_clusters": lambda rng: np.where(rng.random(N) < 0.5, rng.normal(-3, 1e-3, N), rng.normal(5, 2, N)),
    "constant": lambda rng: np.full(N, 0.1),
    "sorted": lambda rng: np.sort(rng.exponential(size=N)),
    "subnormal": lambda rng: rng.normal(size=N) * 1e-41,
}


@pytest.fixture(scope="module")
def million() -> Rows:
    rng = np.random.default_rng(0)
    return np.stack([make(rng) for make in DISTRIBUTIONS.values()], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def whole(million: Rows) -> FieldStatistics:
    sketch = FieldSketch(million.shape[1])
    sketch.update(million)
    return sketch.statistics()


def test_quantiles_are_within_a_thousandth_of_the_data(million: Rows, whole: FieldStatistics) -> None:
    for d, name in enumerate(DISTRIBUTIONS):
        x = np.sort(million[:, d].astype(np.float64))
        for share, value in ((0.01, whole.q01[d]), (0.99, whole.q99[d])):
            # Ties occupy a span of ranks: the error is the distance to it.
            below, above = np.searchsorted(x, value, "left") / N, np.searchsorted(x, value, "right") / N
            error = max(below - share, share - above, 0.0)
            assert error <= 1e-3, f"{name}: rank error {error:.5f}"
            assert value == pytest.approx(np.quantile(x, share), rel=1e-3, abs=1e-40), name


def test_moments_and_bounds_are_exact(million: Rows, whole: FieldStatistics) -> None:
    x = million.astype(np.float64)
    assert whole.count == N
    assert whole.min == tuple(x.min(axis=0))
    assert whole.max == tuple(x.max(axis=0))
    for d, name in enumerate(DISTRIBUTIONS):
        column = [float(v) for v in x[:, d]]
        assert whole.mean[d] == pytest.approx(math.fsum(column) / N, rel=3e-16, abs=0), name
        assert whole.std[d] == pytest.approx(x[:, d].std(), rel=1e-9), name
    assert whole.std[list(DISTRIBUTIONS).index("constant")] == 0.0


def test_merging_in_any_order_gives_the_same_bits(million: Rows, whole: FieldStatistics) -> None:
    rng = np.random.default_rng(1)
    for workers in (2, 5):
        rows = million[rng.permutation(N)]
        shards = np.split(rows, np.sort(rng.choice(N, 12, replace=False)))
        sketches = [FieldSketch(million.shape[1]) for _ in range(workers)]
        for i in rng.permutation(len(shards)):
            sketches[rng.integers(workers)].update(shards[i])
        first, *others = (sketches[i] for i in rng.permutation(workers))
        for other in others:
            first.merge(FieldSketch.from_bytes(other.to_bytes()))
        assert first.statistics() == whole


def test_memory_does_not_grow_with_the_data() -> None:
    rng = np.random.default_rng(0)
    sketch = FieldSketch(1, cells=2**12)
    peaks = []
    for _ in range(2):
        tracemalloc.start()
        for _ in range(20):
            sketch.update(rng.normal(size=(2**17, 1)).astype(np.float32))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert len(sketch.to_bytes()) < 2**17


floats = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(arrays(np.float32, st.tuples(st.integers(1, 60), st.just(2)), elements=floats), st.data())
def test_any_numbers_any_order_few_cells(x: Rows, data: st.DataObject) -> None:
    def rows(part: Rows) -> FieldSketch:
        sketch = FieldSketch(2, cells=8)
        for row in part:
            sketch.update(row[None])
        return sketch

    order = np.array(data.draw(st.permutations(range(len(x)))))
    cut = data.draw(st.integers(0, len(x)))
    a, b = rows(x), rows(x[order[:cut]])
    b.merge(rows(x[order[cut:]]))
    assert a.to_bytes() == b.to_bytes()
    mask = (False, False)  # eight cells may be too few for a certain quantile
    s = a.statistics(mask)
    assert s == b.statistics(mask)
    for d in range(2):
        column = [Fraction(float(v)) for v in x[:, d]]
        assert s.mean[d] == float(sum(column) / len(column))
        assert s.min[d] <= s.q01[d] <= s.q99[d] <= s.max[d]
        assert math.copysign(1, s.min[d] or 1) == math.copysign(1, s.min[d])  # no negative zero


def test_an_uncertain_quantile_is_refused_unless_masked() -> None:
    rng = np.random.default_rng(0)
    dense = (1.5 + rng.uniform(0, 2e-3, (400_000, 1))).astype(np.float32)
    thin = (rng.choice([-1, 1], (3500, 1)) * 10 ** rng.uniform(-20, 20, (3500, 1))).astype(np.float32)
    few = FieldSketch(1, cells=4096)
    few.update(dense)
    assert few.statistics().q99 == (pytest.approx(np.quantile(dense, 0.99), abs=2e-6),)
    few.update(thin)
    with pytest.raises(VolarError, match=r"dimensions \[0\] are uncertain.*cells=16384"):
        few.statistics()
    assert few.statistics(mask=(False,)).mask == (False,)
    enough = FieldSketch(1, cells=16384)
    enough.update(np.concatenate([dense, thin]))
    x = np.sort(np.concatenate([dense, thin])[:, 0].astype(np.float64))
    assert np.searchsorted(x, enough.statistics().q99[0]) / len(x) == pytest.approx(0.99, abs=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(n, 2\)"):
        FieldSketch(2).update(np.zeros((3, 1), np.float32))
    with pytest.raises(ValueError, match="does not fit"):
        FieldSketch(2).merge(FieldSketch(3))
    with pytest.raises(VolarError, match=r"dimensions \[1\]"):
        FieldSketch(2).update(np.array([[0.0, np.inf]], np.float32))
    with pytest.raises(VolarError, match="empty"):
        FieldSketch(2).statistics()
