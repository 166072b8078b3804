"""Arrays in msgpack, as openpi packs them; what is unpacked comes from a network and is not trusted.

An array is the map {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [H, A]}. Only plain numbers are
arrays (`DTYPES`): no objects, strings, records or complex numbers, and nothing that could run code.
"""

import math
from typing import Any, Final

import numpy as np

from volar.robots.errors import VolarError

# `dtype.str` -> dtype: a table, so that no text from the network ever reaches NumPy's parser of dtypes.
DTYPES: Final = {
    np.dtype(name).str: np.dtype(name)
    for name in ("?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
}
MAX_FRAME_BYTES: Final = 64 * 2**20  # ten images of 1920 x 1080
MAX_ITEMS: Final = 4096  # of a list or map: msgpack reserves memory for as many as a header claims
MAX_DIMENSIONS: Final = 8
ARRAY, GENERIC = b"__ndarray__", b"__npgeneric__"
_ARRAY_KEYS = frozenset((ARRAY, b"data", b"dtype", b"shape"))
_GENERIC_KEYS = frozenset((GENERIC, b"data", b"dtype"))


class ArrayMessageError(VolarError):
    """Bytes that are no message of this kind, or a value that cannot be one; says what and where."""


def pack(message: Any) -> bytes:
    """Maps, lists, text, bytes, numbers, None and arrays of `DTYPES` as msgpack; NumPy numbers become plain ones.

    Raises `ArrayMessageError` for anything else.
    """
    import msgpack

    try:
        return bytes(msgpack.packb(message, default=_encode, use_bin_type=True))
    except (TypeError, ValueError, OverflowError) as error:
        raise ArrayMessageError(f"cannot be sent: {error}") from error


def unpack(data: bytes) -> Any:
    """Inverse of `pack`; arrays are read-only views of `data`. Raises `ArrayMessageError` on anything else."""
    import msgpack

    if len(data) > MAX_FRAME_BYTES:
        raise ArrayMessageError(f"a message of {len(data)} bytes is longer than {MAX_FRAME_BYTES}")
    try:
        return msgpack.unpackb(
            data,
            object_hook=_decode,
            ext_hook=_refuse_extension,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except ArrayMessageError:
        raise
    except (msgpack.UnpackException, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ArrayMessageError(f"is not a msgpack message: {str(error) or type(error).__name__}") from error


def _encode(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = np.asarray(value)
        _require_plain(value)
        return value.item()
    if isinstance(value, np.ndarray):
        _require_plain(value)
        value = value.astype(value.dtype.newbyteorder("<"), copy=False)
        return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)}
    raise TypeError(f"{type(value).__name__} is no map, list, text, number or array")


def _require_plain(value: "np.ndarray[Any, Any]") -> None:
    if value.dtype.newbyteorder("<").str not in DTYPES:
        raise TypeError(f"dtype {value.dtype} is none of {', '.join(DTYPES)}")


def _decode(raw: dict[Any, Any]) -> Any:
    if ARRAY in raw:
        return _array(raw)
    return _generic(raw) if GENERIC in raw else raw


def _array(raw: dict[Any, Any]) -> Any:
    if raw.keys() != _ARRAY_KEYS or raw[ARRAY] is not True:
        raise ArrayMessageError(f"an array has the keys data, dtype and shape; found {_names(raw)}")
    dtype, shape, data = _dtype(raw), raw[b"shape"], raw[b"data"]
    # `type`, since True is an int too.
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise ArrayMessageError(f"an array's shape is a list of sizes, found {_short(shape)}")
    if len(shape) > MAX_DIMENSIONS:
        raise ArrayMessageError(f"an array has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
    wanted = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != wanted:
        found = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise ArrayMessageError(f"an array of {dtype} and shape {tuple(shape)} takes {wanted} bytes, found {found}")
    return np.frombuffer(data, dtype).reshape(shape)


def _generic(raw: dict[Any, Any]) -> Any:
    """openpi's form of one NumPy number; comes out as the plain number of that dtype."""
    if raw.keys() != _GENERIC_KEYS or not isinstance(raw[b"data"], (bool, int, float)):
        raise ArrayMessageError(f"a NumPy number has the keys data and dtype; found {_names(raw)}")
    return np.asarray(raw[b"data"], _dtype(raw)).item()


def _dtype(raw: dict[Any, Any]) -> "np.dtype[Any]":
    name = raw[b"dtype"]
    if not isinstance(name, str) or name not in DTYPES:
        raise ArrayMessageError(f"dtype {_short(name)} is none of {', '.join(DTYPES)}")
    return DTYPES[name]


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ArrayMessageError(f"holds a msgpack extension ({code}), which is no part of the protocol")


def _names(raw: dict[Any, Any]) -> str:
    return ", ".join(sorted(_short(key) for key in raw))


def _short(value: object) -> str:
    """For a message about what somebody else sent: never longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
