"""Terms are checked when they are read; presets cover the axes, and the held-out one covers none of their values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.robots.errors import Unknown, UsageError
from volar.sim.distributions import Bernoulli, Choice, LogUniform, Normal, Uniform, parse_distribution
from volar.sim.randomization import INTERVAL_DRAWS, PRESETS, Randomization, Term
from volar.sim.randomization_axes import AXES

DRAWS = 4000


def sampled(distribution: Any, size: int = 1) -> np.ndarray:
    return np.array(distribution.sample(np.random.default_rng(0), DRAWS, size), np.float64).reshape(DRAWS, size)


@pytest.mark.parametrize(
    ("distribution", "low", "high", "mean"),
    [
        (Uniform(0.8, 1.2), 0.8, 1.2, 1.0),
        (Uniform((-1.0, 2.0), (1.0, 4.0)), (-1.0, 2.0), (1.0, 4.0), (0.0, 3.0)),
        (LogUniform(0.5, 2.0), 0.5, 2.0, 1.5 / np.log(4.0)),
        (Normal(1.0, 0.06, 0.85, 1.15), 0.85, 1.15, 1.0),
        (Choice((1.0, 2.0, 6.0)), 1.0, 6.0, 3.0),
        (Bernoulli(0.25), 0.0, 1.0, 0.25),
    ],
)
def test_draws_cover_the_range_and_stay_inside(distribution: Any, low: Any, high: Any, mean: Any) -> None:
    """Within four standard errors of the mean, and nearly to both ends."""
    x = sampled(distribution, np.size(low))
    width = np.subtract(high, low)
    assert (x >= low).all()
    assert (x <= high).all()
    assert (x.min(0) - low < 0.05 * width).all()
    assert (high - x.max(0) < 0.05 * width).all()
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), 4 * x.std(0) / np.sqrt(DRAWS))


def test_elements_and_episodes_are_independent() -> None:
    term = Term("friction", LogUniform(0.5, 2.0), operation="scale")
    x = np.log([list(term.draw(seed, ["a", "b", "c"]).values()) for seed in range(2000)])  # (2000, 3)
    correlation = np.corrcoef(np.hstack([x[:-1], x[1:]]).T) - np.eye(6)
    assert np.abs(correlation).max() < 0.1  # 4.5 standard errors
    assert isinstance(Term("friction", Uniform(0.5, 2.0), operation="scale", shared=True).draw(0, ["a", "b"]), float)


def test_another_term_changes_no_draw() -> None:
    term = Term("friction", LogUniform(0.5, 2.0), operation="scale", scope=("table",))
    assert term.draw(3, ["table"]) == term.draw(3, ["table"])
    other = Term("friction", LogUniform(0.5, 2.0), operation="scale", scope=("robot/*",))
    assert term.draw(3, ["x"]) != other.draw(3, ["x"])


def test_interval_terms_draw_a_schedule() -> None:
    term = Term("push", Uniform(-0.1, 0.1), mode="interval", interval_s=0.5, operation="add")
    drawn = term.draw(0, ["object/plate"])
    assert len(drawn) == INTERVAL_DRAWS
    assert len({tuple(values["object/plate"]) for values in drawn}) == INTERVAL_DRAWS


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load(name: str) -> None:
    assert Randomization.of(name).name == name


def fields(name: str) -> set[str]:
    return {term.field for term in Randomization.of(name).terms}


def test_full_is_everything() -> None:
    assert fields("none") == set()
    assert fields("full") == set(AXES)
    assert fields("full") > fields("visual") | fields("dynamics")
    assert fields("visual").isdisjoint(fields("dynamics"))
    assert len(AXES) >= 20
    assert any(term.mode == "interval" for term in Randomization.of("visual").terms)
    assert any(term.mode == "interval" for term in Randomization.of("dynamics").terms)


def values_of(term: Term) -> set[Any]:
    assert isinstance(term.distribution, Choice)
    return set(term.distribution.values)


def test_unseen_has_no_value_of_the_training_presets() -> None:
    """For each axis the boxes of values are disjoint in every component, so that no mixture covers them."""
    held_out = {term.key: term for term in Randomization.of("unseen").terms}
    assert set(AXES) - {term.field for term in held_out.values()} == {"push", "shadow"}  # these have no other values
    for term in Randomization.of("full").terms:
        if term.key not in held_out:
            continue
        other = held_out[term.key]
        assert term.operation == other.operation
        if term.distribution.support is None or other.distribution.support is None:
            assert values_of(term).isdisjoint(values_of(other)), term.key
            continue
        (low, high), (low2, high2) = (np.array(t.distribution.support) for t in (term, other))
        assert ((high < low2) | (high2 < low)).all(), term.key
    assert held_out.keys() <= {term.key for term in Randomization.of("full").terms}


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("field: fricton, distribution: {uniform: [1, 2]}", "did you mean friction"),
        ("field: friction, distribution: {unifrom: [1, 2]}", "did you mean uniform"),
        ("field: friction, mode: rest, distribution: {uniform: [1, 2]}", "did you mean reset"),
        ("field: friction, operation: sett, distribution: {uniform: [1, 2]}", "did you mean set"),
        ("field: friction, mode: interval, interval_s: 1, distribution: {uniform: [1, 2]}", "mode interval makes no"),
        ("field: push, mode: interval, operation: add, distribution: {uniform: [0, 1]}", "interval_s"),
        ("field: friction, distribution: {uniform: [2, 1]}", "must not be above"),
        ("field: friction, distribution: {uniform: [1]}", "wrong number of parameters"),
        ("field: friction, distribution: {uniform: [a, b]}", "no number"),
        ("field: friction, distribution: {log_uniform: [0, 1]}", "must be positive"),
        ("field: friction, operation: scale, distribution: {uniform: [-1, 1]}", "a factor must be positive"),
        ("field: friction, distribution: {uniform: [-1, 1]}", "outside"),
        ("field: friction, distribution: {choice: []}", "at least one"),
        ("field: friction, distribution: {bernoulli: 0.5}", "does not fit"),
        ("field: friction, distribution: {uniform: [[1, 1], [2, 2]]}", "components"),
        ("field: friction, distribution: {normal: [1, 0.1, 3, 4]}", "holds too little"),
        ("field: shadow, distribution: {bernoulli: 1.5}", r"in \[0, 1\]"),
        ("field: texture, distribution: {choice: [woood]}", "did you mean wood"),
        ("field: ambient, scope: sun, distribution: {uniform: [0, 1]}", "there is only one"),
        ("field: frame_drop, distribution: {uniform: [0, 1.5]}", "outside"),
        ("field: friction, distrbution: {uniform: [1, 2]}", "needs a field and a distribution"),
        ("field: friction, scop: table, distribution: {uniform: [1, 2]}", "did you mean scope"),
    ],
)
def test_a_wrong_term_is_refused(tmp_path: Path, term: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"terms:\n  - {{{term}}}\n")
    with pytest.raises(UsageError, match=message):
        Randomization.of(str(path))


def test_files_may_include_presets_and_replace_terms(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("include: [dynamics]\nterms:\n  - {field: table_height, distribution: {uniform: [0.0, 0.001]}}\n")
    mine, preset = Randomization.of(path), Randomization.of("dynamics")
    assert {term.key for term in mine.terms} == {term.key for term in preset.terms}
    assert [term.distribution for term in mine.terms if term.field == "table_height"] == [Uniform(0.0, 0.001)]
    path.write_text("terms:\n" + 2 * "  - {field: table_height, distribution: {uniform: [0.0, 0.001]}}\n")
    with pytest.raises(UsageError, match="2 times"):
        Randomization.of(path)
    path.write_text("term: []\n")
    with pytest.raises(UsageError, match="nothing else"):
        Randomization.of(path)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="did you mean visual"):
        Randomization.of("vsual")
    with pytest.raises(UsageError, match="no such file"):
        Randomization.of(str(tmp_path / "absent.yaml"))
    with pytest.raises(UsageError, match="one name with its parameters"):
        parse_distribution([1, 2])
