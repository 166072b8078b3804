"""RLDS folders: every type arrives as it was written, and damage is named by shard, record and byte."""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volar.datasets.lerobot_layout import DatasetError
from volar.datasets.rlds import Losses, RldsDataset
from volar.datasets.tfrecord import CorruptRecord, masked_crc
from volar.robots.errors import Unknown

DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "float32", "float64")


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(len(dtype))
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.startswith("float"):
        return rng.normal(size=shape).astype(np.float32).astype(dtype)  # TFDS keeps doubles as floats
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def test_the_crc_of_the_fixtures_and_the_readers_are_the_standard_one(tools: Any) -> None:
    assert tools.crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value
    data = bytes(range(256)) * 3
    assert masked_crc(data).to_bytes(4, "little") == tools.masked(data)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("encoding", ["none", "bytes", "zlib"])
def test_every_type_arrives(
    dtype: str, shape: tuple[int, ...], encoding: str, tmp_path: Path, tools: Any, write: Callable[..., Any]
) -> None:
    of_steps, of_episode = values(dtype, (4, *shape)), values(dtype, shape)

    def stored(array: np.ndarray, count: int) -> Any:
        if encoding == "none":
            return array.reshape(-1)
        raw = [item.tobytes() for item in array.reshape(count, -1)]
        return [zlib.compress(item) for item in raw] if encoding == "zlib" else raw

    specs = {"steps/x": tools.tensor(shape, dtype, encoding), "about/y": tools.tensor(shape, dtype, encoding)}
    write(tmp_path, specs, [{"steps/x": stored(of_steps, 4), "about/y": stored(of_episode, 1)}])
    (episode,) = RldsDataset.open(tmp_path).episodes()
    for found, wanted in ((episode["steps/x"], of_steps), (episode["about/y"], of_episode)):
        np.testing.assert_array_equal(found, wanted)
        assert np.asarray(found).dtype == wanted.dtype


def test_text_bytes_images_and_sequences_arrive(tmp_path: Path, tools: Any, write: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 6, 5, 3), np.uint8)
    deep = rng.integers(0, 65536, (2, 6, 5, 1), np.uint16)
    distance = rng.normal(size=(2, 6, 5, 1)).astype(np.float32)
    specs = {
        "steps/text": tools.text(),
        "steps/raw": tools.tensor((), "string"),
        "steps/image": tools.image((6, 5, 3)),
        "steps/any_size": tools.image((-1, -1, 3)),
        "steps/depth": tools.image((6, 5, 1), "uint16"),
        "steps/distance": tools.image((6, 5, 1), "float32"),
        "steps/boxes": tools.sequence(tools.tensor((2,), "float32")),
        "steps/words": tools.sequence(tools.text()),
        "steps/absent": tools.tensor((3,), "float32"),
        "tags": tools.sequence(tools.text()),
        "marks": tools.sequence(tools.tensor((), "int64")),
    }
    boxes = np.arange(6, dtype=np.float32)
    write(
        tmp_path,
        specs,
        [
            {
                "steps/text": ["größer".encode(), b""],
                "steps/raw": [b"\xff\x00", b"b"],
                "steps/image": [tools.png(x) for x in pictures],
                "steps/any_size": [tools.png(x) for x in pictures],
                "steps/depth": [tools.png(x[..., 0]) for x in deep],
                # TFDS keeps the four bytes of a float as the channels RGBA of a PNG; OpenCV writes BGRA.
                "steps/distance": [tools.cv2.imencode(".png", _channels(x))[1].tobytes() for x in distance],
                "steps/boxes/ragged_flat_values": boxes,
                "steps/boxes/ragged_row_lengths_0": np.array([1, 2]),
                "steps/words/ragged_flat_values": [b"a", b"b", b"c"],
                "steps/words/ragged_row_lengths_0": np.array([3, 0]),
                "tags": [b"x", b"y"],
                "marks": np.array([4, 5, 6]),
            }
        ],
    )
    (episode,) = RldsDataset.open(tmp_path).episodes()
    assert episode.steps == 2
    assert episode["steps/text"] == ["größer", ""]
    assert episode["steps/raw"] == [b"\xff\x00", b"b"]
    np.testing.assert_array_equal(episode["steps/image"], pictures)
    np.testing.assert_array_equal(episode["steps/any_size"], pictures)
    np.testing.assert_array_equal(episode["steps/depth"], deep)
    np.testing.assert_array_equal(episode["steps/distance"], distance)
    first, second = episode["steps/boxes"]
    np.testing.assert_array_equal(np.stack(first), [[0, 1]])
    np.testing.assert_array_equal(np.stack(second), [[2, 3], [4, 5]])
    assert episode["steps/words"] == [["a", "b", "c"], []]
    assert list(episode["tags"]) == ["x", "y"]
    np.testing.assert_array_equal(episode["marks"], [4, 5, 6])
    assert episode.find("steps/absent") is None
    with pytest.raises(CorruptRecord, match=r"record 0 at byte 0: it lacks the feature steps/absent"):
        episode["steps/absent"]
    with pytest.raises(Unknown, match=r"steps/imge.*did you mean steps/image"):
        episode["steps/imge"]


def _channels(distance: np.ndarray) -> np.ndarray:
    rgba = np.ascontiguousarray(distance).view(np.uint8).reshape(*distance.shape[:2], 4)
    return rgba[..., [2, 1, 0, 3]]


def test_episodes_come_in_order_from_every_shard_and_from_any_place(bridge_folder: Path) -> None:
    dataset = RldsDataset.open(bridge_folder)
    found = list(dataset.episodes("train"))
    assert [e["episode_metadata/episode_id"] for e in found] == list(range(7))
    assert dataset.split("train").episodes == 7
    for start, first in (((0, 2), 2), ((1, 0), 3), ((1, 3), 6), ((2, 1), 7)):
        rest = [int(e["episode_metadata/episode_id"]) for e in dataset.episodes("train", start=start)]
        assert rest == list(range(first, 7))


def test_a_split_without_shards_is_refused_by_name(bridge_folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(bridge_folder, tmp_path / "copy"))
    (root / "bridge_dataset-train.tfrecord-00001-of-00003").unlink()
    dataset = RldsDataset.open(root)
    for on_error in ("raise", "skip"):  # a forgotten download is no damage
        with pytest.raises(DatasetError, match=r"lacks 1 of 3 shards: bridge_dataset-train\.tfrecord-00001-of-00003"):
            next(dataset.episodes("train", on_error=on_error))  # type: ignore[arg-type]
    with pytest.raises(Unknown, match=r"split 'test'.*train"):
        dataset.split("test")


def test_other_folders_are_refused(tmp_path: Path, bridge_folder: Path, tools: Any, write: Callable[..., Any]) -> None:
    with pytest.raises(DatasetError, match=rf"no dataset_info\.json; did you mean {bridge_folder}"):
        RldsDataset.open(bridge_folder.parent)
    write(tmp_path / "flat", {"image": tools.image((2, 2, 3))}, [])
    with pytest.raises(DatasetError, match="no steps: not RLDS"):
        RldsDataset.open(tmp_path / "flat")
    root = Path(shutil.copytree(bridge_folder, tmp_path / "array"))
    info = json.loads((root / "dataset_info.json").read_text())
    (root / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "array_record"}))
    with pytest.raises(DatasetError, match="array_record files; only tfrecord"):
        RldsDataset.open(root)
    (root / "dataset_info.json").write_text("{")
    with pytest.raises(DatasetError, match=r"dataset_info\.json cannot be read"):
        RldsDataset.open(root)


SIMPLE_STEPS = (4, 5, 6)


@pytest.fixture
def simple(tmp_path: Path, tools: Any, write: Callable[..., Any]) -> tuple[Path, Path, list[int]]:
    """A folder of one shard of three small records, the shard, and the byte at which each record begins."""
    rng = np.random.default_rng(0)
    specs = {"steps/action": tools.tensor((2,), "float32"), "steps/is_first": tools.tensor((), "bool")}
    records = [
        {"steps/action": rng.normal(size=2 * n).astype(np.float32), "steps/is_first": np.arange(n) == 0}
        for n in SIMPLE_STEPS
    ]
    (shard,) = write(tmp_path / "simple", specs, records)
    sizes = [len(tools.record(tools.example(item))) for item in records]
    return tmp_path / "simple", shard, [0, sizes[0], sizes[0] + sizes[1]]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


# What is done to the second record of three (which begins at `o`, the third at `p`), what the error says beside its
# place, and the steps of the episodes that `skip` still finds.
DAMAGE: dict[str, tuple[Callable[[bytes, int, int], bytes], str, list[int]]] = {
    "truncated data": (lambda d, o, p: d[: p - 7], "truncated", [4]),
    "truncated header": (lambda d, o, p: d[: o + 5], "the file ends after 5 of the 12 bytes", [4]),
    "flip in length": (lambda d, o, p: flipped(d, o + 1), "CRC of its length", [4]),
    "flip in length CRC": (lambda d, o, p: flipped(d, o + 9), "CRC of its length", [4]),
    "flip in data": (lambda d, o, p: flipped(d, o + 30), "CRC of its .* data", [4, 6]),
    "flip in data CRC": (lambda d, o, p: flipped(d, p - 2), "CRC of its .* data", [4, 6]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_skipped(damage: str, simple: tuple[Path, Path, list[int]]) -> None:
    root, shard, (_, second, third) = simple
    change, says, kept = DAMAGE[damage]
    shard.write_bytes(change(shard.read_bytes(), second, third))
    dataset = RldsDataset.open(root)
    read = dataset.episodes()
    assert next(read).steps == 4
    with pytest.raises(CorruptRecord, match=rf"{shard.name}: record 1 at byte {second}: .*{says}") as raised:
        next(read)
    assert (raised.value.path, raised.value.record, raised.value.offset) == (shard, 1, second)
    losses = Losses()
    assert [e.steps for e in dataset.episodes(on_error="skip", losses=losses)] == kept
    assert losses.episodes == 3 - len(kept)
    assert shard.name in losses.reasons[0]


def test_a_length_that_is_wrong_but_well_signed(simple: tuple[Path, Path, list[int]], tools: Any) -> None:
    """The writer died, or the file was cut in the middle: the record would go past the end."""
    root, shard, (_, second, _) = simple
    data = shard.read_bytes()
    length = (10**12).to_bytes(8, "little")
    shard.write_bytes(data[:second] + length + tools.masked(length) + data[second + 12 :])
    with pytest.raises(CorruptRecord, match=f"record 1 at byte {second}: it is 1000000000016 bytes long"):
        list(RldsDataset.open(root).episodes())


@pytest.mark.parametrize("said", [2, 5])
def test_a_shard_with_another_number_of_records(said: int, simple: tuple[Path, Path, list[int]]) -> None:
    root, shard, _ = simple
    info = json.loads((root / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = [str(said)]
    (root / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match=rf"{shard.name} holds 3 records, dataset_info\.json says {said}"):
        list(RldsDataset.open(root).episodes())
    losses = Losses()
    assert len(list(RldsDataset.open(root).episodes(on_error="skip", losses=losses))) == 3
    assert losses.episodes == max(0, said - 3)


def test_features_that_do_not_fit(tmp_path: Path, tools: Any, write: Callable[..., Any]) -> None:
    specs = {"steps/action": tools.tensor((2,), "float32"), "steps/is_first": tools.tensor((), "bool")}
    flags = np.zeros(3, bool)
    bad = [
        {"steps/action": np.zeros(4, np.float32), "steps/is_first": flags},
        {"steps/action": np.zeros(5, np.float32), "steps/is_first": flags},
        {"steps/is_first": flags},
        {"steps/action": [b"a"] * 6, "steps/is_first": flags},
        {"steps/is_first": np.zeros(0, bool)},
    ]
    write(tmp_path, specs, bad)
    says = ("differ in their number of steps", r"5 numbers, which are no \(3, 2\)", "lacks the feature", "holds bytes")
    for episode, said in zip(RldsDataset.open(tmp_path).episodes(), (*says, "no steps|lacks"), strict=True):
        with pytest.raises(CorruptRecord, match=rf"record {episode.record} at byte {episode.offset}: .*({said})"):
            episode["steps/action"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(bit=st.integers(0, 8 * 200 - 1))
def test_no_flipped_bit_goes_unnoticed(bit: int, simple: tuple[Path, Path, list[int]]) -> None:
    root, shard, _ = simple
    whole = shard.read_bytes()
    bit %= 8 * len(whole)
    try:
        shard.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ (1 << bit % 8)]) + whole[bit // 8 + 1 :])
        with pytest.raises(CorruptRecord):
            list(RldsDataset.open(root).episodes())
    finally:
        shard.write_bytes(whole)


def test_the_real_sample(bridge_sample: Path) -> None:
    dataset = RldsDataset.open(bridge_sample)
    steps = 0
    for episode in dataset.episodes("train"):
        assert episode["steps/is_first"].tolist() == [True] + [False] * (episode.steps - 1)
        assert episode["steps/observation/image_0"].shape == (episode.steps, 64, 64, 3)
        steps += episode.steps
    assert (dataset.split("train").episodes, steps) == (25, 250)
    with pytest.raises(DatasetError, match="split val lacks 1 of 1 shards"):
        dataset.split("val")
