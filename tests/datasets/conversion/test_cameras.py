"""volar-convert: which cameras are written, and by which name, is said by cameras= and contract=, or it is refused."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from volar.datasets.convert import SOURCES, ConvertConfig, convert, main
from volar.datasets.episode_writer import EpisodeWriter
from volar.datasets.lerobot_format import load_contract, load_info, read_episodes
from volar.datasets.lerobot_layout import CONTRACT, DatasetError
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.errors import Unknown, UsageError, VolarError

FRONT, WRIST = CameraSpec("front", 24, 16), CameraSpec("wrist", 12, 20)  # as in the fixture `dataset`


@pytest.fixture
def foreign(dataset: Path, tmp_path: Path) -> Path:
    """The dataset as somebody else's: without the contract that says what its numbers mean."""
    root = shutil.copytree(dataset, tmp_path / "foreign")
    (root / CONTRACT).unlink()
    return root


def said(dataset: Path, path: Path, *cameras: CameraSpec) -> Path:
    """A file with the dataset's contract, which names these cameras."""
    replace(load_contract(dataset), statistics={}, cameras=cameras).save(path)
    return path


@pytest.fixture
def config(foreign: Path, dataset: Path, tmp_path: Path) -> ConvertConfig:
    contract = said(dataset, tmp_path / "arm.json", FRONT, WRIST)
    return ConvertConfig("lerobot", foreign, tmp_path / "out", contract=contract, episodes=3)


def same_images(output: Path, source: Path, **theirs: str) -> None:
    """Each camera of `output` shows what the camera of `source` shows that it was made of, and there is no other."""
    assert list(load_info(output).cameras) == list(theirs)
    assert [c.name for c in load_contract(output).cameras] == list(theirs)
    for made, raw in zip(read_episodes(output), read_episodes(source), strict=False):
        for name, other in theirs.items():
            np.testing.assert_array_equal(made.images[name], raw.images[other])


def test_the_cameras_of_a_contract_are_those_that_are_written(
    config: ConvertConfig, foreign: Path, dataset: Path
) -> None:
    assert config.contract is not None
    for cameras in ((FRONT,), (WRIST, FRONT), (FRONT, WRIST)):
        said(dataset, config.contract, *cameras)
        convert(replace(config, overwrite=True))
        same_images(config.output, foreign, **{camera.name: camera.name for camera in cameras})
    said(dataset, config.contract)
    convert(replace(config, overwrite=True))
    same_images(config.output, foreign, front="front", wrist="wrist")


def test_a_contract_with_other_cameras_is_refused(config: ConvertConfig, dataset: Path) -> None:
    assert config.contract is not None
    said(dataset, config.contract, FRONT, replace(WRIST, name="side"))
    says = r"contract= names the cameras front, side, .*foreign has front, wrist; side is not in both: cameras=THEIRS:O"
    with pytest.raises(DatasetError, match=says):
        convert(config)
    with pytest.raises(DatasetError, match=r"front, side, .*foreign has front, wrist; wrist is not in both"):
        convert(replace(config, cameras=("front", "wrist")))
    assert not config.output.exists()


def test_a_contract_with_other_sizes_is_refused_or_met(config: ConvertConfig, dataset: Path) -> None:
    assert config.contract is not None
    said(dataset, config.contract, replace(FRONT, height=24), WRIST)
    with pytest.raises(DatasetError, match=r"other sizes \(front 24x24, found 24x16\): image_size=N scales to N x N"):
        convert(config)
    with pytest.raises(DatasetError, match=r"other sizes \(wrist 12x20, found 24x24\)"):
        convert(replace(config, image_size=24))
    assert not config.output.exists()
    convert(replace(config, image_size=24, cameras=("front",)))
    assert load_info(config.output).cameras == {"front": (24, 24)}


def test_their_cameras_get_the_contracts_names(config: ConvertConfig, foreign: Path, dataset: Path) -> None:
    assert config.contract is not None
    said(dataset, config.contract, replace(FRONT, name="wrist"), replace(WRIST, name="hand"))
    convert(replace(config, cameras=("observation.images.wrist:hand", "front:wrist")))
    same_images(config.output, foreign, hand="wrist", wrist="front")


def test_places_in_an_image_go_with_the_camera_and_not_with_its_name(dataset: Path, tmp_path: Path) -> None:
    for number, (cameras, kept) in enumerate(((("front:a", "wrist"), True), (("wrist:front", "front:b"), False))):
        config = ConvertConfig("lerobot", dataset, tmp_path / f"out{number}", cameras=cameras, episodes=2)
        convert(config)
        for before, after in zip(read_episodes(dataset), read_episodes(config.output), strict=False):
            assert np.isfinite(before.points[:, 0, 3:]).all()
            if kept:
                np.testing.assert_array_equal(after.points, before.points)
            else:
                assert np.isnan(after.points[..., 3:]).all()


def test_a_gap_in_a_camera_goes_with_it(contract: PolicyContract, episode: Any, tmp_path: Path) -> None:
    writer = EpisodeWriter.create(tmp_path / "in", contract)
    for number in range(2):
        made = episode(number)
        black = {**made.images, "wrist": np.zeros_like(made.images["wrist"])}
        gap = replace(made, images=black if number else made.images, info={"missing_cameras": ["wrist"] * number})
        writer.append(gap)
    writer.finalize()
    config = ConvertConfig("lerobot", tmp_path / "in", tmp_path / "out", cameras=("wrist:front", "front:top"))
    convert(config)
    assert [e.info["missing_cameras"] for e in read_episodes(config.output)] == [[], ["front"]]


def test_a_conversion_goes_on_only_with_the_same_cameras(dataset: Path, tmp_path: Path) -> None:
    config = ConvertConfig("lerobot", dataset, tmp_path / "out", image_size=16, cameras=("front:top",), episodes=1)
    convert(config)
    with pytest.raises(DatasetError, match=r"begun with other settings .*cameras: 'front:top', now 'wrist:top'"):
        convert(replace(config, cameras=("wrist:top",), episodes=2, resume=True))
    convert(replace(config, episodes=2, resume=True))
    assert len(load_info(config.output).episodes) == 2


@pytest.mark.parametrize(
    ("cameras", "error", "says"),
    [
        (("frnt:top",), Unknown, r"unknown camera 'frnt'; did you mean front\? \(choices: front, wrist\)"),
        (("top:front",), Unknown, r"unknown camera 'top' \(choices: front, wrist\)"),
        (("front:",), UsageError, "cameras=front:: after the colon comes the name to write"),
        (("front:a.b",), UsageError, "cameras=front:a.b: after the colon comes the name to write"),
        (("front:a:b",), UsageError, "cameras=front:a:b: after the colon comes the name to write"),
        (("front:wrist", "wrist"), UsageError, "cameras=front:wrist,wrist gives two cameras the name wrist"),
        (("front", "front"), UsageError, "gives two cameras the name front"),
    ],
)
def test_cameras_that_cannot_be(
    dataset: Path, tmp_path: Path, cameras: tuple[str, ...], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        convert(ConvertConfig("lerobot", dataset, tmp_path / "out", cameras=cameras))
    assert not (tmp_path / "out").exists()


def test_cameras_of_rlds_and_hdf5_get_other_names(bridge_folder: Path, tmp_path: Path, tools: Any) -> None:
    config = ConvertConfig("rlds", bridge_folder, tmp_path / "rlds", cameras=("secondary:front", "wrist"))
    convert(config)
    for number, episode in enumerate(read_episodes(config.output)):
        arrays = tools.bridge_arrays(number)
        assert list(episode.images) == ["front", "wrist"]
        np.testing.assert_array_equal(episode.images["front"], arrays["image_1"])
        assert episode.info["missing_cameras"] == (["wrist"] if number % 2 else [])
    with pytest.raises(Unknown, match=r"unknown camera 'image_1'.*choices: primary, secondary, tertiary, wrist"):
        convert(replace(config, cameras=("image_1:front",), overwrite=True))
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        for key, size in (("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("robot0_gripper_qpos", 2)):
            demo[f"obs/{key}"] = np.zeros((3, size))
        demo["actions"], demo["obs/agentview_image"] = np.zeros((3, 7)), images
    asked = ("agentview_image:front",)
    config = ConvertConfig("hdf5", tmp_path / "demo.hdf5", tmp_path / "hdf5", cameras=asked, instruction="wait")
    convert(config)
    [episode] = read_episodes(config.output)
    assert list(episode.images) == ["front"]
    np.testing.assert_array_equal(episode.images["front"], images)


def test_a_camera_that_the_contracts_robot_lacks_is_said(
    config: ConvertConfig, foreign: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert config.contract is not None
    convert(config)
    assert "is none of" not in capsys.readouterr().out
    said(dataset, config.contract, FRONT, replace(WRIST, name="hand"))
    convert(replace(config, cameras=("front", "wrist:hand"), overwrite=True))
    assert "camera hand is none of fr3's (front, wrist)" in capsys.readouterr().out


def test_every_source_is_a_choice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["volar-convert", "source=openvl", "path=in", "output=out"])
    assert main() == 2
    out = capsys.readouterr().err
    assert "unknown source 'openvl'; did you mean openvla? (choices: hdf5, lerobot, openvla, rlds)" in out
    for name in SOURCES:
        assert ConvertConfig(name, Path("in"), Path("out")).source == name
    with pytest.raises(VolarError, match="unknown source 'tfds'"):
        ConvertConfig("tfds", Path("in"), Path("out"))


def test_the_command_line_takes_names(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["source=lerobot", f"path={dataset}", f"output={tmp_path / 'out'}", "episodes=1"]
    monkeypatch.setattr("sys.argv", ["volar-convert", *words, "cameras=observation.images.front:top,wrist"])
    assert main() == 0
    same_images(tmp_path / "out", dataset, top="front", wrist="wrist")
    monkeypatch.setattr("sys.argv", ["volar-convert", "--help"])
    assert main() == 0
    assert "top:front takes top under the name front" in " ".join(capsys.readouterr().out.split())
