"""volar-convert robot=: an arm's joint positions as LeRobot records them become its own, or are refused by name."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.datasets.convert import ConvertConfig, convert
from volar.datasets.lerobot_format import load_contract, read_episodes
from volar.datasets.lerobot_layout import CONTRACT, WRITER, DatasetError
from volar.robots.contract import PolicyContract, check
from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.joint_units import DEGREES, PERCENT, RADIANS, JointUnits, half_ranges_deg
from volar.robots.lerobot_contract import FactMissing
from volar.robots.so101 import SO101

NAMES = tuple(f"{name}.pos" for name in (*SO101.joint_names, "gripper"))
TEXTS = ("lift the red block", "push the blue block")
CALIBRATION = {n: {"range_min": 1000, "range_max": 3000 + 50 * i, "drive_mode": i % 2} for i, n in enumerate(NAMES)}
RANGES = half_ranges_deg(CALIBRATION, NAMES[:-1])
Write = Callable[..., Path]


def motion(seed: int, steps: int = 12) -> np.ndarray:
    """(T, J + 1) joints [rad] over most of their ranges, and the opening."""
    rng = np.random.default_rng(seed)
    low, high = (*SO101.position_min, 0.0), (*SO101.position_max, 1.0)
    return rng.uniform(low, high, (steps, len(NAMES)))


def native(values: np.ndarray, units: JointUnits) -> np.ndarray:
    return np.stack([units.to_native(row[:-1], row[-1]) for row in values])


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(units=..., names=..., change=...)`: a dataset that LeRobot writes; `change` of a vector (T, J + 1)."""

    def make(
        units: JointUnits | None = None,
        names: tuple[str, ...] = NAMES,
        change: Callable[[np.ndarray], np.ndarray] = lambda x: x,
        camera: str = "front",
    ) -> Path:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        units = units or JointUnits(DEGREES, 0.0, 100.0)
        vector = {"dtype": "float32", "shape": (len(names),), "names": list(names)}
        picture = {"dtype": "image", "shape": (24, 32, 3), "names": ["height", "width", "channels"]}
        features = {"observation.state": vector, "action": vector, f"observation.images.{camera}": picture}
        root = tmp_path / "recorded"
        writer = LeRobotDataset.create("volar/arm", 30, features, root=root, robot_type="so_follower", use_videos=False)
        order = [NAMES.index(n) if n in NAMES else i for i, n in enumerate(names)]
        for number, text in enumerate(TEXTS):
            state, action = (change(native(motion(2 * number + k), units))[:, order] for k in (0, 1))
            for t in range(len(state)):
                image = np.full((24, 32, 3), 40 * number + t + 1, np.uint8)
                frame = {"observation.state": state[t].astype(np.float32), "action": action[t].astype(np.float32)}
                writer.add_frame(frame | {f"observation.images.{camera}": image, "task": text})
            writer.save_episode()
        writer.finalize()
        return root

    return make


def config(path: Path, **changes: Any) -> ConvertConfig:
    told: dict[str, Any] = {"robot": "so101", "unit": DEGREES, "gripper": (0.0, 100.0)}
    return ConvertConfig("lerobot", path, path.with_name("out"), **told | changes)


@pytest.mark.parametrize(
    ("units", "names"),
    [
        (JointUnits(DEGREES, 0.0, 100.0), NAMES),
        (JointUnits(DEGREES, 35.0, 2.0), tuple(reversed(NAMES))),
        (JointUnits(RADIANS, -0.2, 1.7), NAMES),
        (JointUnits(PERCENT, 0.0, 100.0, RANGES), NAMES),
    ],
)
def test_positions_become_those_of_the_robot(
    write: Write, tmp_path: Path, units: JointUnits, names: tuple[str, ...]
) -> None:
    told: dict[str, Any] = {"unit": units.unit, "gripper": (units.gripper_closed, units.gripper_open)}
    if units.unit == PERCENT:
        told["calibration"] = tmp_path / "arm.json"
        bare = {name.removesuffix(".pos"): entry for name, entry in CALIBRATION.items()}
        told["calibration"].write_text(json.dumps(bare))
    asked = config(write(units, names), **told)
    convert(asked)
    contract = load_contract(asked.output)
    assert contract.robot == "so101"
    assert contract.action == SO101.joint_action(30.0)
    assert (contract.state_names, contract.state_units) == (SO101.joint_state_names, SO101.joint_state_units)
    assert [(c.name, c.width, c.height) for c in contract.cameras] == [("front", 32, 24)]
    assert check(contract, SO101) == []
    width = np.array([1.0] * SO101.joints + [SO101.gripper_width_max])
    episodes = list(read_episodes(asked.output))
    for number, (episode, text) in enumerate(zip(episodes, TEXTS, strict=True)):
        np.testing.assert_allclose(episode.state, motion(2 * number) * width, atol=2e-6)
        np.testing.assert_allclose(episode.actions, motion(2 * number + 1), atol=2e-6)
        assert episode.instruction == text
        assert (episode.images["front"][3] == 40 * number + 4).all()
    of_state = np.concatenate([episode.state for episode in episodes])
    np.testing.assert_allclose(contract.statistics["observation.state"].max, of_state.max(axis=0), atol=1e-7)
    kept = json.loads((asked.output / WRITER).read_text())["source"]
    assert kept["robot"] == "so101"
    said = json.loads(kept["units"])
    assert JointUnits(**said | {"half_ranges_deg": tuple(said["half_ranges_deg"])}) == units


def test_a_conversion_goes_on_only_in_the_same_units(write: Write) -> None:
    asked = config(write(), episodes=1, shard_episodes=1)
    convert(asked)
    with pytest.raises(VolarError, match=r"units: .*100\.0.*now .*110\.0"):
        convert(replace(asked, episodes=2, resume=True, gripper=(0.0, 110.0)))
    convert(replace(asked, episodes=2, resume=True))
    assert len(list(read_episodes(asked.output))) == 2


def test_a_gripper_beyond_its_ends_by_a_little_is_open_or_closed(write: Write) -> None:
    asked = config(write(change=lambda x: x * (1, 1, 1, 1, 1, 1.08)))
    convert(asked)
    actions = np.concatenate([episode.actions for episode in read_episodes(asked.output)])
    assert actions[:, -1].max() == 1.0
    states = np.concatenate([episode.state for episode in read_episodes(asked.output)])
    assert states[:, -1].max() == pytest.approx(SO101.gripper_width_max)


def test_a_jaw_that_opens_wider_than_the_robot_is_open(write: Write) -> None:
    """As `LeRobotBody` has it: of the jaw's 100, 35 are the widest that a policy can ask for."""
    asked = config(write(), gripper=(0.0, 35.0))
    convert(asked)
    for number, episode in enumerate(read_episodes(asked.output)):
        state, actions = (motion(2 * number + k)[:, -1] for k in (0, 1))
        np.testing.assert_allclose(episode.actions[:, -1], (actions / 0.35).clip(max=1.0), atol=2e-6)
        wanted = (state / 0.35).clip(max=1.0) * SO101.gripper_width_max
        np.testing.assert_allclose(episode.state[:, -1], wanted, atol=2e-6)


def test_a_camera_that_the_robot_lacks_is_said(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    convert(config(write(camera="top")))
    assert "camera top is none of so101's (front, wrist)" in capsys.readouterr().out


def farther(x: np.ndarray) -> np.ndarray:
    return np.concatenate([1.9 * x[:, :1], x[:, 1:]], axis=1)


@pytest.mark.parametrize(
    ("made", "told", "says"),
    [
        (
            {"units": JointUnits(RADIANS, 0, 100)},
            {},
            r"state: no joint ever leaves \+-2\.\d+, not in degrees: unit=rad",
        ),
        ({}, {"unit": RADIANS}, r"in radians is not of so101: .*shoulder_pan: values in \[-1\.92.*in degrees\?"),
        ({}, {"gripper": (0.0, 1.0)}, r"state: the gripper goes from .* to 9\d.*, not within gripper=0,1"),
        ({}, {"gripper": (60.0, 100.0)}, r"the gripper goes from .*, not within gripper=60,100"),
        ({"change": farther}, {}, r"action\.shoulder_pan: values in \[-1\.92, 1\.92\] rad wanted, found q01 -3\."),
        ({}, {"robot": "fr3"}, r"the names of observation\.state shoulder_pan\.pos, .* not those of fr3: fr3_joint1"),
    ],
)
def test_numbers_that_cannot_be_the_robots(write: Write, made: dict[str, Any], told: dict[str, Any], says: str) -> None:
    asked = config(write(**made), **told)
    with pytest.raises(VolarError, match=says):
        convert(asked)
    assert not asked.output.exists()


@pytest.mark.parametrize(
    "names", [("main_shoulder_pan", *NAMES[1:]), NAMES[:-1], (*NAMES[:-1], "jaw.pos"), (*NAMES, "extra.pos")]
)
def test_names_that_are_not_the_robots(write: Write, names: tuple[str, ...]) -> None:
    path = write(names=names, change=lambda x: np.concatenate([x, x], axis=1))
    with pytest.raises(VolarError, match=rf"state .*{names[0]}.*not those of so101: shoulder_pan, .*contract=FILE"):
        convert(config(path))


@pytest.mark.parametrize(
    ("told", "error", "says"),
    [
        ({"robot": "so100"}, Unknown, "unknown robot 'so100'; did you mean so101"),
        ({"unit": "deg"}, Unknown, r"unknown unit 'deg'; .*choices: degrees, radians, range_m100_100"),
        ({"unit": None}, FactMissing, "does not say the units .*: unit= one of degrees, "),
        ({"gripper": None}, FactMissing, "gripper=CLOSED,OPEN"),
        ({"unit": PERCENT}, VolarError, "needs ranges of a calibration: calibration=FILE"),
        ({"gripper": (5.0, 5.0)}, VolarError, "closed and open must differ"),
    ],
)
def test_what_is_told_must_be_whole(write: Write, told: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        convert(config(write(), **told))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"robot": None, "gripper": None}, "unit= is for the joint positions of a robot: give robot= too"),
        ({"robot": None, "unit": None}, "gripper= is for the joint positions of a robot"),
        ({"contract": Path("c.json")}, "contract= and robot= both say what the numbers mean"),
        ({"dataset": "bridge"}, "dataset= and robot= both say what the numbers mean"),
        ({"source": "hdf5"}, "robot= is for source=lerobot; what hdf5 means is said by dataset="),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        replace(config(Path("in")), **change)


def test_a_folder_that_says_what_its_numbers_mean_is_not_told(write: Write) -> None:
    first = config(write())
    convert(first)
    with pytest.raises(
        DatasetError, match=r"meta/volar_contract\.json, which says what its numbers mean: leave robot="
    ):
        convert(replace(first, path=first.output, output=first.output.with_name("again")))
    again = ConvertConfig("lerobot", first.output, first.output.with_name("again"))
    convert(again)
    assert load_contract(again.output) == load_contract(first.output)


def test_a_damaged_file_is_left_out_as_ever(write: Write) -> None:
    path = write(change=lambda x: np.where(np.arange(len(x))[:, None] == 5, math.nan, x))
    with pytest.raises(DatasetError, match="episode 0"):
        convert(config(path))


def test_a_policy_is_trained_on_it(write: Write, tmp_path: Path) -> None:
    settings = ["source=lerobot", f"path={write()}", "robot=so101", "unit=degrees", "gripper=0,100"]
    trained = [f"dataset={tmp_path / 'out'}", f"output={tmp_path / 'policy'}", "steps=2", "width=32", "layers=1"]
    trained += ["batch_size=8"]
    for module, words in (("datasets.convert", [*settings, f"output={tmp_path / 'out'}"]), ("vla.train", trained)):
        command = [sys.executable, "-m", f"volar.{module}", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    policy = tmp_path / "policy/checkpoints/last/pretrained_model"
    found = next(PolicyContract.load(file) for file in policy.glob("*contract*.json"))
    assert found.action == SO101.joint_action(30.0)
    assert check(found, SO101) == []
    assert (tmp_path / "out" / CONTRACT).is_file()
