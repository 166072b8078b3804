"""Datasets of other writers: v2.1 in its real layout, which LeRobot's own converter takes, and v3 with videos."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from volar.datasets.episode import Episode
from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_format import load_info, read_episodes
from volar.datasets.lerobot_layout import IMAGE_TYPE, DatasetError, encode_image

FPS = 10
KEY = "observation.images.front"
NUMBERS = (0, 1, 2, 6, 4)
VECTORS = ("observation.state", "action")
INDICES = ("frame_index", "episode_index", "index", "task_index")


def film(number: int, steps: int) -> NDArray[np.uint8]:
    """A square that walks over a gradient: every frame differs, also after compression. (T, 64, 96, 3)"""
    frames = np.tile(np.linspace(0, 200, 96)[None, None, :, None], (steps, 64, 1, 3)).astype(np.uint8)
    for t in range(steps):
        frames[t, 8 * t : 8 * t + 8, 10 * number : 10 * number + 40] = (250, 20, 20 + 20 * t)
    return frames


def write_video(path: Path, frames: NDArray[np.uint8], first: int = 0) -> None:
    """`first`: the place of its first frame, in frames from the film's beginning."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=FPS, options={"g": "2", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for k, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = first + k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_v21(root: Path, episodes: list[Episode], dtype: str) -> None:
    """The layout of `lerobot_v21.py`, with two episodes in a chunk."""
    texts = sorted({e.instruction for e in episodes})
    start = 0
    lines: dict[str, list[dict[str, Any]]] = {"tasks": [{"task_index": i, "task": t} for i, t in enumerate(texts)]}
    lines |= {"episodes": [], "episodes_stats": []}
    for number, episode in enumerate(episodes):
        steps = len(episode)
        images = film(number, steps)
        columns: dict[str, Any] = {
            "observation.state": pa.array(list(episode.state), pa.list_(pa.float32(), 10)),
            "action": pa.array(list(episode.actions), pa.list_(pa.float32(), 7)),
            "timestamp": (np.arange(steps) / FPS).astype(np.float32),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, number),
            "index": np.arange(start, start + steps),
            "task_index": np.full(steps, texts.index(episode.instruction)),
        }
        if dtype == "image":
            columns[KEY] = pa.array([{"bytes": encode_image(i), "path": None} for i in images], IMAGE_TYPE)
        else:
            write_video(root / f"videos/chunk-{number // 2:03d}/{KEY}/episode_{number:06d}.mp4", images)
        path = root / f"data/chunk-{number // 2:03d}/episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        lines["episodes"].append({"episode_index": number, "tasks": [episode.instruction], "length": steps})
        one = {name: [0.0] for name in ("min", "max", "mean", "std")} | {"count": [steps]}
        lines["episodes_stats"].append({"episode_index": number, "stats": dict.fromkeys(VECTORS, one)})
        start += steps
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": [10], "names": None},
        "action": {"dtype": "float32", "shape": [7], "names": None},
        KEY: {"dtype": dtype, "shape": [3, 64, 96], "names": ["channels", "height", "width"]},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **{name: {"dtype": "int64", "shape": [1], "names": None} for name in INDICES},
    }
    info = {
        "codebase_version": "v2.1",
        "robot_type": "fr3",
        "total_episodes": len(episodes),
        "total_frames": start,
        "total_tasks": len(texts),
        "total_videos": len(episodes) if dtype == "video" else 0,
        "total_chunks": (len(episodes) + 1) // 2,
        "chunks_size": 2,
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    for name, entries in lines.items():
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.fixture(scope="module", params=["image", "video"])
def v21(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, episode: Callable[[int], Episode]
) -> Path:
    root: Path = tmp_path_factory.mktemp("v21") / "dataset"
    write_v21(root, [episode(n) for n in NUMBERS], request.param)
    return root


def test_v21_is_read_as_its_writer_meant_it(v21: Path, episode: Callable[[int], Episode]) -> None:
    found = list(read_episodes(v21))
    assert len(found) == len(NUMBERS)
    for i, (got, number) in enumerate(zip(found, NUMBERS, strict=True)):
        wanted = episode(number)
        np.testing.assert_array_equal(got.state, wanted.state)
        np.testing.assert_array_equal(got.actions, wanted.actions)
        assert got.instruction == wanted.instruction
        difference = np.abs(got.images["front"].astype(int) - film(i, len(wanted)))
        assert difference.max() == 0 if is_images(v21) else difference.mean() < 4


def test_v21_equals_the_v3_that_lerobot_makes_of_it(v21: Path, tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    root = shutil.copytree(v21, tmp_path / "converted")
    tiny: Any = 1e-6  # [MB], so that every episode gets a file, and files and their numbers matter
    convert_dataset("volar/test", root=root, push_to_hub=False, data_file_size_in_mb=tiny, video_file_size_in_mb=tiny)
    assert len(list((root / "data").glob("*/*.parquet"))) == len(NUMBERS)
    assert json.loads((root / "meta/info.json").read_text())["codebase_version"] == "v3.0"
    assert_same_datasets(v21, root)
    lerobot = LeRobotDataset("volar/test", root=root, video_backend="pyav")
    frames = [images for one in read_episodes(root) for images in one.images["front"]]
    for i in (0, 4, len(frames) - 1):
        seen = (lerobot[i][KEY].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(frames[i], seen)


def test_v21_is_cached_and_damage_is_named(v21: Path, tmp_path: Path) -> None:
    cache = FrameCache.build(v21, tmp_path / "cache")
    whole = list(read_episodes(v21))
    np.testing.assert_array_equal(cache.action, np.concatenate([e.actions for e in whole]))
    np.testing.assert_array_equal(cache.images["front"], np.concatenate([e.images["front"] for e in whole]))
    root = shutil.copytree(v21, tmp_path / "copy")
    name = "data/chunk-001/episode_000003.parquet" if is_images(v21) else f"chunk-001/{KEY}/episode_000003.mp4"
    damaged = next(root.rglob(name))
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(DatasetError, match="episode_000003"):
        list(read_episodes(root))
    damaged.unlink()
    with pytest.raises(DatasetError, match="episode_000003"):
        list(read_episodes(root))
    (root / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 3}\n')
    with pytest.raises(DatasetError, match=r"episodes\.jsonl cannot be read.*entry 1 lacks tasks"):
        load_info(root)


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory, episode: Callable[[int], Episode]) -> Path:
    """LeRobot's own, with one film. Read-only for tests."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("v3") / "dataset"
    features = {
        "observation.image": {"dtype": "video", "shape": (64, 96, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (10,), "names": None},
        "action": {"dtype": "float32", "shape": (7,), "names": None},
    }
    writer = LeRobotDataset.create("volar/test", FPS, features, root=root)
    for number, one in enumerate(map(episode, NUMBERS)):
        for t, image in enumerate(film(number, len(one))):
            values = {"observation.state": one.state[t], "action": one.actions[t], "task": one.instruction}
            writer.add_frame(values | {"observation.image": image})
        writer.save_episode()
    writer.finalize()
    assert len(list(root.rglob("*.mp4"))) == 1
    return root


def rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Each row of a Parquet file, with what `change` makes of it."""
    table = pq.read_table(path, partitioning=None)
    rows = [row | change(row) for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


@pytest.mark.parametrize("first", [15_001, 300_007])
def test_frames_late_in_a_film(v3: Path, tmp_path: Path, episode: Callable[[int], Episode], first: int) -> None:
    """As where many episodes share a file: 25 minutes and 8 hours, at which float32 knows 0.1 and 2 ms."""
    root = shutil.copytree(v3, tmp_path / "late")
    films = np.concatenate([film(number, len(episode(n))) for number, n in enumerate(NUMBERS)])
    write_video(next(root.rglob("*.mp4")), films, first)
    key = "videos/observation.image/from_timestamp"
    for path in (root / "meta/episodes").rglob("*.parquet"):
        rewrite(path, lambda row: {key: row[key] + first / FPS})
    found = np.concatenate([e.images["image"] for e in read_episodes(root)])
    difference = np.abs(found.astype(int) - films).mean(axis=(1, 2, 3))
    assert difference.max() < 6  # a neighbour's frame would be more


def test_tasks_are_known_by_their_number(v3: Path, tmp_path: Path, episode: Callable[[int], Episode]) -> None:
    """What is left when episodes were taken out: of the tasks 0, 1, 2 the last is number 5."""
    root = shutil.copytree(v3, tmp_path / "gaps")
    for path in (root / "meta/tasks.parquet", *(root / "data").rglob("*.parquet")):
        rewrite(path, lambda row: {"task_index": 5 if row["task_index"] == 2 else row["task_index"]})
    assert load_info(root).tasks[2:5] == ("", "", "")
    assert [e.instruction for e in read_episodes(root)] == [episode(n).instruction for n in NUMBERS]


@pytest.mark.parametrize("info", [{"is_depth_map": True}, {"video.is_depth_map": True}])
def test_depth_is_no_camera(v3: Path, tmp_path: Path, info: dict[str, bool]) -> None:
    root = shutil.copytree(v3, tmp_path / "depth")
    about = json.loads((root / "meta/info.json").read_text())
    about["features"]["observation.images.depth"] = about["features"]["observation.image"] | {"info": info}
    (root / "meta/info.json").write_text(json.dumps(about))
    assert load_info(root).cameras == {"image": (64, 96)}
    assert next(read_episodes(root)).images.keys() == {"image"}


def test_a_fractional_rate_stays_what_it_is(v3: Path, tmp_path: Path) -> None:
    root = shutil.copytree(v3, tmp_path / "film")
    info = json.loads((root / "meta/info.json").read_text()) | {"fps": 29.97}
    (root / "meta/info.json").write_text(json.dumps(info))
    assert load_info(root).fps == 29.97


def test_v3_with_several_films_in_a_file(v3: Path, episode: Callable[[int], Episode]) -> None:
    wanted = [episode(n) for n in NUMBERS]
    for number, (got, one) in enumerate(zip(read_episodes(v3), wanted, strict=True)):
        images = film(number, len(one)).astype(int)
        np.testing.assert_array_equal(got.actions, one.actions)
        assert np.abs(got.images["image"] - images).mean() < 6  # the codec's; a neighbour's frame would be
        for t in range(1, len(one)):
            assert (
                np.abs(got.images["image"][t] - images[t]).mean()
                < np.abs(got.images["image"][t] - images[t - 1]).mean()
            )


def is_images(root: Path) -> bool:
    return load_info(root).features[KEY]["dtype"] == "image"


def assert_same_datasets(a: Path, b: Path) -> None:
    for one, other in zip(read_episodes(a), read_episodes(b), strict=True):
        np.testing.assert_array_equal(one.images["front"], other.images["front"])
        np.testing.assert_array_equal(one.state, other.state)
        np.testing.assert_array_equal(one.actions, other.actions)
        assert (one.instruction, one.task, one.success) == (other.instruction, other.task, other.success)
