import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volar.robots.errors import Unknown
from volar.vla.action_tokenizers import action_tokenizer
from volar.vla.action_tokenizers.uniform_bins import CENTRES, UniformBins

TOKENIZER = UniformBins(vocabulary_size=32000)


def test_ids_are_openvlas() -> None:
    # digitize(-1) is 1 and digitize(1) is 256: the first id is the vocabulary's last, and so on down.
    assert TOKENIZER.encode(np.array([-1.0, 1.0, -5.0, 5.0])).tolist() == [31999, 31744, 31999, 31744]
    assert len(CENTRES) == 255
    # id 31744 decodes as centre clip(32000 - 31744 - 1, 0, 254) = 254
    assert TOKENIZER.decode(np.array([31744, 31999])).tolist() == [CENTRES[254], CENTRES[0]]


@given(st.floats(-1, 1))
def test_a_round_trip_is_within_half_a_bin(x: float) -> None:
    assert abs(float(TOKENIZER.decode(TOKENIZER.encode(np.array([x])))[0]) - x) <= 1 / 255 + 1e-9


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=2))
def test_ids_fall_as_actions_rise(pair: list[float]) -> None:
    low, high = sorted(pair)
    assert TOKENIZER.encode(np.array(low)) >= TOKENIZER.encode(np.array(high))


def test_what_is_no_action_is_refused() -> None:
    with pytest.raises(ValueError, match="non-finite"):
        TOKENIZER.encode(np.array([np.nan]))
    with pytest.raises(ValueError, match="token 12 is no action token"):
        TOKENIZER.decode(np.array([31800, 12]))
    with pytest.raises(Unknown, match="bins"):
        action_tokenizer("bns", 32000)
