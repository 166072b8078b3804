"""RLDS folders written without the code under test: record framing, protocol buffers and CRC by hand."""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

Value = np.ndarray | list[bytes]
Spec = dict[str, Any]


def crc32c(data: bytes) -> int:
    """Bit by bit, polynomial 0x1EDC6F41 reflected (RFC 3720)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table_entry(n: int) -> int:
    for _ in range(8):
        n = (n >> 1) ^ (0x82F63B78 if n & 1 else 0)
    return n


_TABLE = [_table_entry(n) for n in range(256)]


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def varint(n: int) -> bytes:
    n &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def message(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def example(features: Mapping[str, Value]) -> bytes:
    """A tf.train.Example in protocol buffer wire format."""
    entries = b""
    for key, value in features.items():
        if isinstance(value, list):
            feature = message(1, b"".join(message(1, item) for item in value))
        elif value.dtype.kind == "f":
            feature = message(2, message(1, value.astype("<f4").tobytes()))
        else:
            feature = message(3, message(1, b"".join(varint(int(n)) for n in value.ravel())))
        entries += message(1, message(1, key.encode()) + message(2, feature))
    return message(1, entries)


def tensor(shape: Sequence[int], dtype: str, encoding: str = "none") -> Spec:
    dimensions = {"dimensions": [str(n) for n in shape]} if shape else {}
    name = "scalar.Scalar" if not shape else "tensor_feature.Tensor"
    return {
        "pythonClassName": f"tensorflow_datasets.core.features.{name}",
        "tensor": {"shape": dimensions, "dtype": dtype, "encoding": encoding},
    }


def image(shape: Sequence[int], dtype: str = "uint8", form: str = "png") -> Spec:
    dimensions = {"dimensions": [str(n) for n in shape]}
    return {
        "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
        "image": {"shape": dimensions, "dtype": dtype, "encodingFormat": form},
    }


def text() -> Spec:
    return {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}


def sequence(feature: Spec) -> Spec:
    return {
        "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
        "sequence": {"feature": feature, "length": "-1"},
    }


def features_json(specs: Mapping[str, Spec]) -> Spec:
    """`steps/observation/state` -> spec, as the nested dictionaries of features.json; `steps` is a Dataset."""
    tree: Spec = {}
    for path, spec in specs.items():
        node = tree
        # A feature may have a slash in its own name, as bc_z's and kuka's have.
        parts = path.split("/") if path.count("/") < 3 else [*path.split("/")[:2], "/".join(path.split("/")[2:])]
        for part in parts[:-1]:
            node = node.setdefault(part, {"features": {}})["features"]
        node[parts[-1]] = {"leaf": spec}

    def built(name: str, node: Spec) -> Spec:
        if "leaf" in node:
            return dict(node["leaf"])
        children = {key: built(key, child) for key, child in node["features"].items()}
        found = {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "featuresDict": {"features": children},
        }
        return sequence(found) if name == "steps" else found

    return built("", {"features": tree})


def write_tfds(
    root: Path,
    specs: Mapping[str, Spec],
    records: Sequence[Mapping[str, Value]],
    *,
    name: str = "bridge_dataset",
    lengths: Sequence[int] | None = None,
    split: str = "train",
) -> list[Path]:
    """A TFDS folder of one split, with shards of those lengths; returns their paths."""
    lengths = list(lengths or [len(records)])
    root.mkdir(parents=True, exist_ok=True)
    info = {"name": name, "version": "1.0.0", "fileFormat": "tfrecord"}
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    described = {"name": split, "filepathTemplate": template, "shardLengths": [str(n) for n in lengths]}
    (root / "dataset_info.json").write_text(json.dumps({**info, "splits": [described]}))
    (root / "features.json").write_text(json.dumps(features_json(specs)))
    paths, first = [], 0
    for i, length in enumerate(lengths):
        path = root / f"{name}-{split}.tfrecord-{i:05d}-of-{len(lengths):05d}"
        path.write_bytes(b"".join(record(example(item)) for item in records[first : first + length]))
        paths.append(path)
        first += length
    return paths


def png(pixels: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    assert done
    return bytes(data)


SIZES = {"image_0": (16, 24), "image_1": (16, 16), "image_2": (16, 16), "image_3": (8, 8)}
BRIDGE: dict[str, Spec] = {
    "steps/action": tensor((7,), "float32"),
    "steps/observation/state": tensor((7,), "float32"),
    **{f"steps/observation/{key}": image((*size, 3)) for key, size in SIZES.items()},
    "steps/language_instruction": text(),
    "steps/is_first": tensor((), "bool"),
    "steps/reward": tensor((), "float32"),
    "episode_metadata/file_path": text(),
    "episode_metadata/episode_id": tensor((), "int32"),
}
INSTRUCTIONS = ("put the cup in the sink", "flip the pot", "")


def bridge_arrays(number: int, *, unlabelled: bool = False) -> dict[str, Any]:
    """The numbers and images of episode `number`; camera image_3 is there in every other one."""
    rng = np.random.default_rng(number)
    steps = 3 + number % 4
    arrays: dict[str, Any] = {
        "action": rng.normal(scale=0.01, size=(steps, 7)).astype(np.float32),
        "state": rng.normal(size=(steps, 7)).astype(np.float32),
        "instruction": "" if unlabelled else INSTRUCTIONS[number % 2],
        **{key: rng.integers(0, 256, (steps, *size, 3), np.uint8) for key, size in SIZES.items()},
    }
    arrays["action"][:, 6] = rng.integers(0, 2, steps)
    if number % 2:
        arrays["image_3"][:] = 0
    return arrays


def bridge_record(number: int, *, unlabelled: bool = False) -> dict[str, Value]:
    arrays = bridge_arrays(number, unlabelled=unlabelled)
    steps = len(arrays["action"])
    return {
        "steps/action": arrays["action"],
        "steps/observation/state": arrays["state"],
        **{f"steps/observation/{key}": [png(x) for x in arrays[key]] for key in SIZES},
        "steps/language_instruction": [arrays["instruction"].encode()] * steps,
        "steps/is_first": np.arange(steps) == 0,
        "steps/reward": np.zeros(steps, np.float32),
        "episode_metadata/file_path": [f"/data/{number}/out.npy".encode()],
        "episode_metadata/episode_id": np.array([number]),
    }


@pytest.fixture
def write() -> Callable[..., list[Path]]:
    return write_tfds


@pytest.fixture(scope="session")
def bridge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven episodes of BridgeData's form in three shards. Read-only for tests."""
    root = tmp_path_factory.mktemp("rlds") / "bridge_dataset" / "1.0.0"
    write_tfds(root, BRIDGE, [bridge_record(n) for n in range(7)], lengths=(3, 3, 1))
    return root


@pytest.fixture(scope="session")
def tools() -> Any:
    """This module: fixtures of other files reach its functions through it."""
    import sys

    return sys.modules[__name__]


@pytest.fixture(scope="session")
def bridge_sample() -> Path:
    """25 real episodes of BridgeData V2, CC BY 4.0."""
    path = Path(__file__).parents[4] / "shared" / "data" / "bridge_sample" / "1.0.0"
    if not path.is_dir():
        pytest.skip(f"the real BridgeData V2 sample is not at {path}")
    return path
