"""Shapes and types of a TFDS folder's features, from its `features.json`, and their values from an example.

A feature is known by its path (`steps/observation/image_0`), which is also its key in the example; one below the
`Dataset` `steps` holds a value for each step. Source of the layout: tensorflow_datasets, core/proto/feature.proto
and core/example_serializer.py.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.datasets.lerobot_layout import DatasetError
from volar.datasets.tf_example import Example, Values

STEPS = "steps"
_IMAGE_TYPES = {"uint8": np.uint8, "uint16": np.uint16, "float32": np.float32}


@dataclass(frozen=True)
class Feature:
    """One leaf of `features.json`.

    `kind`: `tensor`, `text` or `image`. `shape` of one value, -1 where it varies. `dtype`: NumPy's name, `string`,
    or `bfloat16`. `encoding` of a tensor: `none`, `bytes` or `zlib`. `depth`: how many sequences it lies in.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    encoding: str = "none"
    depth: int = 0

    @property
    def of_step(self) -> bool:
        return self.path.startswith(f"{STEPS}/")

    @property
    def one_bytes(self) -> bool:
        """A value is one string of bytes in the example."""
        return self.kind != "tensor" or self.encoding != "none" or (self.dtype == "string" and not self.shape)


def load_features(path: Path) -> dict[str, Feature]:
    """Path -> leaf. Raises `DatasetError` when the file is missing or of an unknown form."""
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing: not a TFDS folder, or one of before 2021") from error
    except ValueError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    try:
        found = {leaf.path: leaf for leaf in _leaves(tree, "", 0, path)}
        for leaf in found.values():
            np.dtype({"string": "S", "bfloat16": "f4"}.get(leaf.dtype, leaf.dtype))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{path} is of another form than TFDS writes: {type(error).__name__} {error}") from error
    if not any(leaf.of_step for leaf in found.values()):
        raise DatasetError(f"{path} has no steps: not RLDS (features: {', '.join(sorted(found)) or 'none'})")
    return found


def _leaves(node: dict[str, Any], path: str, depth: int, file: Path) -> list[Feature]:
    if "featuresDict" in node:
        items = node["featuresDict"].get("features", {}).items()
        return [leaf for name, child in items for leaf in _leaves(child, f"{path}/{name}".strip("/"), depth, file)]
    if "sequence" in node:
        return _leaves(node["sequence"]["feature"], path, depth + 1, file)
    if "text" in node:
        return [Feature(path, "text", (), "string", depth=depth)]
    if "classLabel" in node:
        return [Feature(path, "tensor", (), "int64", depth=depth)]
    if "image" in node:
        image = node["image"]
        return [Feature(path, "image", _shape(image), image.get("dtype", "uint8"), depth=depth)]
    if "tensor" in node:
        tensor = node["tensor"]
        encoding = str(tensor.get("encoding") or "none").lower()
        return [Feature(path, "tensor", _shape(tensor), tensor["dtype"], encoding, depth)]
    name = str(node.get("pythonClassName", node.get("type", "?"))).rpartition(".")[2]
    raise DatasetError(
        f"{file}: the feature {path or '(root)'} is a {name}, which is not read "
        "(dictionaries, sequences, Tensor, Scalar, Text, ClassLabel and Image are)"
    )


def _shape(node: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(n) for n in node.get("shape", {}).get("dimensions", ()))


def count(feature: Feature, example: Example) -> int | None:
    """How many values of a feature an example holds; None where its size varies, so that it cannot say."""
    if feature.path not in example:
        return None
    if feature.one_bytes:
        return len(example.strings(feature.path)) or len(example.values(feature.path))
    values = example.values(feature.path)
    size = int(np.prod(feature.shape, dtype=np.int64)) if -1 not in feature.shape else 0
    if feature.depth > 1 or size == 0 or len(values) % size:
        return None
    return len(values) // size


def decode(feature: Feature, example: Example, steps: int) -> Any:
    """The value of a feature: for one of the steps (T, ...), or a list of T where the sizes vary.

    Text is `str`; other strings are `bytes` in an object array. Raises `DatasetError` when the example does not hold
    as many numbers as `features.json` says, `KeyError` when it has nothing of that feature.
    """
    if feature.depth > (1 if feature.of_step else 0) and f"{feature.path}/ragged_flat_values" in example:
        return _ragged(feature, example)
    values = example.values(feature.path)
    number = steps if feature.of_step else 1
    if feature.one_bytes:
        if feature.depth > (1 if feature.of_step else 0):
            number = len(values)
        if len(values) != number:
            raise DatasetError(f"{feature.path} has {len(values)} values for {number} {'steps' * feature.of_step}")
        decoded = [_decode_bytes(feature, data) for data in values]
        if not feature.of_step and feature.depth == 0:
            return decoded[0]
        same = decoded and isinstance(decoded[0], np.ndarray) and len({x.shape for x in decoded}) == 1
        return np.stack(decoded) if same else decoded
    lead = (steps,) if feature.of_step else ()
    if feature.depth > len(lead):  # a plain sequence inside: its length follows from the numbers
        lead = (*lead, -1)
    return _shaped(feature, values, (*lead, *feature.shape))


def decode_each(feature: Feature, example: Example, steps: int) -> Iterator[NDArray[Any]]:
    """The images of a feature of the steps, one after the other. Raises `DatasetError`."""
    values = example.strings(feature.path)
    if len(values) != steps or feature.kind != "image":
        raise DatasetError(f"{feature.path} has {len(values)} values of {feature.kind} for images of {steps} steps")
    for data in values:
        yield _decode_bytes(feature, data)


def _shaped(feature: Feature, values: Values, shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.array(values, dtype=object) if isinstance(values, list) else values
    try:
        return _typed(feature, array.reshape(shape))
    except ValueError as error:
        raise DatasetError(f"{feature.path} has {len(values)} numbers, which are no {shape}") from error


def _typed(feature: Feature, array: NDArray[Any]) -> NDArray[Any]:
    if feature.dtype == "string":
        return array
    if array.dtype == object:
        raise DatasetError(f"{feature.path} holds bytes, features.json says {feature.dtype}")
    # bfloat16 has no NumPy type; every value of it is a float32.
    return array.astype("float32" if feature.dtype == "bfloat16" else feature.dtype)


def _decode_bytes(feature: Feature, data: Any) -> Any:
    if not isinstance(data, bytes):
        raise DatasetError(f"{feature.path} holds numbers, features.json says {feature.kind}")
    if feature.kind == "text":
        return text_of(data, feature.path)
    if feature.kind == "image":
        return _decode_image(feature, data)
    if feature.encoding == "none":
        return data
    try:
        raw = zlib.decompress(data) if feature.encoding == "zlib" else data
        return np.frombuffer(raw, dtype=feature.dtype).reshape(feature.shape)
    except (zlib.error, ValueError) as error:
        raise DatasetError(f"{feature.path}: {len(data)} bytes are no {feature.dtype} {feature.shape}") from error


def text_of(data: bytes, path: str) -> str:
    """Raises `DatasetError` for bytes that are no UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: {data[:40]!r} is no text in UTF-8 (byte {error.start})") from error


def _decode_image(feature: Feature, data: bytes) -> NDArray[Any]:
    """RGB (H, W, C). A float32 image is four 8-bit channels in PNG (TFDS's way for depth)."""
    import cv2

    if feature.dtype not in _IMAGE_TYPES:
        raise DatasetError(f"{feature.path}: images of {feature.dtype} are not read ({', '.join(_IMAGE_TYPES)} are)")
    channels = feature.shape[-1] if feature.shape else -1
    plain = feature.dtype == "uint8" and channels in (3, -1)
    flag = cv2.IMREAD_COLOR_RGB if plain else cv2.IMREAD_UNCHANGED
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    if image is None:
        raise DatasetError(f"{feature.path}: an image of {len(data)} bytes cannot be decoded")
    if not plain and image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    if feature.dtype == "float32":
        image = np.ascontiguousarray(image).view(np.float32)
    image = image.reshape(*image.shape[:2], -1).astype(_IMAGE_TYPES[feature.dtype], copy=False)
    wanted = feature.shape or (-1, -1, -1)
    if any(n not in (-1, m) for n, m in zip(wanted, image.shape, strict=True)):
        raise DatasetError(f"{feature.path}: an image is {image.shape}, features.json says {feature.shape}")
    array: NDArray[Any] = image
    return array


def _ragged(feature: Feature, example: Example) -> list[Any]:
    """Sequences in a sequence: flat values, and the lengths of the rows at every level (outermost 0)."""
    flat = example.values(f"{feature.path}/ragged_flat_values")
    inner = [n for n in feature.shape if n >= 0]
    rows: list[Any]
    if feature.one_bytes:
        rows = [_decode_bytes(feature, data) for data in flat]
    else:
        rows = list(_shaped(feature, flat, (-1, *inner)))
    level = 0
    while f"{feature.path}/ragged_row_lengths_{level}" in example:
        level += 1
    for k in reversed(range(level)):
        lengths = np.asarray(example.values(f"{feature.path}/ragged_row_lengths_{k}"), dtype=np.int64)
        if int(lengths.sum()) != len(rows):
            raise DatasetError(f"{feature.path}: rows of {int(lengths.sum())} values together, there are {len(rows)}")
        ends = np.cumsum(lengths)
        rows = [rows[end - n : end] for n, end in zip(lengths.tolist(), ends.tolist(), strict=True)]
    return rows
