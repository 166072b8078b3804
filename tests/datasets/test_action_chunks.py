"""Samples are those of the episodes, chunks stay inside them, the order is a function of seed and step."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volar.datasets.action_chunks import ActionChunks, ShuffledIndices
from volar.datasets.choose_frames import choose_frames, free_memory
from volar.datasets.durable_file import DiskFull, OutputExists, ReadOnly
from volar.datasets.encoded_frames import EncodedImages, encoded_bytes, encoded_frames
from volar.datasets.episode import Episode
from volar.datasets.episode_writer import EpisodeWriter
from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_format import load_contract, load_info, read_episodes
from volar.datasets.lerobot_layout import DatasetError, encode_image
from volar.robots.contract import PolicyContract
from volar.robots.errors import Unknown, VolarError


@pytest.fixture(scope="module")
def cache(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    return FrameCache.build(dataset, tmp_path_factory.mktemp("cache"))


def in_memory(lengths: list[int]) -> FrameCache:
    """Frames whose action is their own index; one tiny camera."""
    n = sum(lengths)
    return FrameCache.from_arrays(
        images={"front": np.arange(n, dtype=np.uint8).repeat(3).reshape(n, 1, 1, 3)},
        state=np.zeros((n, 2), np.float32),
        action=np.arange(n, dtype=np.float32)[:, None],
        points=np.full((n, 3, 5), np.nan, np.float32),
        instruction_id=np.zeros(n, np.int32),
        instructions=["go"],
        episode_end=np.repeat(np.cumsum(lengths), lengths),
    )


def test_the_cache_holds_every_frame(cache: FrameCache, episode: Callable[[int], Episode]) -> None:
    start = 0
    for wanted in map(episode, range(11)):
        place = slice(start, start + len(wanted))
        for camera, images in wanted.images.items():
            np.testing.assert_array_equal(cache.images[camera][place], images)
        np.testing.assert_array_equal(cache.state[place], wanted.state)
        np.testing.assert_array_equal(cache.action[place], wanted.actions)
        np.testing.assert_array_equal(cache.points[place], wanted.points)
        assert (cache.episode_end[place] == start + len(wanted)).all()
        assert {cache.instructions[i] for i in cache.instruction_id[place]} == {wanted.instruction}
        start += len(wanted)
    assert len(cache) == start
    with pytest.raises(ValueError, match="read-only"):
        cache.images["front"][0] = 0
    with pytest.raises(ValueError, match="read-only"):
        cache.action[0] = 0


def test_the_cache_is_built_once_and_never_stale(
    tmp_path: Path, contract: PolicyContract, episode: Callable[[int], Episode]
) -> None:
    root, calls = tmp_path / "out", list[tuple[int, int]]()
    writer = EpisodeWriter.create(root, contract)
    writer.append(episode(0))
    writer.finalize()
    for _ in range(2):
        assert len(FrameCache.build(root, progress=lambda done, total: calls.append((done, total)))) == 3
    assert calls == [(3, 3)]
    writer = EpisodeWriter.resume(root)
    writer.append(episode(1))
    writer.finalize()
    assert len(FrameCache.build(root)) == 3 + 4
    assert len(list((root / ".volar_cache").iterdir())) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_the_cache_does_not_depend_on_its_workers(
    dataset: Path, cache: FrameCache, tmp_path: Path, workers: int
) -> None:
    other = FrameCache.build(dataset, tmp_path, workers=workers)
    np.testing.assert_array_equal(other.images["wrist"], cache.images["wrist"])
    np.testing.assert_array_equal(other.points, cache.points)


def test_a_damaged_dataset_leaves_no_cache(dataset: Path, tmp_path: Path) -> None:
    root = shutil.copytree(dataset, tmp_path / "copy")
    file = root / "data/chunk-000/file-002.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(DatasetError, match="file-002"):
        FrameCache.build(root, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    with pytest.raises(DatasetError, match="no complete frame cache"):
        FrameCache.open(tmp_path / "cache")


def test_encoded_frames_are_those_of_the_cache(dataset: Path, cache: FrameCache) -> None:
    encoded = encoded_frames(dataset)
    for name in ("state", "action", "points", "episode_end", "instruction_id"):
        np.testing.assert_array_equal(getattr(encoded, name), getattr(cache, name))
    a, b = (ActionChunks(frames, 4).batch(np.array([30, 2, 2, 17])) for frames in (encoded, cache))
    for camera in cache.images:
        np.testing.assert_array_equal(a.images[camera], b.images[camera])
        assert encoded.images[camera].shape == cache.images[camera].shape
        np.testing.assert_array_equal(encoded.images[camera][-1], cache.images[camera][-1])
    assert a.instructions == b.instructions
    with pytest.raises(IndexError):
        encoded.images["front"][np.array([len(encoded)])]


def test_frames_are_decoded_where_there_is_room_and_stay_encoded_where_not(dataset: Path, tmp_path: Path) -> None:
    root, said = shutil.copytree(dataset, tmp_path / "copy"), list[str]()
    encoded = choose_frames(root, disk_reserve=2**60, say=said.append)
    assert isinstance(encoded.images["front"], EncodedImages)
    assert said[0].startswith(f"decoded, {root} takes")
    assert not (root / ".volar_cache").exists()
    with pytest.raises(DiskFull, match=r"takes 0\.00 GB.*free"):
        choose_frames(root, "decoded", disk_reserve=2**60)
    with pytest.raises(DatasetError, match=r"Neither do its encoded images fit in memory.*image_size="):
        choose_frames(root, disk_reserve=2**60, memory=1000)
    assert not isinstance(choose_frames(root, say=said.append).images["front"], EncodedImages)
    assert isinstance(choose_frames(root, "encoded").images["front"], EncodedImages)
    # What is built is used, whatever is free now.
    assert not isinstance(choose_frames(root, disk_reserve=2**60).images["front"], EncodedImages)
    assert len(said) == 1
    with pytest.raises(Unknown, match="did you mean decoded"):
        choose_frames(root, "decode")  # type: ignore[arg-type]
    sizes = sum(len(encode_image(x)) for x in read_episodes(root) for x in x.images["front"])
    assert sizes < encoded_bytes(load_info(root)) < 4 * sizes


def test_processes_on_a_machine_share_its_memory(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(dataset, tmp_path / "copy")
    free = 3 * encoded_bytes(load_info(root))
    monkeypatch.setattr("volar.datasets.choose_frames.free_memory", lambda: free)
    choose_frames(root, disk_reserve=2**60)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(DatasetError, match="for each of 2 processes"):
        choose_frames(root, disk_reserve=2**60)


@pytest.fixture
def read_only(dataset: Path, tmp_path: Path) -> Iterator[Path]:
    """The dataset on a file system that cannot be written to."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root only, where that is allowed")
    shutil.copytree(dataset, place / "dataset")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    yield place / "dataset"
    subprocess.run(["umount", str(place)], check=True)


def test_frames_of_what_cannot_be_written_to_stay_encoded(read_only: Path, cache: FrameCache) -> None:
    said: list[str] = []
    encoded = choose_frames(read_only, disk_reserve=0, say=said.append)
    assert "Read-only file system. Its images stay encoded" in said[0]
    np.testing.assert_array_equal(encoded.images["front"][:], cache.images["front"])
    with pytest.raises(ReadOnly, match=r"\.volar_cache.* cannot be written"):
        choose_frames(read_only, "decoded", disk_reserve=0)


@pytest.mark.parametrize(
    ("cgroup", "limits", "wanted"),
    [
        ("0::/\n", {}, 8_000 * 1024),
        ("0::/\n", {"memory.max": "max\n"}, 8_000 * 1024),
        ("0::/user/one\n", {"user/memory.max": "5000\n", "user/one/memory.max": "max\n"}, 5000),
        ("1:cpu:/a\n4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "6000\n"}, 6000),
        ("4:memory:/docker/a\n", {"memory/memory.limit_in_bytes": "7000\n"}, 7000),  # seen from in a container
        ("0::/\n", {"memory.max": "9000000000\n"}, 8_000 * 1024),
    ],
)
def test_free_memory_is_what_can_be_had(tmp_path: Path, cgroup: str, limits: dict[str, str], wanted: int) -> None:
    """The kernel's files, written out."""
    meminfo = "MemTotal: 24684084 kB\nMemFree:            1000 kB\nMemAvailable:       8000 kB\nHugePages_Total:  0\n"
    for name, text in {
        "meminfo": meminfo,
        "self/cgroup": cgroup,
        **{f"groups/{k}": v for k, v in limits.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path, tmp_path / "groups") == wanted
    assert 0 < free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_generated_frames_are_saved_with_their_contract(tmp_path: Path, contract: PolicyContract) -> None:
    frames = in_memory([2, 3])
    frames.save(tmp_path / "scenes", contract)
    loaded = FrameCache.open(tmp_path / "scenes")
    np.testing.assert_array_equal(loaded.images["front"], frames.images["front"])
    np.testing.assert_array_equal(loaded.episode_end, frames.episode_end)
    assert loaded.instructions == ("go",)
    assert load_contract(tmp_path / "scenes") == contract
    with pytest.raises(OutputExists, match="overwrite=true"):
        frames.save(tmp_path / "scenes")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 12))
def test_chunks_never_leave_their_episode(lengths: list[int], chunk_length: int) -> None:
    chunks = ActionChunks(in_memory(lengths), chunk_length)
    batch = chunks.batch(np.arange(len(chunks)))
    i = 0
    for length, end in zip(lengths, np.cumsum(lengths), strict=True):
        for _ in range(length):
            wanted = [min(i + k, end - 1) for k in range(chunk_length)]
            assert batch.actions[i, :, 0].tolist() == wanted
            assert batch.action_mask[i].tolist() == [i + k < end for k in range(chunk_length)]
            i += 1


def test_a_batch_is_in_the_order_asked_for(cache: FrameCache) -> None:
    chunks = ActionChunks(cache, 4)
    indices = np.array([30, 2, 2, 17])
    batch = chunks.batch(indices)
    assert batch.images["front"].shape == (4, 16, 24, 3)
    assert batch.actions.shape == (4, 4, 7)
    for k, i in enumerate(indices):
        one = chunks[int(i)]
        np.testing.assert_array_equal(batch.images["wrist"][k], one.images["wrist"][0])
        np.testing.assert_array_equal(batch.actions[k], one.actions[0])
        np.testing.assert_array_equal(batch.points[k], one.points[0])
        assert batch.instructions[k] == one.instructions[0] == cache.instructions[batch.instruction_id[k]]
    assert type(batch.images["front"]) is np.ndarray
    batch.images["front"][0] = 0  # a copy: the caller may change it
    with pytest.raises(IndexError):
        chunks[len(chunks)]
    with pytest.raises(ValueError, match="chunk_length"):
        ActionChunks(cache, 0)


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 2**31))
def test_every_epoch_is_a_permutation(n: int, batch_size: int, seed: int) -> None:
    order = ShuffledIndices(n, batch_size, seed)
    flat = np.concatenate(list(islice(order, -(-3 * n // batch_size))))
    for epoch in range(3):
        assert sorted(flat[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(st.integers(0, 40), st.integers(0, 10))
def test_a_resumed_order_goes_on_exactly(stop: int, seed: int) -> None:
    order = ShuffledIndices(23, 7, seed)
    for _ in islice(order, stop):
        pass
    resumed = ShuffledIndices(23, 7, seed)
    resumed.load_state_dict(order.state_dict())
    for a, b in zip(islice(order, 9), islice(resumed, 9), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(VolarError, match="n was 23, is 24"):
        ShuffledIndices(24, 7, seed).load_state_dict(order.state_dict())


def test_orders_differ_between_seeds_and_epochs() -> None:
    a, b = ShuffledIndices(100, 100, 0), ShuffledIndices(100, 100, 1)
    assert not np.array_equal(a.at(0), b.at(0))
    assert not np.array_equal(a.at(0), a.at(1))


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    good = in_memory([2, 3])
    with pytest.raises(ValueError, match="state has 4 frames"):
        FrameCache(
            good.images, good.state[:4], good.action, good.points, good.episode_end, good.instruction_id, ("go",)
        )
    with pytest.raises(ValueError, match="points"):
        FrameCache(
            good.images, good.state, good.action, good.points[:, :1], good.episode_end, good.instruction_id, ("go",)
        )
    with pytest.raises(ValueError, match="episode_end"):
        FrameCache(
            good.images, good.state, good.action, good.points, good.episode_end - 1, good.instruction_id, ("go",)
        )
