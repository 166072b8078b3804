"""Episodes of many frames: the same on the disk and back, and few of the frames in memory at a time."""

import io
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from volar.datasets.convert import ConvertConfig, convert
from volar.datasets.episode import Episode
from volar.datasets.episode_writer import EpisodeWriter
from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_format import load_info, read_episodes
from volar.datasets.lerobot_layout import ROWS, DatasetError, encode_frames
from volar.robots.contract import CameraSpec, PolicyContract

CAMERAS = (CameraSpec("front", 8, 6), CameraSpec("wrist", 4, 4))
LENGTHS = (2 * ROWS + 5, 3, ROWS, ROWS + 1)


@pytest.fixture
def small(contract: PolicyContract) -> PolicyContract:
    return replace(contract, cameras=CAMERAS)


def long_episode(number: int) -> Episode:
    steps, rng = LENGTHS[number], np.random.default_rng(number)
    return Episode(
        images={c.name: rng.integers(0, 256, (steps, c.height, c.width, 3), np.uint8) for c in CAMERAS},
        state=rng.normal(size=(steps, 10)).astype(np.float32),
        actions=rng.normal(size=(steps, 7)).astype(np.float32),
        points=np.full((steps, 3, 5), np.nan, np.float32),
        instruction=f"go {number % 2}",
        task="go",
        success=True,
    )


def written(root: Path, contract: PolicyContract, flushes: tuple[int, ...] = ()) -> dict[str, bytes]:
    writer = EpisodeWriter.create(root, contract, shard_episodes=3)
    for number in range(len(LENGTHS)):
        if number in flushes:
            writer.flush()
            writer = EpisodeWriter.resume(root)
        writer.append(long_episode(number))
    writer.finalize()
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.*")) if p.is_file()}


def test_they_are_cut_into_row_groups_and_put_together_again(
    tmp_path: Path, small: PolicyContract, assert_same: Callable[[Episode, Episode], None]
) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path / "out"
    whole = written(root, small)
    file = pq.ParquetFile(root / "data/chunk-000/file-000.parquet")
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [ROWS, ROWS, 5, 3, ROWS]
    for number, episode in enumerate(read_episodes(root)):
        assert_same(episode, long_episode(number))
    images = np.concatenate([long_episode(k).images["wrist"] for k in range(len(LENGTHS))])
    np.testing.assert_array_equal(FrameCache.build(root, tmp_path / "cache").images["wrist"], images)
    sample = LeRobotDataset("volar/long", root=root)[ROWS + 7]["observation.images.wrist"]
    np.testing.assert_array_equal((sample.numpy() * 255).round().transpose(1, 2, 0), images[ROWS + 7])
    assert written(tmp_path / "resumed", small, flushes=(1, 2, 3)) == whole


def test_few_frames_are_held_at_a_time(small: PolicyContract) -> None:
    steps, alive, most = 3 * ROWS, 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def frames(camera: CameraSpec) -> Iterator[np.ndarray]:
        nonlocal alive, most
        for k in range(steps):
            frame = np.full((camera.height, camera.width, 3), k % 256, np.uint8)
            weakref.finalize(frame, gone)
            alive += 1
            most = max(most, alive)
            yield frame

    episode = long_episode(0)
    episode = replace(
        episode,
        images={},
        **{name: getattr(episode, name)[:1].repeat(steps, 0) for name in ("state", "actions", "points")},
    )
    encoded = encode_frames(episode, {c.name: frames(c) for c in CAMERAS}, small, io.BytesIO())
    assert sum(batch.num_rows for batch in encoded.batches()) == steps
    assert most < 20


@pytest.mark.parametrize("change", [-1, 1])
def test_images_that_are_not_one_a_step_are_refused(small: PolicyContract, change: int) -> None:
    episode = long_episode(1)
    images: dict[str, Any] = {**episode.images, "wrist": np.zeros((len(episode) + change, 4, 4, 3), np.uint8)}
    says = rf"camera wrist has {len(episode) + change} images, the episode {len(episode)} steps"
    with pytest.raises(DatasetError, match=says):
        encode_frames(episode, images, small, io.BytesIO())


def test_conversion_of_what_does_not_fit_in_memory_is_the_same(
    tmp_path: Path, small: PolicyContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "in", small)
    config = ConvertConfig("lerobot", tmp_path / "in", tmp_path / "out", shard_episodes=2)
    convert(config)
    monkeypatch.setattr("volar.datasets.encode_source.SPOOLED_BYTES", 1)  # every episode on the disk
    convert(replace(config, output=tmp_path / "spooled"))
    for a, b in ((tmp_path / "out", tmp_path / "spooled"),):
        for path in a.rglob("*.parquet"):
            assert path.read_bytes() == (b / path.relative_to(a)).read_bytes()
    assert load_info(tmp_path / "out").frames == sum(LENGTHS)
    found = list(read_episodes(tmp_path / "out"))
    np.testing.assert_array_equal(found[0].images["front"], long_episode(0).images["front"])
