"""What a randomized value is drawn from. Values are JSON's own: a float, a list of floats, a string or a bool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from volar.robots.errors import Unknown, UsageError

Value = float | str | bool | list[float]
Bound = float | tuple[float, ...]
_NORMAL_ATTEMPTS = 1000  # of a truncated normal; the bounds must hold at least a few percent of it


class Distribution(Protocol):
    """`sample` draws `count` values of `size` numbers each; a size of 1 gives floats, more give lists.

    `support`: the smallest and the largest value, or None where values are no numbers.
    """

    def sample(self, rng: np.random.Generator, count: int, size: int) -> list[Value]: ...

    @property
    def support(self) -> tuple[Bound, Bound] | None: ...


@dataclass(frozen=True)
class Uniform:
    """Uniform in [low, high], componentwise. Raises `UsageError` when low is above high."""

    low: Bound
    high: Bound

    def __post_init__(self) -> None:
        _check_range("uniform", self.low, self.high)

    def sample(self, rng: np.random.Generator, count: int, size: int) -> list[Value]:
        return _values(rng.uniform(self.low, self.high, (count, size)))

    @property
    def support(self) -> tuple[Bound, Bound]:
        return self.low, self.high


@dataclass(frozen=True)
class LogUniform:
    """The logarithm is uniform: halving is as likely as doubling. Raises `UsageError` unless 0 < low <= high."""

    low: Bound
    high: Bound

    def __post_init__(self) -> None:
        _check_range("log_uniform", self.low, self.high)
        if np.min(self.low) <= 0:
            raise UsageError(f"log_uniform: low must be positive, is {self.low}")

    def sample(self, rng: np.random.Generator, count: int, size: int) -> list[Value]:
        logarithms = rng.uniform(np.log(self.low), np.log(self.high), (count, size))
        return _values(np.clip(np.exp(logarithms), self.low, self.high))  # exp(log(x)) may exceed x by rounding

    @property
    def support(self) -> tuple[Bound, Bound]:
        return self.low, self.high


@dataclass(frozen=True)
class Normal:
    """Normal, drawn again while outside [low, high]. Raises `UsageError` on a range or deviation that is wrong."""

    mean: float
    std: float
    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range("normal", self.low, self.high)
        if not (np.isfinite(self.mean) and self.std > 0):
            raise UsageError(f"normal: needs a finite mean and a positive deviation, has {self.mean} and {self.std}")
        if self.low > self.mean + 2 * self.std or self.high < self.mean - 2 * self.std or self.low == self.high:
            raise UsageError(f"normal: [{self.low}, {self.high}] holds too little of mean {self.mean}, std {self.std}")

    def sample(self, rng: np.random.Generator, count: int, size: int) -> list[Value]:
        drawn = rng.normal(self.mean, self.std, (count, size))
        for _ in range(_NORMAL_ATTEMPTS):
            outside = (drawn < self.low) | (drawn > self.high)
            if not outside.any():
                return _values(drawn)
            drawn[outside] = rng.normal(self.mean, self.std, int(outside.sum()))
        return _values(np.clip(drawn, self.low, self.high))

    @property
    def support(self) -> tuple[Bound, Bound]:
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of some values, all equally likely. Raises `UsageError` without any."""

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise UsageError("choice: needs at least one value")

    def sample(self, rng: np.random.Generator, count: int, size: int) -> list[Value]:
        return [self.values[i] for i in rng.integers(len(self.values), size=count)]

    @property
    def support(self) -> tuple[Bound, Bound] | None:
        if any(isinstance(value, str | bool | list) for value in self.values):
            return None
        return min(self.values), max(self.values)  # type: ignore[return-value]


@dataclass(frozen=True)
class Bernoulli:
    """True with probability `p`. Raises `UsageError` when that is none."""

    p: float

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UsageError(f"bernoulli: p must be in [0, 1], is {self.p}")

    def sample(self, rng: np.random.Generator, count: int, size: int) -> list[Value]:
        return [bool(x) for x in rng.random(count) < self.p]

    @property
    def support(self) -> None:
        return None


DISTRIBUTIONS: dict[str, type[Distribution]] = {
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "normal": Normal,
    "choice": Choice,
    "bernoulli": Bernoulli,
}


def parse_distribution(raw: Any) -> Distribution:
    """`{"uniform": [0.8, 1.2]}` -> `Uniform(0.8, 1.2)`: the name, then its parameters in order.

    Raises `Unknown` for another name, `UsageError` for parameters that do not fit.
    """
    if not isinstance(raw, Mapping) or len(raw) != 1:
        raise UsageError(f"distribution {raw!r} must be one name with its parameters, as {{uniform: [0.8, 1.2]}}")
    name, given = next(iter(raw.items()))
    if name not in DISTRIBUTIONS:
        raise Unknown("distribution", str(name), DISTRIBUTIONS)
    parameters = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if name == "choice":
        return Choice(tuple(parameters))
    try:
        return DISTRIBUTIONS[name](*(_bound(name, value) for value in parameters))
    except TypeError as error:
        raise UsageError(f"distribution {name} has the wrong number of parameters: {given!r}") from error


def _bound(name: str, value: Any) -> Bound:
    try:
        return tuple(float(v) for v in value) if isinstance(value, Sequence) else float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"distribution {name}: {value!r} is no number") from error


def _check_range(name: str, low: Bound, high: Bound) -> None:
    if np.shape(low) != np.shape(high):
        raise UsageError(f"{name}: low {low} and high {high} differ in length")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (np.asarray(low) <= high).all()):
        raise UsageError(f"{name}: low {low} must not be above high {high}")


def _values(drawn: np.ndarray[Any, Any]) -> list[Value]:
    """(count, size) -> floats where the size is 1, lists of floats otherwise."""
    values: list[Value] = drawn[:, 0].tolist() if drawn.shape[1] == 1 else drawn.tolist()
    return values
