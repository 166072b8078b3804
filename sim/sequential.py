"""When enough episodes have been run: intervals that stay valid however often one looks.

For n Bernoulli trials with s successes, the likelihood averaged over a uniform prior of the rate, divided by the
likelihood at the true rate p,

    M_n(p) = B(s + 1, n - s + 1) / (p^s (1 - p)^(n - s)),

is a nonnegative martingale of mean 1, so by Ville's inequality it ever reaches 1 / alpha with a probability of at
most alpha. The rates at which M_n(p) < 1 / alpha are therefore a confidence sequence: with probability 1 - alpha it
contains the true rate at every n at once, so also at the n at which one chose to stop. (Robbins, "Statistical methods
related to the law of the iterated logarithm", 1970; Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform,
nonparametric, nonasymptotic confidence sequences", 2021.) The price is width: at a rate of 0.5, a margin of 0.1
takes about three times the episodes of a Wilson interval; near 0 or 1 it takes few.
"""

import functools
import math
from collections.abc import Iterable

ALPHA = 0.05
_HALVINGS = 40  # of the bracket of a bound: to 1e-12


def log_evidence(successes: int, trials: int, rate: float) -> float:
    """log M_n(p): how strongly the trials speak against the rate p. Infinite where p is impossible."""
    failures = trials - successes
    if (rate <= 0 and successes) or (rate >= 1 and failures):
        return math.inf
    mixture = math.lgamma(successes + 1) + math.lgamma(failures + 1) - math.lgamma(trials + 2)
    likelihood = (successes * math.log(rate) if successes else 0.0) + (failures * math.log1p(-rate) if failures else 0)
    return mixture - likelihood


@functools.lru_cache(maxsize=65536)
def confidence_sequence(successes: int, trials: int, alpha: float = ALPHA) -> tuple[float, float]:
    """The rates (low, high) in [0, 1] that a confidence sequence of level 1 - `alpha` contains after these trials.

    Raises `ValueError` unless 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    low = 0.0 if successes == 0 else _bound(successes, trials, rate, 0.0, alpha)
    high = 1.0 if successes == trials else _bound(successes, trials, rate, 1.0, alpha)
    return low, high


def _bound(successes: int, trials: int, inside: float, outside: float, alpha: float) -> float:
    """The evidence is unimodal about the observed rate, so a bound lies between it and the end of the range."""
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if log_evidence(successes, trials, middle) < -math.log(alpha):
            inside = middle
        else:
            outside = middle
    return outside


class SequentialStop:
    """Says after which episode the evaluation of one task under one condition ends.

    Outcomes may come in any order and are looked at in the order of their indices, so that the end does not depend
    on which worker was faster: it is the first index after which the confidence sequence is at most `margin` to
    either side of its middle. None, an episode that does not count, is passed over.
    """

    def __init__(self, margin: float, alpha: float = ALPHA) -> None:
        if not 0 < margin < 0.5:
            raise ValueError(f"margin={margin} must be between 0 and 0.5")
        self.end: int | None = None  # episodes with a smaller index are the evaluation
        self._margin, self._alpha = margin, alpha
        self._outcomes: dict[int, bool | None] = {}
        self._next = self._successes = self._trials = 0

    def add(self, index: int, outcome: bool | None) -> None:
        """An episode is over: success, failure, or None for one that does not count."""
        self._outcomes[index] = outcome
        while self.end is None and self._next in self._outcomes:
            found = self._outcomes.pop(self._next)
            self._next += 1
            if found is None:
                continue
            self._trials, self._successes = self._trials + 1, self._successes + found
            low, high = confidence_sequence(self._successes, self._trials, self._alpha)
            if high - low <= 2 * self._margin:
                self.end = self._next


def mean_interval(counts: Iterable[tuple[int, int]], alpha: float = ALPHA) -> tuple[float, float]:
    """An interval for the mean of several rates, from (successes, trials) of each, valid at any stopping.

    Each rate's sequence is taken at `alpha` divided by their number: with probability 1 - `alpha` all of them hold
    at once (Bonferroni), and then so does the mean of their bounds.
    """
    found = list(counts)
    bounds = [confidence_sequence(successes, trials, alpha / len(found)) for successes, trials in found]
    return sum(low for low, _ in bounds) / len(bounds), sum(high for _, high in bounds) / len(bounds)
