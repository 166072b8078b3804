"""Statistics of vectors from a stream: bounded memory, mergeable, and the same whatever the order.

Three commutative parts for each dimension, so that one pass, workers merged, or any order give the same bits:

- minimum and maximum;
- the sum of values and of squares, exact: a float32 is an integer times a power of two, and the integers are
  added up for each power, in integers;
- a histogram over float32 in their order: the bit pattern of a float32, read as an integer, sorts as the number
  does, and a cell is all values that agree in the leading bits. Cells start with all 32 bits; when there are more than
  `cells`, trailing bits are dropped until there are not. How many are dropped depends on the set of values alone,
  because it can only grow with the data. Up to `cells` distinct values quantiles are therefore exact.

A cell knows its lowest and highest value and its count, so the error of a quantile is known and not only expected: it
is the cell's share. t-digest and KLL (crick, datasketches) give other bits in another order (decision 19).
"""

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volar.robots.contract import FieldStatistics
from volar.robots.errors import VolarError

CELLS = 2**18  # of a dimension, 16 bytes each: 4 MB
PENDING = 2**17  # rows held before they are sorted into cells
RANK_ERROR = 1e-3  # the share of the data by which a quantile may be off
EXPONENTS = 278  # of float32: -148 (the smallest subnormal) to 128, as frexp counts, moved up by 149
SHIFT = 149 + 24  # a value is integer mantissa (24 bits) * 2 ** (exponent index - SHIFT)

Keys = NDArray[np.uint32]


@dataclass(frozen=True)
class _Cells:
    """The histogram of one dimension: `low`, `high` (k,) keys of the cell's values, `count` (k,); `bits` dropped."""

    low: Keys
    high: Keys
    count: NDArray[np.int64]
    bits: int = 0

    def with_bits(self, bits: int) -> "_Cells":
        """The same with neighbours joined that agree but for the last `bits`."""
        if bits == self.bits or not len(self.low):
            return _Cells(self.low, self.high, self.count, bits)
        first = np.flatnonzero(np.append(True, _steps(self.low) >> bits))
        last = np.append(first[1:], len(self.low)) - 1
        return _Cells(self.low[first], self.high[last], np.add.reduceat(self.count, first), bits)

    def merged(self, other: "_Cells", limit: int) -> "_Cells":
        bits = max(self.bits, other.bits)
        a, b = self.with_bits(bits), other.with_bits(bits)
        low = np.concatenate([a.low, b.low])
        order = np.argsort(low, kind="stable")  # two sorted runs: a merge, not a sort
        low, high, count = (
            low[order],
            np.concatenate([a.high, b.high])[order],
            np.concatenate([a.count, b.count])[order],
        )
        # Cells of both with equal leading bits are neighbours now.
        first = np.flatnonzero(np.append(True, _steps(low) >> bits)) if len(low) else np.zeros(0, np.int64)
        if len(first):
            low, high, count = low[first], np.maximum.reduceat(high, first), np.add.reduceat(count, first)
        steps = _steps(low)
        while 1 + np.count_nonzero(steps >> bits) > limit:
            bits += 1
        return _Cells(low, high, count, max(a.bits, b.bits)).with_bits(bits)

    def at(self, rank: int) -> tuple[float, float, int]:
        """The value of a rank (from 0), evenly between its cell's bounds; the cell's width, and its uncertain ranks."""
        ends = np.cumsum(self.count)
        i = int(np.searchsorted(ends, rank, side="right"))
        low, high = float(_values(self.low[i : i + 1])[0]), float(_values(self.high[i : i + 1])[0])
        count = int(self.count[i])
        share = (rank - int(ends[i] - count)) / (count - 1) if count > 1 else 0.0
        return low + (high - low) * share, high - low, count if high > low else 0


class FieldSketch:
    """What `FieldStatistics` needs to know of all vectors (D,) seen so far."""

    def __init__(self, size: int, cells: int = CELLS) -> None:
        if size < 1 or cells < 2:
            raise ValueError(f"size must be at least 1 and cells 2, are {size} and {cells}")
        self.size, self.cells, self.count = size, cells, 0
        self._sums = np.zeros((3, size, EXPONENTS), np.int64)  # mantissas; their squares, high and low 24 bits
        empty = np.zeros(0, np.uint32)
        self._columns = [_Cells(empty, empty, np.zeros(0, np.int64)) for _ in range(size)]
        self._pending: list[Keys] = []
        self._pending_rows = 0

    def update(self, x: NDArray[np.floating]) -> None:
        """Takes in vectors (n, D), as float32. Raises `VolarError` naming dimensions that are not finite."""
        if x.ndim != 2 or x.shape[1] != self.size:
            raise ValueError(f"vectors must be (n, {self.size}), are {x.shape}")
        bad = np.flatnonzero(~np.isfinite(x).all(axis=0))
        if bad.size:
            raise VolarError(f"dimensions {bad.tolist()} hold non-finite values; remove those episodes")
        for start in range(0, len(x), PENDING):
            piece = x[start : start + PENDING].astype(np.float32) + np.float32(0.0)  # no negative zeros
            self.count += len(piece)
            self._sums += _exact_sums(piece)
            self._pending.append(_keys(piece))
            self._pending_rows += len(piece)
            if self._pending_rows >= PENDING:
                self._sort_in()

    def merge(self, other: "FieldSketch") -> None:
        """Takes in all that `other` has seen. Raises `ValueError` when it is of another size."""
        if (self.size, self.cells) != (other.size, other.cells):
            raise ValueError(f"a sketch of {other.size} x {other.cells} does not fit {self.size} x {self.cells}")
        self._sort_in()
        other._sort_in()
        self.count += other.count
        self._sums += other._sums
        self._columns = [a.merged(b, self.cells) for a, b in zip(self._columns, other._columns, strict=True)]

    def statistics(self, mask: tuple[bool, ...] | None = None) -> FieldStatistics:
        """Of everything seen; `mask` (D,), all True by default. Raises `VolarError` when that is nothing.

        Also when a quantile is uncertain by more than `RANK_ERROR` of the data and by more than that share of
        the range q01 to q99, which takes data that is dense around a number far from zero and thin over many
        orders of magnitude; masked dimensions, which do not use them, are not asked.
        """
        if not self.count:
            raise VolarError("statistics of no frames: the dataset is empty")
        self._sort_in()
        mask = mask if mask is not None else (True,) * self.size
        low, high = self.bounds()
        found = [self._quantiles(cells, (0.01, 0.99)) for cells in self._columns]
        bad = [d for d, (_, certain) in enumerate(found) if mask[d] and not certain]
        if bad:
            raise VolarError(
                f"quantiles of dimensions {bad} are uncertain by more than {RANK_ERROR:.1%} of the frames with "
                f"{self.cells} cells: remove outliers, or use FieldSketch(cells={4 * self.cells})"
            )
        mean, std = self.moments()
        return FieldStatistics(
            q01=tuple(values[0] for values, _ in found),
            q99=tuple(values[1] for values, _ in found),
            mean=mean,
            std=std,
            min=low,
            max=high,
            mask=mask,
            count=self.count,
        )

    def quantiles(self, shares: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
        """The values of each share, (D,) each, however certain they are: `statistics` asks that."""
        self._sort_in()
        return tuple(zip(*(self._quantiles(cells, shares)[0] for cells in self._columns), strict=True))

    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Minima (D,) and maxima (D,)."""
        self._sort_in()
        low = tuple(float(_values(c.low[:1])[0]) for c in self._columns)
        return low, tuple(float(_values(c.high[-1:])[0]) for c in self._columns)

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Means (D,) and standard deviations (D,)."""
        found = [self._moments(d) for d in range(self.size)]
        return tuple(mean for mean, _ in found), tuple(std for _, std in found)

    def to_bytes(self) -> bytes:
        """For another process or a file; without pickle."""
        self._sort_in()
        columns = {
            f"{name}{d}": getattr(c, name) for d, c in enumerate(self._columns) for name in ("low", "high", "count")
        }
        bits = np.array([c.bits for c in self._columns])
        buffer = io.BytesIO()
        np.savez(buffer, shape=np.array([self.size, self.cells, self.count]), sums=self._sums, bits=bits, **columns)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> "FieldSketch":
        """Inverse of `to_bytes`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            size, cells, count = (int(v) for v in file["shape"])
            sketch = FieldSketch(size, cells)
            sketch.count, sketch._sums = count, file["sums"]
            bits = file["bits"].tolist()
            sketch._columns = [
                _Cells(file[f"low{d}"], file[f"high{d}"], file[f"count{d}"], bits[d]) for d in range(size)
            ]
        return sketch

    def _sort_in(self) -> None:
        if not self._pending:
            return
        rows = np.concatenate(self._pending)  # (n, D)
        self._pending, self._pending_rows = [], 0
        for d, cells in enumerate(self._columns):
            keys, count = np.unique(rows[:, d], return_counts=True)
            self._columns[d] = cells.merged(_Cells(keys, keys, count.astype(np.int64)), self.cells)

    def _quantiles(self, cells: _Cells, shares: tuple[float, ...]) -> tuple[list[float], bool]:
        """NumPy's linear quantiles, and whether all are within `RANK_ERROR`."""
        values, widths, uncertain = [], [], []
        for share in shares:
            place = (self.count - 1) * share
            rank = math.floor(place)
            below, above = cells.at(rank), cells.at(min(rank + 1, self.count - 1))
            t, step = place - rank, above[0] - below[0]
            # As NumPy does, so that small data gives its bits.
            value = above[0] - step * (1 - t) if t >= 0.5 else below[0] + step * t
            values.append(value + 0.0)
            widths.append(max(below[1], above[1]))
            uncertain.append(max(below[2], above[2]) / self.count)
        narrow = max(widths) <= RANK_ERROR * (values[-1] - values[0])
        return values, narrow or max(uncertain) <= RANK_ERROR

    def _moments(self, d: int) -> tuple[float, float]:
        """Mean and standard deviation, each the nearest float64 to the exact one (the latter's square is)."""
        mantissas, high, low = (self._sums[i, d].tolist() for i in range(3))
        total = sum(m << e for e, m in enumerate(mantissas))  # [2 ** -SHIFT]
        squares = sum(((h << 24) + s) << 2 * e for e, (h, s) in enumerate(zip(high, low, strict=True)))
        n = self.count
        # Quotients of Python's integers are correctly rounded.
        return total / (n << SHIFT), math.sqrt((n * squares - total * total) / (n * n << 2 * SHIFT))


def _exact_sums(x: NDArray[np.float32]) -> NDArray[np.int64]:
    """(n, D) -> (3, D, EXPONENTS): see `FieldSketch._sums`. n <= PENDING keeps float64 sums of integers exact."""
    mantissa, exponent = np.frexp(x)
    m = (mantissa.astype(np.float64) * 2**24).astype(np.int64)
    place = (exponent + 149 + EXPONENTS * np.arange(x.shape[1])).ravel()
    square = m * m
    parts = (m, square >> 24, square & 0xFFFFFF)
    sums = [np.bincount(place, part.ravel(), EXPONENTS * x.shape[1]) for part in parts]
    return np.stack(sums).astype(np.int64).reshape(3, x.shape[1], EXPONENTS)


def _keys(x: NDArray[np.float32]) -> Keys:
    """float32 -> uint32 in the same order."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint32)


def _values(keys: Keys) -> NDArray[np.float32]:
    """Inverse of `_keys`."""
    return np.where(keys >> 31, keys ^ np.uint32(1 << 31), ~keys).astype(np.uint32).view(np.float32)


def _steps(sorted_keys: Keys) -> Keys:
    """(k,) -> (k - 1,): the bits in which neighbours differ."""
    return sorted_keys[1:] ^ sorted_keys[:-1]
