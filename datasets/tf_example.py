"""`tf.train.Example` without TensorFlow: its protocol buffer, described at run time.

The messages are those of tensorflow/core/example/{example,feature}.proto, by field number:

    Example  {1: Features}           BytesList {1: repeated bytes}
    Features {1: map<string, Feature>}  FloatList {1: repeated float, packed}
    Feature  {oneof 1: BytesList, 2: FloatList, 3: Int64List}   Int64List {1: repeated int64, packed}
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.datasets.lerobot_layout import DatasetError

Values = list[bytes] | NDArray[np.float32] | NDArray[np.int64]
_PACKAGE = "volar_tf_example"  # of its own, so that TensorFlow may be imported beside it


@cache
def example_class() -> Any:
    """The message class `Example`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")

    def message(name: str, parent: Any = file.message_type) -> Any:
        return parent.add(name=name)

    def field(owner: Any, name: str, number: int, kind: int, label: int = kinds.LABEL_OPTIONAL, of: str = "") -> Any:
        added = owner.field.add(name=name, number=number, type=kind, label=label)
        if of:
            added.type_name = f".{_PACKAGE}.{of}"
        return added

    for name, kind in (
        ("BytesList", kinds.TYPE_BYTES),
        ("FloatList", kinds.TYPE_FLOAT),
        ("Int64List", kinds.TYPE_INT64),
    ):
        field(message(name), "value", 1, kind, kinds.LABEL_REPEATED)
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, of) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), 1
    ):
        field(feature, name, number, kinds.TYPE_MESSAGE, of=of).oneof_index = 0
    features = message("Features")
    entry = message("FeatureEntry", features.nested_type)
    entry.options.map_entry = True
    field(entry, "key", 1, kinds.TYPE_STRING)
    field(entry, "value", 2, kinds.TYPE_MESSAGE, of="Feature")
    field(features, "feature", 1, kinds.TYPE_MESSAGE, kinds.LABEL_REPEATED, "Features.FeatureEntry")
    field(message("Example"), "features", 1, kinds.TYPE_MESSAGE, of="Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Example"))


class Example:
    """The features of one parsed example, by key. Raises `DatasetError` on bytes that are none."""

    def __init__(self, data: bytes) -> None:
        from google.protobuf.message import DecodeError

        try:
            self._features = example_class().FromString(data).features.feature
        except DecodeError as error:
            raise DatasetError(f"these {len(data)} bytes are no tf.train.Example: {error}") from error

    def keys(self) -> list[str]:
        return sorted(self._features)

    def __contains__(self, key: str) -> bool:
        return key in self._features

    def strings(self, key: str) -> Sequence[bytes]:
        """Those of a feature of bytes, each copied when it is taken; none of one of numbers."""
        strings: Sequence[bytes] = self._features[key].bytes_list.value
        return strings

    def values(self, key: str) -> Values:
        """Flat: bytes, float32 (N,) or int64 (N,); empty where the feature holds nothing."""
        feature = self._features[key]
        kind = feature.WhichOneof("kind")
        if kind == "bytes_list":
            return list(feature.bytes_list.value)
        if kind == "float_list":
            return np.array(feature.float_list.value, dtype=np.float32)
        return np.array(feature.int64_list.value, dtype=np.int64)
