"""HDF5 of robomimic's layout, LIBERO's and robosuite's own: what is in the file is what is in the dataset."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from volar.datasets.convert import ConvertConfig, convert
from volar.datasets.hdf5_source import Hdf5Source
from volar.datasets.lerobot_format import load_contract, read_episodes
from volar.datasets.lerobot_layout import DatasetError
from volar.robots.errors import Unknown

LIBERO = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2, "joint_states": 7}
ROBOMIMIC = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
CAMERAS = {
    "libero": ("agentview_rgb", "eye_in_hand_rgb"),
    "robomimic": ("agentview_image", "robot0_eye_in_hand_image"),
}


def demo(number: int, form: str) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    steps = 3 + number % 3
    keys = LIBERO if form == "libero" else ROBOMIMIC
    actions = rng.uniform(-1, 1, (steps, 7))
    actions[:, 6] = rng.choice([-1, 1], steps)
    obs = {key: rng.normal(size=(steps, size)) for key, size in keys.items()}
    return {
        "actions": actions,
        **{f"obs/{key}": value for key, value in obs.items()},
        **{f"obs/{key}": rng.integers(0, 256, (steps, 16, 24, 3), np.uint8) for key in CAMERAS[form]},
    }


def write(path: Path, form: str, numbers: list[int], **env_kwargs: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20} | env_kwargs})
        if form == "libero":
            data.attrs["problem_info"] = json.dumps({"language_instruction": ["open", "the", "drawer"]})
        for i, number in enumerate(numbers):
            for key, value in demo(number, form).items():
                data[f"demo_{i}/{key}"] = value
    return path


@pytest.mark.parametrize("form", ["libero", "robomimic"])
def test_numbers_and_images_arrive(form: str, tmp_path: Path) -> None:
    numbers = list(range(12))  # demo_10 comes after demo_9, not after demo_1
    path = write(tmp_path / "in" / "open_the_drawer_demo.hdf5", form, numbers)
    instruction = None if form == "libero" else "lift the cube"
    config = ConvertConfig("hdf5", path, tmp_path / "out", instruction=instruction, shard_episodes=5)
    convert(config)
    contract = load_contract(config.output)
    assert (contract.action.rate_hz, contract.action.rotation, contract.action.units[0]) == (
        20.0,
        "rotation_vector",
        "1",
    )
    state_keys = list(LIBERO)[:3] if form == "libero" else list(ROBOMIMIC)
    for number, episode in zip(numbers, read_episodes(config.output), strict=True):
        raw = demo(number, form)
        np.testing.assert_array_equal(episode.actions[:, :6], raw["actions"][:, :6].astype(np.float32))
        np.testing.assert_array_equal(episode.actions[:, 6], raw["actions"][:, 6] == -1)  # -1 opens
        state = np.concatenate([raw[f"obs/{key}"] for key in state_keys], axis=1)
        np.testing.assert_array_equal(episode.state, state.astype(np.float32))
        for role, key in zip(("primary", "wrist"), CAMERAS[form], strict=True):
            images = raw[f"obs/{key}"]
            expected = np.rot90(images, 2, axes=(1, 2)) if form == "libero" else images
            np.testing.assert_array_equal(episode.images[role], expected)
        assert episode.instruction == (instruction or "open the drawer")
        assert episode.info["demo"] == f"demo_{number}"


def test_a_folder_of_files_continues_where_it_was(tmp_path: Path) -> None:
    for name, numbers in (("a", [0, 1]), ("b", [2, 3, 4])):
        write(tmp_path / "in" / f"{name}.hdf5", "libero", numbers)
    config = ConvertConfig("hdf5", tmp_path / "in", tmp_path / "out", episodes=3)
    convert(config)
    convert(replace(config, episodes=None, resume=True))
    found = list(read_episodes(config.output))
    assert [(e.info["file"], e.info["demo"]) for e in found] == [
        *(("a.hdf5", f"demo_{i}") for i in range(2)),
        *(("b.hdf5", f"demo_{i}") for i in range(3)),
    ]
    np.testing.assert_array_equal(found[4].actions[:, :6], demo(4, "libero")["actions"][:, :6].astype(np.float32))


PANDA = {"robots": ["Panda"], "controller_configs": {"type": "OSC_POSE", "control_delta": True}}


def composite(**part: Any) -> dict[str, Any]:
    """As robosuite 1.5 has it."""
    return {"controller_configs": {"type": "BASIC", "body_parts": {"right": {"type": "OSC_POSE"} | part}}}


@pytest.mark.parametrize(
    ("said", "rate_hz"),
    [
        ({}, 20),
        ({"robots": "Panda", "control_freq": 10}, 10),
        (PANDA | {"control_freq": 10.0}, 10),
        (composite(input_type="delta"), 20),
    ],
)
def test_robot_and_rate_are_what_the_file_says(said: dict[str, Any], rate_hz: int, tmp_path: Path) -> None:
    contract = Hdf5Source.open(write(tmp_path / "a.hdf5", "robomimic", [0], **said), None).contract
    assert (contract.robot, contract.action.rate_hz) == ("franka_panda", rate_hz)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"robots": ["Sawyer"]}, r"robots is \['Sawyer'\], not \['Panda'\]"),
        ({"robots": ["Panda", "Panda"]}, "robots is"),
        ({"controller_configs": {"type": "JOINT_POSITION"}}, "type is 'JOINT_POSITION', not 'OSC_POSE'"),
        ({"controller_configs": {"type": "OSC_POSE", "control_delta": False}}, "control_delta is False, not True"),
        (composite(input_type="absolute"), "input_type is 'absolute', not 'delta'"),
        ({"control_freq": 12.5}, r"control_freq is 12\.5"),
        ({"controller_configs": "OSC_POSE"}, "env_args is of another form"),
        ({"control_freq": 10}, r"differ in control_freq \(a\.hdf5 20, b\.hdf5 10\)"),
    ],
)
def test_other_robots_controllers_and_rates_are_refused(said: dict[str, Any], names: str, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.hdf5", "robomimic", [0], **PANDA)
    write(tmp_path / "in" / "b.hdf5", "robomimic", [1], **said)  # every file, not only the first
    with pytest.raises(DatasetError, match=names):
        convert(ConvertConfig("hdf5", tmp_path / "in", tmp_path / "out", instruction="lift"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damaged", ["a", "b"])
def test_a_damaged_file_of_several_is_left_out(
    damaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, numbers in (("a", [0, 1]), ("b", [2, 3])):
        path = write(tmp_path / "in" / f"{name}.hdf5", "libero", numbers)
        if name == damaged:
            path.write_bytes(path.read_bytes()[:2000])
    config = ConvertConfig("hdf5", tmp_path / "in", tmp_path / "out")
    with pytest.raises(DatasetError, match=rf"{damaged}\.hdf5 cannot be read"):
        convert(config)
    convert(replace(config, on_error="skip", overwrite=True))
    assert {e.info["file"] for e in read_episodes(config.output)} == {"b.hdf5" if damaged == "a" else "a.hdf5"}
    assert "1 damaged episodes were left out" in capsys.readouterr().err


def test_cameras_that_are_not_there_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.hdf5", "libero", [0])
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/eye_in_hand_rgb"]
    config = ConvertConfig("hdf5", path, tmp_path / "out")
    convert(config)
    assert "camera wrist is not there: the source has no eye_in_hand_rgb" in capsys.readouterr().out
    convert(replace(config, cameras=("primary",), overwrite=True))
    assert "camera wrist" not in capsys.readouterr().out
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/agentview_rgb"]
    with pytest.raises(DatasetError, match=r"none of the cameras agentview_rgb, eye_in_hand_rgb .*: ee_ori, ee_pos"):
        convert(replace(config, overwrite=True))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "in" / "a.hdf5", "libero", [0, 1])
    with h5py.File(path, "a") as file:
        del file["data/demo_1/actions"]
    config = ConvertConfig("hdf5", path, tmp_path / "out")
    with pytest.raises(DatasetError, match=r"a\.hdf5: demo_1 lacks actions \(it has obs\)"):
        convert(config)
    convert(replace(config, on_error="skip", overwrite=True))
    assert len(list(read_episodes(config.output))) == 1
    with pytest.raises(Unknown, match=r"camera 'front' .*primary, wrist"):
        Hdf5Source.open(path, None, ("front",))
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DatasetError, match=r"cut\.hdf5 cannot be read"):
        Hdf5Source.open(cut, None)
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["data/demo_0/obs/pose"] = np.zeros(3)
    with pytest.raises(DatasetError, match=r"neither of robomimic nor of LIBERO .observations: pose"):
        Hdf5Source.open(tmp_path / "other.hdf5", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds none"):
        Hdf5Source.open(tmp_path / "empty", None)
