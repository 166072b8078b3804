"""What is wrong with the input or the disk is said in one line that names it, and nothing that was good is lost."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from volar.datasets.convert import ConvertConfig, convert
from volar.datasets.durable_file import DiskFull
from volar.datasets.frame_cache import FrameCache
from volar.datasets.inspect_dataset import InspectConfig, inspect_dataset
from volar.datasets.lerobot_format import load_info, read_episodes
from volar.datasets.lerobot_layout import DatasetError
from volar.robots.errors import VolarError


@pytest.fixture
def broken(tmp_path: Path, tools: Any) -> Callable[[dict[str, Any]], ConvertConfig]:
    """Three episodes of Bridge's form, of which the second has these values instead."""

    def make(changes: dict[str, Any]) -> ConvertConfig:
        records = [tools.bridge_record(n) for n in range(3)]
        records[1] |= changes
        tools.write_tfds(tmp_path / "in", tools.BRIDGE, records)
        return ConvertConfig("rlds", tmp_path / "in", tmp_path / "out", shard_episodes=2)

    return make


STEPS = 4  # of the second episode
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"steps/observation/state": np.full((STEPS, 7), np.nan, np.float32)}, "hold a non-finite value"),
    "infinite": ({"steps/action": np.full((STEPS, 7), np.inf, np.float32)}, "hold a non-finite value"),
    "not UTF-8": ({"steps/language_instruction": [b"put \xff\xfe"] * STEPS}, r"language_instruction.*no text in UTF-8"),
    "too few states": ({"steps/observation/state": np.zeros((STEPS - 1, 7), np.float32)}, "number of steps"),
    "one image less": ({"steps/observation/image_0": [b"x"] * (STEPS - 1)}, "number of steps"),
    "no image": ({"steps/observation/image_0": [b"\x89PNG"] * STEPS}, "an image of 4 bytes cannot be decoded"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_bad_episode_is_named_or_left_out(
    what: str, broken: Callable[[dict[str, Any]], ConvertConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    changes, says = WRONG[what]
    config = broken(changes)
    with pytest.raises(DatasetError, match=rf"train\.tfrecord-00000-of-00001: record 1 at byte \d+.*{says}"):
        convert(config)
    convert(replace(config, resume=True, on_error="skip"))
    assert "1 damaged episodes were left out" in capsys.readouterr().err
    assert [e.info["episode_id"] for e in read_episodes(config.output)] == [0, 2]


def test_images_of_another_size_are_refused_or_scaled(
    broken: Callable[[dict[str, Any]], ConvertConfig], tools: Any
) -> None:
    config = broken({})
    features = json.loads((config.path / "features.json").read_text())
    text = json.dumps(features).replace('["16", "24", "3"]', '["-1", "-1", "3"]')
    records = [tools.bridge_record(n) for n in range(3)]
    records[1]["steps/observation/image_0"] = [tools.png(np.full((10, 12, 3), 7, np.uint8))] * STEPS
    tools.write_tfds(config.path, tools.BRIDGE, records)
    (config.path / "features.json").write_text(text)
    with pytest.raises(DatasetError, match=r"record 1 at .*camera primary is uint8 \(10, 12, 3\), the contract uint8"):
        convert(config)
    convert(replace(config, image_size=8, overwrite=True))
    assert load_info(config.output).cameras["primary"] == (8, 8)


def test_names_that_are_no_text_do_not_cost_an_episode(broken: Callable[[dict[str, Any]], ConvertConfig]) -> None:
    convert(config := broken({"episode_metadata/file_path": [b"/data/\xff.npy"]}))
    assert len(list(read_episodes(config.output))) == 3


def test_lists_of_numbers_about_an_episode_are_kept(tmp_path: Path, tools: Any) -> None:
    specs = tools.BRIDGE | {"episode_metadata/marks": tools.sequence(tools.tensor((), "int64"))}
    marks = ([], [7], [4, 5, 6])
    records = [tools.bridge_record(n) | {"episode_metadata/marks": np.array(m, int)} for n, m in enumerate(marks)]
    tools.write_tfds(tmp_path / "in", specs, records)
    convert(config := ConvertConfig("rlds", tmp_path / "in", tmp_path / "out"))
    assert [e.info["marks"] for e in read_episodes(config.output)] == [[], 7, [4, 5, 6]]


def test_narrow_numbers_are_named(tmp_path: Path, tools: Any) -> None:
    """Actions without the gripper that this dataset's entry takes from the seventh column."""
    cameras = {"steps/observation/image": tools.image((16, 24, 3))}
    kept = {key: spec for key, spec in tools.BRIDGE.items() if "image_" not in key}
    record = {key: value for key, value in tools.bridge_record(0).items() if key in kept}
    record |= {"steps/observation/image": tools.bridge_record(0)["steps/observation/image_0"]}
    record |= {"steps/action": record["steps/action"][:, :6]}
    specs = kept | cameras | {"steps/action": tools.tensor((6,), "float32")}
    tools.write_tfds(tmp_path / "in", specs, [record], name="libero_spatial_no_noops")
    with pytest.raises(DatasetError, match=r"record 0 at byte 0: its numbers are not those of libero_spatial_no_noops"):
        convert(ConvertConfig("rlds", tmp_path / "in", tmp_path / "out"))
    with pytest.raises(DatasetError, match=r"record 0 at byte 0: its numbers are not"):
        inspect_dataset(InspectConfig(tmp_path / "in"))


def test_a_folder_with_none_of_the_cameras(
    broken: Callable[[dict[str, Any]], ConvertConfig], tmp_path: Path, tools: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for there, says in (("image_1", ""), ("", "none of the cameras .*image_0.*observations: .*/state")):
        kept = {key: spec for key, spec in tools.BRIDGE.items() if "image_" not in key or (there and there in key)}
        records = [{key: value for key, value in tools.bridge_record(0).items() if key in kept}]
        tools.write_tfds(tmp_path / f"in{there}", kept, records)
        config = ConvertConfig("rlds", tmp_path / f"in{there}", tmp_path / "out", overwrite=True)
        if there:
            convert(config)
            assert "camera wrist is not there: the source has no steps/observation/image_3" in capsys.readouterr().out
        else:
            with pytest.raises(DatasetError, match=says):
                convert(config)


def test_a_folder_without_its_descriptions(broken: Callable[[dict[str, Any]], ConvertConfig]) -> None:
    config = broken({})
    (config.path / "features.json").unlink()
    with pytest.raises(DatasetError, match=r"features\.json is missing"):
        convert(config)
    (config.path / "dataset_info.json").write_text(json.dumps({"name": "bridge_dataset", "splits": []}))
    (config.path / "features.json").write_text('{"featuresDict": {"features": {}}}')
    with pytest.raises(DatasetError, match="no steps"):
        convert(config)
    assert not config.output.exists()


def test_a_split_of_no_episode(tmp_path: Path, tools: Any) -> None:
    tools.write_tfds(tmp_path / "in", tools.BRIDGE, [], lengths=[0])
    with pytest.raises(VolarError, match="no episode"):
        convert(ConvertConfig("rlds", tmp_path / "in", tmp_path / "out"))
    with pytest.raises(VolarError, match="no episode"):
        inspect_dataset(InspectConfig(tmp_path / "in"))


def test_another_shard_size_does_not_go_on(broken: Callable[[dict[str, Any]], ConvertConfig]) -> None:
    convert(config := replace(broken({}), episodes=1))
    with pytest.raises(VolarError, match="begun with shard_episodes=2; give the same"):
        convert(replace(config, resume=True, shard_episodes=5))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"contract": "{}", "source": {}, "shard_episodes": 2}'])
def test_a_record_of_the_writer_that_is_damaged(text: str, broken: Callable[[dict[str, Any]], ConvertConfig]) -> None:
    convert(config := broken({}))
    (config.output / "meta/volar_writer.json").write_text(text)
    with pytest.raises(VolarError, match=r"volar_writer\.json|contract"):
        convert(replace(config, resume=True))


def rows(root: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path, partitioning=None)
    found = table.to_pylist()
    change(found)
    pq.write_table(pa.Table.from_pylist(found, table.schema), path)


def test_episodes_that_are_there_twice_or_empty(broken: Callable[[dict[str, Any]], ConvertConfig]) -> None:
    convert(config := broken({}))
    rows(config.output, lambda found: found[1].update(episode_index=0))
    with pytest.raises(DatasetError, match="meta has episode 0 more than once"):
        load_info(config.output)
    rows(config.output, lambda found: found[1].update(episode_index=1, length=0))
    with pytest.raises(DatasetError, match="episode 1 has no steps"):
        load_info(config.output)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fps": None}, "fps is None"),
        ({"features": []}, r"features is \[\]"),
        ({"features": {"action": {"dtype": "float32"}}}, "the features action have no dtype or no shape"),
        ({"total_episodes": "three"}, "total_episodes is 'three'"),
    ],
)
def test_an_info_of_another_form(
    change: dict[str, Any], says: str, broken: Callable[[dict[str, Any]], ConvertConfig]
) -> None:
    convert(config := broken({}))
    info = json.loads((config.output / "meta/info.json").read_text())
    (config.output / "meta/info.json").write_text(json.dumps(info | change))
    with pytest.raises(DatasetError, match=rf"info\.json cannot be read.*{says}"):
        load_info(config.output)


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
        for k, steps in enumerate((4, 0, 5)):
            demo = data.create_group(f"demo_{k}")
            demo["actions"] = np.zeros((steps, 7), np.float32)
            for name, size in (("ee_pos", 3), ("ee_ori", 3), ("gripper_states", 2)):
                demo[f"obs/{name}"] = np.zeros((steps, size), np.float32)
            for name in ("agentview_rgb", "eye_in_hand_rgb"):
                if (k, name) != (2, "eye_in_hand_rgb"):
                    demo[f"obs/{name}"] = np.full((steps, 8, 8, 3), 9, np.uint8)
    return path


def test_demonstrations_that_are_empty_or_lack_a_camera(demos: Path, tmp_path: Path) -> None:
    config = ConvertConfig("hdf5", demos, tmp_path / "out")
    with pytest.raises(DatasetError, match=r"demos\.hdf5: demo_1 has no steps"):
        convert(config)
    convert(replace(config, resume=True, on_error="skip"))
    assert [(e.info["demo"], e.missing_cameras) for e in read_episodes(config.output)] == [
        ("demo_0", ()),
        ("demo_2", ("wrist",)),
    ]


def test_attributes_and_groups_of_another_form(demos: Path, tmp_path: Path) -> None:
    config = ConvertConfig("hdf5", demos, tmp_path / "out", on_error="skip")
    with h5py.File(demos, "r+") as file:
        file["data"].attrs["problem_info"] = b"\xff{"
    with pytest.raises(DatasetError, match="the attribute problem_info of data is no JSON"):
        convert(replace(config, on_error="raise"))
    with h5py.File(demos, "r+") as file:
        del file["data/demo_0/obs"]
    with pytest.raises(DatasetError, match=r"observations of demo_0 must have ee_pos.*there are: none"):
        convert(replace(config, dataset="libero", overwrite=True))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_cut_hdf5_file(share: float, demos: Path, tmp_path: Path) -> None:
    os.truncate(demos, int(share * demos.stat().st_size))
    with pytest.raises(DatasetError, match=r"demos\.hdf5"):
        convert(ConvertConfig("hdf5", demos, tmp_path / "out"))


def test_a_flipped_bit_of_a_number_is_noticed(broken: Callable[[dict[str, Any]], ConvertConfig]) -> None:
    """Any bits are a float: only the checksum of its page can say that it is another one."""
    convert(config := broken({}))
    path = config.output / "data/chunk-000/file-000.parquet"
    number = next(read_episodes(config.output)).state[1, 2:5].tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(number)] ^= 4
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"file-000\.parquet cannot be read"):
        list(read_episodes(config.output))


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 200 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root only, where that is allowed")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("images", ["images", "video"])
def test_a_full_disk_is_said_and_what_was_complete_goes_on(
    images: Any, little_disk: Path, tmp_path: Path, tools: Any
) -> None:
    records = [tools.bridge_record(n) for n in range(24)]
    tools.write_tfds(tmp_path / "in", tools.BRIDGE, records)
    config = ConvertConfig("rlds", tmp_path / "in", little_disk / "out", images=images, shard_episodes=2)
    with pytest.raises(DiskFull, match=r"no space left to write .*resume=true"):
        convert(config)
    assert not list(little_disk.rglob("*.tmp"))
    complete = {p: p.read_bytes() for p in little_disk.rglob("data/*/*")}
    assert complete
    with pytest.raises(DatasetError, match="was not finished"):
        load_info(config.output)
    subprocess.run(["mount", "-o", "remount,size=20m", str(little_disk)], check=True)
    convert(replace(config, resume=True))
    assert all(path.read_bytes() == data for path, data in complete.items())
    convert(whole := replace(config, output=tmp_path / "whole"))
    for path in (path for path in whole.output.rglob("*.*") if path.is_file()):
        assert path.read_bytes() == (config.output / path.relative_to(whole.output)).read_bytes(), path


def test_frames_on_a_full_disk_are_refused_before_they_are_decoded(
    little_disk: Path, broken: Callable[[dict[str, Any]], ConvertConfig]
) -> None:
    convert(config := broken({}))
    with pytest.raises(DiskFull, match=rf"decoded, {config.output} takes 0\.00 GB; {little_disk}/cache has"):
        FrameCache.build(config.output, little_disk / "cache")
    assert list(little_disk.iterdir()) == []


def test_processes_that_want_a_cache_at_once_share_it(broken: Callable[[dict[str, Any]], ConvertConfig]) -> None:
    convert(config := broken({}))
    cache = config.output / ".volar_cache"
    (cache / "killed.tmp").mkdir(parents=True)
    code = "import sys; from pathlib import Path; from volar.datasets.frame_cache import FrameCache as F; "
    code += "print(len(F.build(Path(sys.argv[1]))))"
    command = [sys.executable, "-c", code, str(config.output)]

    def run(_: int) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(run, range(3))) == {f"{load_info(config.output).frames}\n"}
    assert len(list(cache.iterdir())) == 1
