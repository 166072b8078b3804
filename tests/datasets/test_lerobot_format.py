"""What is written is what LeRobot and `read_episodes` read; what is not a dataset is refused with a reason."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from volar.datasets.choose_frames import Form, choose_frames
from volar.datasets.episode import Episode
from volar.datasets.episode_writer import EpisodeWriter
from volar.datasets.lerobot_format import load_contract, load_info, read_episodes
from volar.datasets.lerobot_layout import DatasetError, decode_image, decode_stream, encode_episode, encode_image
from volar.robots.action_space import end_effector_delta
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.errors import VolarError


def test_lerobot_reads_every_frame_exactly(dataset: Path, episode: Callable[[int], Episode]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    lerobot = LeRobotDataset("volar/test", root=dataset)
    episodes = [episode(i) for i in range(11)]
    assert lerobot.num_episodes == 11
    assert len(lerobot) == sum(len(e) for e in episodes)
    assert lerobot.fps == 10
    assert lerobot.meta.robot_type == "fr3"
    i = 0
    for number, wanted in enumerate(episodes):
        for step in range(len(wanted)):
            frame = lerobot[i]
            for camera, images in wanted.images.items():
                got = (frame[f"observation.images.{camera}"].numpy() * 255).round().astype(np.uint8)
                np.testing.assert_array_equal(got.transpose(1, 2, 0), images[step])
            np.testing.assert_array_equal(frame["observation.state"].numpy(), wanted.state[step])
            np.testing.assert_array_equal(frame["action"].numpy(), wanted.actions[step])
            points = np.where(frame["annotation.points_valid"].numpy(), frame["annotation.points"].numpy(), np.nan)
            np.testing.assert_array_equal(points.reshape(3, 5), wanted.points[step])
            last = step == len(wanted) - 1
            assert frame["next.done"].item() == last
            assert frame["next.success"].item() == (last and wanted.success) == bool(frame["next.reward"].item())
            assert frame["task"] == wanted.instruction
            assert (frame["index"].item(), frame["episode_index"].item()) == (i, number)
            assert (frame["frame_index"].item(), frame["timestamp"].item()) == (step, pytest.approx(step / 10))
            i += 1


@pytest.mark.parametrize("form", ["decoded", "encoded"])
def test_labels_from_before_the_hand_had_one(dataset: Path, tmp_path: Path, form: Form) -> None:
    """The points that there are; a place for the hand, which nobody has labelled."""
    now, old = (shutil.copytree(dataset, tmp_path / name) for name in ("now", "old"))  # caches are built in them
    info = json.loads((old / "meta/info.json").read_text())
    for path in old.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        for name in ("annotation.points", "annotation.points_valid"):
            info["features"][name]["shape"] = [10]
            kept = [row[:10] for row in table.column(name).to_pylist()]
            column = pa.array(kept, pa.list_(table.column(name).type.value_type, 10))
            table = table.set_column(table.column_names.index(name), name, column)
        pq.write_table(table, path)
    (old / "meta/info.json").write_text(json.dumps(info))
    new, found = (choose_frames(root, form).points for root in (now, old))
    np.testing.assert_array_equal(found[:, :2], new[:, :2])
    assert np.isfinite(new[:, 2]).any()
    assert np.isnan(found[:, 2]).all()
    with pytest.raises(DatasetError, match=r"another version: annotation\.points, annotation\.points_valid"):
        EpisodeWriter.resume(old)


def test_lerobot_queries_chunks_of_actions(dataset: Path, episode: Callable[[int], Episode]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    lerobot = LeRobotDataset("volar/test", root=dataset, delta_timestamps={"action": [0.0, 0.1, 0.2, 0.3]})
    first = episode(0)  # 3 steps
    frame = lerobot[1]
    np.testing.assert_array_equal(frame["action"].numpy(), first.actions[[1, 2, 2, 2]])
    assert frame["action_is_pad"].tolist() == [False, False, True, True]


def test_lerobot_statistics_are_those_of_all_frames(dataset: Path, episode: Callable[[int], Episode]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    stats = LeRobotDataset("volar/test", root=dataset).meta.stats
    actions = np.concatenate([episode(i).actions for i in range(11)]).astype(np.float64)
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(actions, 0.99, axis=0))
    np.testing.assert_allclose(stats["action"]["std"], actions.std(axis=0))
    assert stats["action"]["count"] == [len(actions)]
    pixels = np.concatenate([episode(i).images["front"] for i in range(11)]).reshape(-1, 3) / 255.0
    assert stats["observation.images.front"]["mean"].shape == (3, 1, 1)
    np.testing.assert_allclose(stats["observation.images.front"]["mean"].ravel(), pixels.mean(axis=0))
    np.testing.assert_allclose(
        stats["observation.images.front"]["q10"].ravel(), np.quantile(pixels, 0.1, axis=0), atol=4e-3
    )


def test_read_episodes_returns_what_was_written(
    dataset: Path, episode: Callable[[int], Episode], assert_same: Callable[[Episode, Episode], None]
) -> None:
    found = list(read_episodes(dataset))
    assert len(found) == 11
    for number, got in enumerate(found):
        assert_same(got, episode(number))


def test_reads_a_dataset_that_lerobot_wrote(tmp_path: Path, episode: Callable[[int], Episode]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root, wanted = tmp_path / "lerobot", [episode(1), episode(2)]
    features = {
        "observation.images.front": {"dtype": "image", "shape": (16, 24, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (10,), "names": None},
        "action": {"dtype": "float32", "shape": (7,), "names": None},
    }
    writer = LeRobotDataset.create("volar/test", 10, features, root=root, use_videos=False)
    for one in wanted:
        for i in range(len(one)):
            values = {"observation.state": one.state[i], "action": one.actions[i], "task": one.instruction}
            writer.add_frame(values | {"observation.images.front": one.images["front"][i]})
        writer.save_episode()
    writer.finalize()
    for got, one in zip(read_episodes(root), wanted, strict=True):
        np.testing.assert_array_equal(got.images["front"], one.images["front"])
        np.testing.assert_array_equal(got.actions, one.actions)
        assert got.instruction == got.task == one.instruction
        assert np.isnan(got.points).all()
        assert got.seed == -1
    with pytest.raises(DatasetError, match="volar_contract"):
        load_contract(root)


def test_contract_comes_with_statistics(dataset: Path, contract: PolicyContract) -> None:
    loaded = load_contract(dataset, wanted=contract)
    assert loaded.statistics.keys() == {"action", "observation.state"}
    assert loaded.statistics["action"].mask == (True,) * 6 + (False,)
    assert all(loaded.statistics["observation.state"].mask)


def test_contract_that_does_not_fit_lists_every_field(dataset: Path, contract: PolicyContract) -> None:
    cameras = (CameraSpec("front", 64, 64), contract.cameras[1])
    other = replace(contract, robot="ur5e", cameras=cameras, action=end_effector_delta(rate_hz=20))
    with pytest.raises(DatasetError) as caught:
        load_contract(dataset, wanted=other)
    for name in ("robot", "cameras", "action.rate_hz"):
        assert name in str(caught.value)


def test_a_contract_of_another_dataset_is_refused(dataset: Path, tmp_path: Path, contract: PolicyContract) -> None:
    root = shutil.copytree(dataset, tmp_path / "copy")
    wrist = contract.cameras[1]
    replace(contract, cameras=(wrist,)).save(root / "meta/volar_contract.json")
    assert load_contract(root).cameras == (wrist,)  # not all of its cameras need be wanted
    other = replace(
        contract,
        action=replace(contract.action, rate_hz=20),
        state_names=contract.state_names[1:],
        state_units=contract.state_units[1:],
        cameras=(CameraSpec("front", 16, 24), wrist, CameraSpec("side", 8, 8)),
    )
    other.save(root / "meta/volar_contract.json")
    says = r"front.* \(24, 16\), .*\(16, 24\); .*side.* \(8, 8\), .* None; states 9, .* 10; frames .* 20, .* 10"
    with pytest.raises(DatasetError, match=says):
        load_contract(root)


def test_a_folder_that_is_no_dataset_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"meta/info\.json"):
        load_info(tmp_path)


@pytest.mark.parametrize("file", ["meta/tasks.parquet", "data/chunk-000/file-001.parquet"])
def test_a_missing_file_is_named(dataset: Path, tmp_path: Path, file: str) -> None:
    root = shutil.copytree(dataset, tmp_path / "copy")
    (root / file).unlink()
    with pytest.raises(DatasetError, match=file):
        list(read_episodes(root))


@pytest.mark.parametrize(
    "file",
    [
        "meta/info.json",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-001.parquet",
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_file_cut_short_is_named(dataset: Path, tmp_path: Path, file: str, share: float) -> None:
    root = shutil.copytree(dataset, tmp_path / "copy")
    os.truncate(root / file, int(share * (root / file).stat().st_size))
    with pytest.raises(DatasetError, match=file):
        list(read_episodes(root))


def test_another_version_is_named(dataset: Path, tmp_path: Path) -> None:
    root = shutil.copytree(dataset, tmp_path / "copy")
    info = json.loads((root / "meta/info.json").read_text()) | {"codebase_version": "v1.6"}
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match=r"v1\.6; this reads v3\.0, v2\.1"):
        load_info(root)


def test_an_episode_that_does_not_fit_names_all_that_is_wrong(
    contract: PolicyContract, episode: Callable[[int], Episode]
) -> None:
    good = episode(0)
    wrong = replace(good, actions=good.actions[:, :6], images={"front": good.images["front"][:, :8]})
    with pytest.raises(VolarError, match=r"actions.*camera front.*cameras"):
        encode_episode(wrong, contract)


def test_a_fractional_rate_is_refused(tmp_path: Path, contract: PolicyContract) -> None:
    with pytest.raises(VolarError, match=r"12\.5"):
        EpisodeWriter.create(tmp_path / "out", replace(contract, action=end_effector_delta(rate_hz=12.5)))


def test_images_survive_and_broken_ones_do_not() -> None:
    image = np.random.default_rng(0).integers(0, 256, (33, 17, 3), np.uint8)
    data = encode_image(image)
    np.testing.assert_array_equal(decode_image(data), image)
    for bad in (b"", data[:20], b"no image"):
        with pytest.raises(DatasetError, match="decoded"):
            decode_image(bad)
    with pytest.raises(DatasetError, match="no encoded episode"):
        decode_stream(b"other bytes")
