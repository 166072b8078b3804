"""Intervals and tests keep their word: exactly, by summing over everything that can happen."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from volar.sim.paired_test import (
    ALPHA,
    Pairs,
    episodes_needed,
    holm,
    mcnemar,
    mcnemar_power,
    paired_interval,
)
from volar.sim.sequential import SequentialStop, confidence_sequence, log_evidence, mean_interval
from volar.sim.wilson import difference_interval, wilson_interval

RATES = np.linspace(0, 1, 2001)[1:-1]


def binomial(trials: int, rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, trials + 1): the probability of each number of successes at each rate (R,)."""
    s = np.arange(trials + 1)
    ways = np.array([math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in s])
    return np.asarray(np.exp(ways + s * np.log(rates)[:, None] + (trials - s) * np.log1p(-rates)[:, None]))


@pytest.mark.parametrize("trials", [20, 50, 100, 200])
def test_wilson_intervals_cover_at_least_94_percent_of_the_time(trials: int) -> None:
    """On average over all rates. At single rates they dip, as every interval of a count does; how deep is documented
    in `wilson_interval` and asserted here too."""
    bounds = np.array([wilson_interval(s, trials) for s in range(trials + 1)])  # (S, 2)
    inside = (bounds[:, 0] <= RATES[:, None]) & (RATES[:, None] <= bounds[:, 1])  # (R, S)
    coverage = (binomial(trials, RATES) * inside).sum(1)
    assert coverage.mean() >= 0.9505
    assert coverage.mean() <= 0.9535  # a wider interval would cover more, and be worse
    assert coverage[(RATES >= 0.1) & (RATES <= 0.9)].mean() >= 0.95
    assert coverage[(2 / trials <= RATES) & (1 - 2 / trials >= RATES)].min() >= 0.926
    assert coverage.min() >= 0.83


def test_wilson_coverage_by_simulation() -> None:
    rng = np.random.default_rng(0)
    for trials in (20, 100):
        rates = rng.uniform(0, 1, 20_000)
        covered = 0
        for rate, successes in zip(rates, rng.binomial(trials, rates), strict=True):
            low, high = wilson_interval(int(successes), trials)
            covered += low <= rate <= high
        assert covered / len(rates) >= 0.94


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99])
def test_a_confidence_sequence_misses_the_rate_at_any_time_in_at_most_5_percent(rate: float) -> None:
    """Looked at after every one of 400 episodes: the exact probability of ever leaving it, by dynamic programming."""
    alive = np.ones(1)  # (n + 1,): probability of s successes and never having been outside
    for trials in range(1, 401):
        alive = np.append(alive * (1 - rate), 0.0) + np.append(0.0, alive * rate)
        outside = [log_evidence(s, trials, rate) >= -math.log(ALPHA) if p > 0 else False for s, p in enumerate(alive)]
        alive[outside] = 0.0
    assert 1 - alive.sum() <= ALPHA
    assert 1 - alive.sum() >= 0.003  # not vacuous: the interval is not simply everything


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_the_interval_at_the_stopping_point_covers_the_rate(rate: float) -> None:
    """By simulation of the stopping rule itself, at its own margin."""
    rng, missed, lengths = np.random.default_rng(1), 0, []
    for _ in range(300):
        stop, successes = SequentialStop(margin=0.15), 0
        outcomes = rng.random(400) < rate
        for index, outcome in enumerate(outcomes):
            stop.add(index, bool(outcome))
            if stop.end is not None:
                break
        assert stop.end is not None
        successes = int(outcomes[: stop.end].sum())
        low, high = confidence_sequence(successes, stop.end)
        assert high - low <= 0.3
        missed += not low <= rate <= high
        lengths.append(stop.end)
    assert missed / 300 <= ALPHA
    assert max(lengths) < 200


@given(st.integers(0, 80), st.integers(0, 80), st.floats(0.001, 0.999))
def test_a_rate_is_inside_exactly_while_the_evidence_against_it_is_small(s: int, f: int, rate: float) -> None:
    low, high = confidence_sequence(s, s + f)
    margin = log_evidence(s, s + f, rate) + math.log(ALPHA)
    if abs(margin) > 1e-6:
        assert (low <= rate <= high) == (margin < 0)
    assert 0 <= low <= high <= 1


@given(st.lists(st.sampled_from([True, True, True, False, None]), min_size=60, max_size=120), st.integers(0, 99))
def test_the_stopping_point_does_not_depend_on_the_order_of_arrival(outcomes: list[bool | None], seed: int) -> None:
    ordered, shuffled = SequentialStop(0.12), SequentialStop(0.12)
    for index, outcome in enumerate(outcomes):
        ordered.add(index, outcome)
    for index in np.random.default_rng(seed).permutation(len(outcomes)):
        shuffled.add(int(index), outcomes[index])
    assert shuffled.end == ordered.end


def test_the_mean_of_several_rates_is_wider_than_each_needs() -> None:
    low, high = mean_interval([(40, 50), (40, 50)])
    alone = confidence_sequence(40, 50)
    assert low < alone[0] < 0.8 < alone[1] < high
    assert mean_interval([(40, 50)]) == pytest.approx(alone)


def test_exact_mcnemar_known_values() -> None:
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1.0
    assert mcnemar(0, 6) == mcnemar(6, 0) == pytest.approx(2 / 64)
    assert mcnemar(3, 12) == pytest.approx(2 * sum(math.comb(15, k) for k in range(4)) / 2**15)
    many = 2 * sum(math.comb(1500, k) for k in range(701)) / 2**1500
    assert mcnemar(700, 800) == pytest.approx(many)  # beyond 1000, where logarithms are summed instead


@pytest.mark.parametrize("discordant", [0.02, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("episodes", [10, 50, 200])
def test_equal_policies_are_told_apart_in_at_most_5_percent(episodes: int, discordant: float) -> None:
    assert mcnemar_power(episodes, discordant / 2, discordant / 2) <= ALPHA


@pytest.mark.parametrize(("only_a", "only_b"), [(0.05, 0.15), (0.1, 0.25), (0.0, 0.1), (0.1, 0.16), (0.3, 0.2)])
def test_the_predicted_number_of_episodes_gives_a_power_of_80_percent(only_a: float, only_b: float) -> None:
    """By simulation with the test itself, which knows nothing of the prediction."""
    needed = episodes_needed(only_a, only_b)
    assert needed is not None
    counts = np.random.default_rng(2).multinomial(needed, [only_a, only_b, 1 - only_a - only_b], 4000)
    found = np.mean([mcnemar(int(a), int(b)) <= ALPHA for a, b, _ in counts])
    assert found == pytest.approx(0.8, abs=0.025)  # 4 standard errors


def test_no_number_of_episodes_tells_equal_rates_apart() -> None:
    assert episodes_needed(0.1, 0.1) is None
    assert episodes_needed(0.0, 0.0) is None
    assert episodes_needed(0.100, 0.101) is None  # more than 20000
    assert (episodes_needed(0.1, 0.11) or 0) > 10_000


def test_approximate_and_exact_power_agree_where_one_takes_over() -> None:
    for episodes in (5950, 6050):  # 595 and 605 discordant ones
        assert mcnemar_power(episodes, 0.044, 0.056) == pytest.approx(0.82, abs=0.02)


def test_paired_interval_known_values() -> None:
    """Newcombe (1998), table II, method 10."""
    assert paired_interval(Pairs(36, 2, 12, 0)) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert paired_interval(Pairs(54, 0, 0, 0)) == pytest.approx((-0.0664, 0.0664), abs=5e-5)


@pytest.mark.parametrize("cells", [(0.6, 0.1, 0.1, 0.2), (0.75, 0.05, 0.15, 0.05), (0.3, 0.1, 0.3, 0.3)])
def test_paired_intervals_cover_the_difference(cells: tuple[float, ...]) -> None:
    counts = np.random.default_rng(3).multinomial(100, cells, 3000)
    bounds = np.array([paired_interval(Pairs(*map(int, row))) for row in counts])
    difference = cells[2] - cells[1]
    assert np.mean((bounds[:, 0] <= difference) & (difference <= bounds[:, 1])) >= 0.94


def test_differences_of_independent_rates_known_value() -> None:
    """Newcombe (1998), table II, method 10: 56/70 less 48/80."""
    assert difference_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_holm_corrects_for_the_number_of_tests() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    rng = np.random.default_rng(4)
    families = rng.uniform(0, 1, (2000, 10))  # nothing to find in any of them
    assert np.mean([min(holm(list(row))) <= ALPHA for row in families]) <= 0.06
