"""The percentile of a window against NumPy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volar.robots.rolling_percentile import RollingPercentile


@given(
    st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=60),
    st.integers(1, 20),
    st.floats(0, 100),
)
def test_it_is_numpys_over_the_window(values: list[float], window: int, percent: float) -> None:
    rolling = RollingPercentile(window)
    for count, value in enumerate(values, 1):
        rolling.add(value)
        latest = values[max(0, count - window) : count]
        assert len(rolling) == len(latest)
        assert rolling.at(percent) == pytest.approx(np.percentile(latest, percent), rel=1e-12, abs=1e-9)


def test_what_has_no_answer() -> None:
    rolling = RollingPercentile(3)
    assert rolling.at(50) is None
    rolling.add(1.0)
    rolling.clear()
    assert rolling.at(50) is None
    with pytest.raises(ValueError, match="NaN"):
        rolling.add(float("nan"))
    for percent in (-1.0, 100.1):
        with pytest.raises(ValueError, match="percent"):
            rolling.at(percent)
    with pytest.raises(ValueError, match="window"):
        RollingPercentile(0)
