"""Arrays in msgpack: what goes in comes out, it is what openpi writes, and nothing hostile gets further."""

import contextlib
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from volar.robots.array_msgpack import DTYPES, MAX_FRAME_BYTES, MAX_ITEMS, ArrayMessageError, pack, unpack

ARRAYS = nps.arrays(st.sampled_from(list(DTYPES.values())), nps.array_shapes(min_dims=0, max_dims=4, min_side=0))
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary() | ARRAYS
MESSAGES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and (a == b or (a != a and b != b))


@settings(deadline=None)
@given(MESSAGES)
def test_round_trip(message: Any) -> None:
    assert same(message, unpack(pack(message)))


def test_an_array_is_the_map_that_openpi_sends() -> None:
    raw = msgpack.unpackb(pack({"x": np.arange(6, dtype=np.float32).reshape(2, 3)}), strict_map_key=False)
    data = np.arange(6, dtype="<f4").tobytes()
    assert raw == {"x": {b"__ndarray__": True, b"data": data, b"dtype": "<f4", b"shape": [2, 3]}}


def test_numpy_numbers_and_other_layouts_come_out_plain() -> None:
    turned = np.arange(6, dtype=">i4").reshape(2, 3).T  # neither contiguous nor little-endian
    found = unpack(pack({"a": np.float32(0.5), "b": np.int64(-3), "c": np.bool_(True), "d": turned}))
    assert (found["a"], found["b"], found["c"]) == (0.5, -3, True)
    np.testing.assert_array_equal(found["d"], turned)
    assert found["d"].dtype == np.dtype("<i4")
    assert unpack(msgpack.packb({b"__npgeneric__": True, b"data": 0.25, b"dtype": "<f4"})) == 0.25


@pytest.mark.parametrize(
    "value",
    [
        np.array([None]),
        np.array(["a"]),
        np.array([1j]),
        np.zeros(1, [("a", "i4")]),
        np.array(["2020"], "M8[D]"),
        {1, 2},
    ],
    ids=["object", "text", "complex", "record", "date", "set"],
)
def test_what_is_no_plain_array_is_not_sent(value: Any) -> None:
    with pytest.raises(ArrayMessageError, match="cannot be sent: "):
        pack({"x": value})


GOOD = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({b"dtype": "|O"}, "dtype '|O' is none of"),
        ({b"dtype": "<U2"}, "is none of"),
        ({b"dtype": "f4,f4"}, "is none of"),
        ({b"dtype": [["a", "<f4"]]}, "is none of"),
        ({b"shape": [3]}, r"shape \(3,\) takes 12 bytes, found 8 bytes"),
        ({b"shape": [-2]}, "a list of sizes"),
        ({b"shape": [True, 2]}, "a list of sizes"),
        ({b"shape": [2**40, 2**40]}, "a list of sizes"),
        ({b"shape": [2**31 - 1] * 4 + [0]}, "takes 0 bytes, found 8"),
        ({b"shape": [2**31 - 1] * 4 + [0], b"data": b""}, "not a msgpack message"),
        ({b"shape": [1] * 64 + [2]}, "65 dimensions"),
        ({b"shape": 2}, "a list of sizes"),
        ({b"data": "text"}, "found str"),
        ({b"data": {b"__ndarray__": True}}, "the keys data, dtype and shape"),
        ({b"extra": 1}, "the keys data, dtype and shape"),
        ({b"__ndarray__": 1}, "the keys data, dtype and shape"),
    ],
)
def test_hostile_arrays_are_named(change: dict[bytes, Any], reason: str) -> None:
    assert unpack(msgpack.packb(GOOD)).shape == (2,)
    with pytest.raises(ArrayMessageError, match=reason.replace("|", r"\|")):
        unpack(msgpack.packb({"x": GOOD | change}))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "incomplete"),
        (pack({"x": 1})[:-1], "incomplete"),
        (pack(1) + pack(2), "extra data"),
        (b"\xdd\xff\xff\xff\xff", "exceeds max_array_len"),  # a list of 2^32 elements, in five bytes
        (b"\xdd\x00\x00\x10\x00" * 10_000, "not a msgpack message"),
        (pack([0] * (MAX_ITEMS + 1)), "exceeds max_array_len"),
        (b"\x91" * 100_000 + b"\x01", "not a msgpack message"),
        (b"\xd4\x05\x00", "ext"),
        (b"\xc7\x00\x05", "extension"),
        (b"\xd6\xff\x00\x00\x00\x01", "ext"),  # a time stamp
        (b"\x81\x01\x02", "map key"),
        (b"\xa1\xff", "utf-8"),
        (b"\0" * (MAX_FRAME_BYTES + 1), "longer than"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "not a msgpack message"),
        (msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "|u1"}), "a NumPy number has"),
    ],
)
def test_hostile_bytes_are_named(data: bytes, reason: str) -> None:
    with pytest.raises(ArrayMessageError, match=reason):
        unpack(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_named_error(data: bytes) -> None:
    with contextlib.suppress(ArrayMessageError):
        unpack(data)


@settings(max_examples=300, deadline=None)
@given(MESSAGES, st.data())
def test_a_damaged_message_is_a_message_or_a_named_error(message: Any, data: st.DataObject) -> None:
    packed = bytearray(pack(message))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ArrayMessageError):
        unpack(bytes(packed))
