"""volar-convert: nothing is lost on the way, a kill costs nothing, and what cannot be kept is said."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.datasets.convert import ConvertConfig, convert
from volar.datasets.episode import Episode
from volar.datasets.episode_writer import EpisodeWriter
from volar.datasets.lerobot_format import load_contract, load_info, read_episodes
from volar.datasets.lerobot_layout import DatasetError
from volar.datasets.rlds import RldsDataset
from volar.robots.errors import UsageError, VolarError

ROLES = {"primary": "image_0", "secondary": "image_1", "tertiary": "image_2", "wrist": "image_3"}


@pytest.fixture
def config(bridge_folder: Path, tmp_path: Path) -> ConvertConfig:
    return ConvertConfig("rlds", bridge_folder, tmp_path / "out", workers=2, shard_episodes=3)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def same_as_source(episode: Episode, arrays: dict[str, Any]) -> None:
    np.testing.assert_array_equal(episode.actions, arrays["action"])
    np.testing.assert_array_equal(episode.state, arrays["state"])
    assert episode.instruction == arrays["instruction"]
    for role, key in ROLES.items():
        np.testing.assert_array_equal(episode.images[role], arrays[key])


def test_nothing_is_lost_from_rlds_to_episodes(config: ConvertConfig, tools: Any) -> None:
    convert(config)
    found = list(read_episodes(config.output))
    assert len(found) == 7
    for number, episode in enumerate(found):
        same_as_source(episode, tools.bridge_arrays(number))
        assert episode.info["episode_id"] == number
        assert episode.info["missing_cameras"] == (["wrist"] if number % 2 else [])
    contract = load_contract(config.output)
    assert (contract.robot, contract.action.rate_hz, contract.action.rotation) == ("widowx", 5.0, "euler_xyz")
    actions = np.concatenate([e.actions for e in found])
    np.testing.assert_array_equal(contract.statistics["action"].max, actions.max(axis=0))


def test_lerobot_itself_reads_it(config: ConvertConfig, tools: Any) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    convert(config)
    dataset = LeRobotDataset("volar/bridge", root=config.output)
    assert (dataset.num_episodes, dataset.fps) == (7, 5)
    index = 0
    for number in range(7):
        arrays = tools.bridge_arrays(number)
        for step in range(len(arrays["action"])):
            sample = dataset[index]
            np.testing.assert_array_equal(sample["action"].numpy(), arrays["action"][step])
            np.testing.assert_array_equal(sample["observation.state"].numpy(), arrays["state"][step])
            assert sample["task"] == arrays["instruction"]
            image = (sample["observation.images.primary"].numpy() * 255).round().astype(np.uint8)
            np.testing.assert_array_equal(image.transpose(1, 2, 0), arrays["image_0"][step])
            index += 1
    assert index == len(dataset)


def smooth(folder: Path, tools: Any, count: int = 4) -> np.ndarray:
    """A folder of one-camera episodes whose images a codec keeps well; returns the first frames, (count, ...)."""
    specs = {key: spec for key, spec in tools.BRIDGE.items() if "image_" not in key}
    specs["steps/observation/image_0"] = tools.image((32, 48, 3))
    row, column = np.mgrid[0:32, 0:48]
    records, first = [], []
    for number in range(count):
        record = {k: v for k, v in tools.bridge_record(number).items() if "image_" not in k}
        steps = len(record["steps/is_first"])
        images = [
            np.stack([row * 4, column * 4, row + column + 5 * (number + t)], 2).astype(np.uint8) for t in range(steps)
        ]
        record["steps/observation/image_0"] = [tools.png(x) for x in images]
        records.append(record)
        first.append(images[0])
    tools.write_tfds(folder, specs, records)
    return np.stack(first)


def test_video_keeps_numbers_exactly_and_images_closely(tmp_path: Path, tools: Any) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    first = smooth(tmp_path / "in", tools)
    config = ConvertConfig("rlds", tmp_path / "in", tmp_path / "out", images="video", shard_episodes=2)
    convert(config)
    dataset = LeRobotDataset("volar/video", root=config.output, video_backend="pyav")
    starts = np.cumsum([0] + [len(tools.bridge_arrays(n)["action"]) for n in range(3)])
    for number, (episode, start) in enumerate(zip(read_episodes(config.output), starts.tolist(), strict=True)):
        arrays = tools.bridge_arrays(number)
        np.testing.assert_array_equal(episode.actions, arrays["action"])
        assert np.abs(episode.images["primary"][0].astype(int) - first[number]).mean() < 4
        sample = dataset[start]
        image = (sample["observation.images.primary"].numpy() * 255).transpose(1, 2, 0)
        assert np.abs(image - first[number]).mean() < 4
        np.testing.assert_array_equal(sample["action"].numpy(), arrays["action"][0])
    assert load_info(config.output).features["observation.images.primary"]["dtype"] == "video"
    before = files(config.output)
    convert(replace(config, resume=True))  # nothing left to do
    assert files(config.output) == before


def test_video_of_an_odd_size_is_refused(config: ConvertConfig, tmp_path: Path, tools: Any) -> None:
    with pytest.raises(VolarError, match=r"camera primary is 25 x 25: video needs even sizes"):
        convert(replace(config, images="video", image_size=25))


# Dies at its N-th durable file, so at every kind of place in between: after a video, after data without its rows, in
# the middle of finalize.
KILLED = """
import os, signal, sys
from volar.datasets.convert import main
from volar.datasets.durable_file import DurableFile
written, whole = [0], DurableFile.commit
def commit(self):
    if written[0] == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
    written[0] += 1
    whole(self)
DurableFile.commit = commit
sys.argv[1:] = {words!r}
main()
"""


@pytest.mark.parametrize(("images", "count"), [("images", 2), ("images", 4), ("images", 9), ("video", 3), ("video", 8)])
def test_a_killed_run_continues_to_the_identical_dataset(images: str, count: int, tmp_path: Path, tools: Any) -> None:
    smooth(tmp_path / "in", tools, 5)
    words = ["source=rlds", f"path={tmp_path / 'in'}", f"images={images}", "shard_episodes=2", "workers=1"]
    config = ConvertConfig("rlds", tmp_path / "in", tmp_path / "whole", images=images, shard_episodes=2)  # type: ignore[arg-type]
    convert(config)
    killed = tmp_path / "killed"
    code = KILLED.format(count=count, words=[*words, f"output={killed}"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(DatasetError, match="was not finished"):
        load_info(killed)
    convert(replace(config, output=killed, resume=True))
    assert files(killed) == files(config.output)


def test_more_episodes_and_a_finished_dataset_continue(config: ConvertConfig) -> None:
    convert(config)
    for episodes in (2, 5, None):
        convert(replace(config, output=config.output.with_name("grown"), episodes=episodes, resume=episodes != 2))
    assert files(config.output.with_name("grown")) == files(config.output)


def test_another_source_or_setting_is_not_continued(config: ConvertConfig, tmp_path: Path, tools: Any) -> None:
    convert(replace(config, episodes=2))
    with pytest.raises(DatasetError, match=r"begun with other settings .*missing_cameras: 'pad', now 'refuse'"):
        convert(replace(config, resume=True, missing_cameras="refuse"))
    with pytest.raises(DatasetError, match=r"another contract: .*cameras"):
        convert(replace(config, resume=True, cameras=("primary",)))
    with pytest.raises(VolarError, match="resume=true"):
        convert(config)
    with pytest.raises(VolarError, match="more than episodes=1"):
        convert(replace(config, resume=True, episodes=1))


def damaged(config: ConvertConfig) -> ConvertConfig:
    """The same with a flipped byte in the second record of the first shard."""
    root = config.output.with_name("damaged")
    shutil.copytree(config.path, root)
    shard = root / "bridge_dataset-train.tfrecord-00000-of-00003"
    data = bytearray(shard.read_bytes())
    second = int.from_bytes(data[:8], "little") + 16
    data[second + 500] ^= 1
    shard.write_bytes(data)
    return replace(config, path=root)


def test_damage_stops_the_run_and_skip_goes_on_from_there(
    config: ConvertConfig, tools: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = damaged(config)
    with pytest.raises(DatasetError, match=r"00000-of-00003: record 1 at byte \d+: the CRC of its"):
        convert(config)
    convert(replace(config, resume=True, on_error="skip"))
    said = capsys.readouterr()
    assert "6 episodes in" in said.out
    assert "1 damaged episodes were left out" in said.err
    assert "00000-of-00003: record 1 at byte" in said.err
    found = list(read_episodes(config.output))
    assert [e.info["episode_id"] for e in found] == [0, 2, 3, 4, 5, 6]
    for episode in found:
        same_as_source(episode, tools.bridge_arrays(episode.info["episode_id"]))


def test_an_image_or_number_that_is_no_good_is_skipped_by_name(tmp_path: Path, tools: Any) -> None:
    records = [tools.bridge_record(n) for n in range(4)]
    records[1]["steps/observation/image_2"][2] = b"no image"
    records[2]["steps/observation/state"] = np.full_like(records[2]["steps/observation/state"], np.nan)
    tools.write_tfds(tmp_path / "in", tools.BRIDGE, records)
    config = ConvertConfig("rlds", tmp_path / "in", tmp_path / "out")
    with pytest.raises(DatasetError, match=r"record 1 at byte \d+: steps/observation/image_2: an image of 8 bytes"):
        convert(config)
    convert(replace(config, on_error="skip", overwrite=True))
    assert [e.info["episode_id"] for e in read_episodes(config.output)] == [0, 3]


def test_missing_cameras_are_black_and_listed_or_refused(
    config: ConvertConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DatasetError, match=r"record 1 at byte \d+ lacks wrist; missing_cameras=pad"):
        convert(replace(config, missing_cameras="refuse"))
    convert(replace(config, missing_cameras="refuse", on_error="skip", overwrite=True))
    assert [e.info["episode_id"] for e in read_episodes(config.output)] == [0, 2, 4, 6]
    capsys.readouterr()
    convert(replace(config, overwrite=True))
    assert "camera wrist was missing in 3 of them: black" in (said := capsys.readouterr().out)
    assert "nothing can be learned" not in said
    for episode in read_episodes(config.output):
        assert episode.images["wrist"].any() == (episode.info["missing_cameras"] == [])
    convert(replace(config, missing_cameras="refuse", cameras=("secondary", "primary"), overwrite=True))
    assert list(load_info(config.output).cameras) == ["secondary", "primary"]
    assert load_info(config.output).frames == sum(len(e) for e in read_episodes(config.output))


def test_episodes_without_an_instruction(tmp_path: Path, tools: Any, capsys: pytest.CaptureFixture[str]) -> None:
    records = [tools.bridge_record(n, unlabelled=n == 1) for n in range(3)]
    tools.write_tfds(tmp_path / "in", tools.BRIDGE, records)
    config = ConvertConfig("rlds", tmp_path / "in", tmp_path / "out")
    convert(config)
    assert "1 without an instruction were left out" in capsys.readouterr().out
    assert [e.info["episode_id"] for e in read_episodes(config.output)] == [0, 2]
    convert(replace(config, instruction="do something", overwrite=True))
    assert [e.instruction == "do something" for e in read_episodes(config.output)] == [False, True, False]


def test_whatever_stops_a_run_what_is_whole_stays(config: ConvertConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    append = EpisodeWriter.append

    def failing(self: EpisodeWriter, episode: Any) -> None:
        if self.episodes == 2:
            raise ZeroDivisionError
        append(self, episode)

    monkeypatch.setattr(EpisodeWriter, "append", failing)
    with pytest.raises(ZeroDivisionError):
        convert(config)
    assert EpisodeWriter.resume(config.output).episodes == 2  # of a shard of three


def test_images_are_scaled_when_asked(config: ConvertConfig) -> None:
    convert(replace(config, image_size=8, episodes=1))
    assert set(load_info(config.output).cameras.values()) == {(8, 8)}


def test_lerobot_datasets_are_converted_with_a_contract(config: ConvertConfig, tools: Any) -> None:
    convert(config)
    again = ConvertConfig("lerobot", config.output, config.output.with_name("again"))
    convert(again)
    assert load_contract(again.output) == load_contract(config.output)
    for number, episode in enumerate(read_episodes(again.output)):
        same_as_source(episode, tools.bridge_arrays(number))
        assert episode.info["episode_id"] == number
    contract = (config.output / "meta/volar_contract.json").rename(config.output.with_name("contract.json"))
    unsaid = replace(again, output=config.output.with_name("third"))
    says = r"says what its numbers mean: give contract=FILE \(docs/lerobot\.md shows one\), robot= .*dataset=NAME"
    with pytest.raises(DatasetError, match=says):
        convert(unsaid)
    with pytest.raises(DatasetError, match="5 frames a second, its contract 15 Hz"):
        convert(replace(unsaid, dataset="droid"))
    convert(replace(unsaid, contract=contract, cameras=("primary",), images="video"))
    assert load_contract(unsaid.output).robot == "widowx"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"output": Path("in/out")}, "overlap"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
        ({"contract": Path("c.json")}, "contract= is for source=lerobot"),
        ({"source": "hdf5", "split": "val"}, "split=val is for source=rlds; hdf5 has no splits"),
        ({"source": "lerobot", "split": "test"}, "split=test is for source=rlds; lerobot has no splits"),
        ({"episodes": 0}, "episodes must be at least 1"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        replace(ConvertConfig("rlds", Path("in"), Path("out")), **change)


def test_the_real_sample_to_a_trained_step(bridge_sample: Path, tmp_path: Path) -> None:
    """The three commands of the README."""
    source = list(RldsDataset.open(bridge_sample).episodes())
    words = ["volar-convert", "source=rlds", f"path={bridge_sample}", "dataset=bridge", f"output={tmp_path / 'bridge'}"]
    trained = [f"dataset={tmp_path / 'bridge'}", "mix.missing_cameras=pad", f"output={tmp_path / 'policy'}"]
    trained += ["steps=2", "width=32", "layers=1"]
    for module, arguments in (
        ("datasets.convert", words[1:]),
        ("datasets.convert", ["inspect", f"path={tmp_path / 'bridge'}"]),
        ("vla.train", trained),
    ):
        command = [sys.executable, "-m", f"volar.{module}", *arguments]
        environment = {**os.environ, "COLUMNS": "120"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        if "inspect" in arguments:
            assert "25" in done.stdout
            assert "missing in 25 episodes" in done.stdout
    found = list(read_episodes(tmp_path / "bridge"))
    for episode, raw in zip(found, source, strict=True):
        np.testing.assert_array_equal(episode.state, raw["steps/observation/state"])
        np.testing.assert_array_equal(episode.actions, raw["steps/action"])
        assert episode.instruction == raw["steps/language_instruction"][0]
        for role, key in ROLES.items():
            np.testing.assert_array_equal(episode.images[role], raw[f"steps/observation/{key}"])
    assert (tmp_path / "policy/checkpoints/last/pretrained_model/model.safetensors").is_file()


def test_the_real_sample_in_lerobot(bridge_sample: Path, tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    convert(ConvertConfig("rlds", bridge_sample, tmp_path / "bridge", images="video"))
    dataset = LeRobotDataset("volar/bridge", root=tmp_path / "bridge", video_backend="pyav")
    assert (dataset.num_episodes, len(dataset), dataset.fps) == (25, 250, 5)
    first = next(RldsDataset.open(bridge_sample).episodes())
    for step in range(first.steps):
        np.testing.assert_array_equal(dataset[step]["action"].numpy(), first["steps/action"][step])
        for role, key in ROLES.items():
            image = (dataset[step][f"observation.images.{role}"].numpy() * 255).transpose(1, 2, 0)
            assert np.abs(image - first[f"steps/observation/{key}"][step]).mean() < 6
