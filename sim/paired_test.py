"""Two policies on the same episodes: is one of them better, by how much, and what would settle it?

Only discordant episodes say anything, those in which one succeeds and the other fails. If neither policy is better,
each of them is a fair coin: McNemar's test, here in its exact form (McNemar, Psychometrika 1947; Cochran 1950).
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from volar.sim.wilson import Z95, wilson_interval

ALPHA, POWER = 0.05, 0.8
MOST_EPISODES = 20_000  # beyond these, two policies are as good as equal
_EXACT_UP_TO = 600  # discordant episodes, above which the normal approximation differs by less than a percent


@dataclass(frozen=True)
class Pairs:
    """How many of the same episodes both, only a, only b, and neither solved."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @staticmethod
    def count(outcomes: Iterable[tuple[bool, bool]]) -> "Pairs":
        """From the outcomes (of a, of b) of each episode."""
        found = list(outcomes)
        return Pairs(*(found.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def episodes(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """Success rate of b less that of a."""
        return (self.only_b - self.only_a) / self.episodes


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value: how often fair coins would be as uneven as that. 1 without discordant episodes."""
    tosses, fewer = only_a + only_b, min(only_a, only_b)
    # Exact integers: 2 P(X <= fewer), X binomial with probability one half.
    tail = sum(math.comb(tosses, k) for k in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**tosses)) if tosses < 1000 else min(1.0, 2 * float(_cdf(tosses)[fewer]))


def paired_interval(pairs: Pairs, z: float = Z95) -> tuple[float, float]:
    """Interval of rate b - rate a: (low, high) in [-1, 1], 95 % by default.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data"
    (Statistics in Medicine 1998), method 10: Wilson intervals of both rates, squared and added with the outcomes'
    correlation, whose numerator is continuity-corrected.
    """
    n, e, f, g, h = pairs.episodes, pairs.both, pairs.only_b, pairs.only_a, pairs.neither
    rate_b, rate_a = (e + f) / n, (e + g) / n
    low_b, high_b = wilson_interval(e + f, n, z)
    low_a, high_a = wilson_interval(e + g, n, z)
    below_b, above_b, below_a, above_a = rate_b - low_b, high_b - rate_b, rate_a - low_a, high_a - rate_a
    product = (e + f) * (g + h) * (e + g) * (f + h)
    covariance = float(e * h - f * g)
    covariance = max(covariance - n / 2, 0.0) if covariance > 0 else covariance
    phi = covariance / math.sqrt(product) if product else 0.0
    low = math.sqrt(max(below_b**2 - 2 * phi * below_b * above_a + above_a**2, 0.0))
    high = math.sqrt(max(above_b**2 - 2 * phi * above_b * below_a + below_a**2, 0.0))
    return pairs.difference - low, pairs.difference + high


def episodes_needed(only_a: float, only_b: float, alpha: float = ALPHA) -> int | None:
    """Episodes after which the exact test would find a difference, at the level `alpha`, with a probability of 80 %.

    `only_a`, `only_b`: the rates of discordant episodes, of which the observed ones are estimates. None when more than
    `MOST_EPISODES` would be needed, as always when the rates are equal.
    """
    if only_a == only_b:
        return None
    enough = 1
    while mcnemar_power(enough, only_a, only_b, alpha) < POWER:
        enough *= 2
        if enough > 2 * MOST_EPISODES:
            return None
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if mcnemar_power(middle, only_a, only_b, alpha) < POWER:
            too_few = middle
        else:
            enough = middle
    return enough if enough <= MOST_EPISODES else None


def mcnemar_power(episodes: int, only_a: float, only_b: float, alpha: float = ALPHA) -> float:
    """The probability that the exact test finds a difference, at the level `alpha`, in that many episodes.

    Exact where few are discordant, else the normal approximation of Connett, Smith and McHugh (Statistics in Medicine
    1987).
    """
    discordant, difference = only_a + only_b, abs(only_b - only_a)
    if episodes * discordant > _EXACT_UP_TO:
        spread = math.sqrt(max(discordant - difference**2, 1e-12))
        z = (difference * math.sqrt(episodes) - NormalDist().inv_cdf(1 - alpha / 2) * math.sqrt(discordant)) / spread
        return 0.5 * math.erfc(-z / math.sqrt(2))
    tosses = np.arange(min(episodes, int(episodes * discordant + 8 * math.sqrt(episodes * discordant) + 8)) + 1)
    share = only_b / discordant
    found = np.array([_rejects(int(t), share, alpha) for t in tosses])
    return float(np.exp(_log_binomial(episodes, tosses, discordant)) @ found)


@functools.lru_cache(maxsize=4096)
def _rejects(tosses: int, share: float, alpha: float) -> float:
    """The probability of a significant result among that many discordant episodes, a `share` of them b's."""
    most = int(np.searchsorted(_cdf(tosses), alpha / 2, side="right")) - 1  # 2 P(X <= most) <= alpha
    if most < 0:
        return 0.0
    k = np.arange(tosses + 1)
    weights = np.exp(_log_binomial(tosses, k, share))
    return float(weights[: most + 1].sum() + weights[tosses - most :].sum())


@functools.lru_cache(maxsize=4096)
def _cdf(tosses: int) -> NDArray[np.float64]:
    """P(X <= k) for k = 0 ... tosses of fair coins."""
    return np.cumsum(np.exp(_log_binomial(tosses, np.arange(tosses + 1), 0.5)))


def _log_binomial(trials: int, k: NDArray[np.int64], rate: float) -> NDArray[np.float64]:
    """Logarithm of the binomial probabilities of k (K,) successes, 0 <= k <= trials -> (K,)."""
    if rate in (0.0, 1.0):
        return np.where(k == trials * rate, 0.0, -np.inf)
    table = _log_factorials(trials)
    ways = table[trials] - table[k] - table[trials - k]
    return np.asarray(ways + k * math.log(rate) + (trials - k) * math.log1p(-rate))


@functools.lru_cache(maxsize=8)
def _log_factorials_up_to(most: int) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])


def _log_factorials(most: int) -> NDArray[np.float64]:
    return _log_factorials_up_to(1 << max(10, most.bit_length()))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, so that all errors together stay below the level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
