"""Each dataset's entry: it reads what the catalog says the dataset holds, and its gripper's 1 is open."""

import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volar.datasets.convert import ConvertConfig, convert
from volar.datasets.episode_source import SourceEpisode
from volar.datasets.mixture import MIXTURES, load_mixture
from volar.datasets.oxe import OXE, load_oxe
from volar.datasets.oxe_entry import opened_by
from volar.datasets.rlds import Losses, RldsDataset
from volar.datasets.rlds_source import RldsSource
from volar.robots.contract import PolicyContract
from volar.robots.errors import Unknown, UsageError

STEPS = 5
SOUP = MIXTURES / "oxe_magic_soup.yaml"
RTX = {"action/world_vector": 3, "action/rotation_delta": 3}
TEXT, OWN_TEXT = "observation/natural_language_instruction", "language_instruction"
F32 = "float32"

# Below `steps/`: name -> length (0: a scalar), or (length, dtype, encoding); the instruction; the gripper's feature and
# element, values of it, and what each must become. Shapes: TensorFlow Datasets catalog.
AUSTIN = ({"action": 7, "observation/state": 24}, OWN_TEXT, ("action", 6), {1.0: 0, -1.0: 1, 0.0: 1})
SAILOR = ({"action": 7, "observation/state": 8}, OWN_TEXT, ("action", 6), {1.0: 0, -1.0: 1})
CLOSING = {1.0: 0, -1.0: 1}
SHAPES: dict[str, tuple[dict[str, Any], str, tuple[str, int], dict[float, float]]] = {
    "bridge": ({"action": 7, "observation/state": 7}, OWN_TEXT, ("action", 6), {1.0: 1, 0.0: 0}),
    "bridge_oxe": (
        {**RTX, "action/open_gripper": (0, "bool", "none"), "observation/state": 7},
        TEXT,
        ("action/open_gripper", 0),
        {1: 1, 0: 0},
    ),
    "fractal": (
        {
            **RTX,
            "action/gripper_closedness_action": 1,
            "observation/base_pose_tool_reached": 7,
            "observation/gripper_closed": 1,
        },
        TEXT,
        ("action/gripper_closedness_action", 0),
        CLOSING,
    ),
    "kuka": (
        {
            **RTX,
            "action/gripper_closedness_action": 1,
            "observation/clip_function_input/base_pose_tool_reached": (7, F32, "zlib"),
            "observation/gripper_closed": (1, F32, "zlib"),
        },
        TEXT,
        ("action/gripper_closedness_action", 0),
        CLOSING,
    ),
    "taco_play": (
        {"action/rel_actions_world": 7, "observation/robot_obs": 15},
        TEXT,
        ("action/rel_actions_world", 6),
        {1.0: 1, -1.0: 0},
    ),
    "jaco_play": (
        {
            "action/world_vector": 3,
            "action/gripper_closedness_action": 1,
            "observation/end_effector_cartesian_pos": 7,
        },
        TEXT,
        ("action/gripper_closedness_action", 0),
        CLOSING,
    ),
    "berkeley_cable_routing": ({**RTX, "observation/robot_state": 7}, TEXT, ("action/world_vector", 0), {0.1: 0}),
    "roboturk": (
        {**RTX, "action/gripper_closedness_action": 1},
        TEXT,
        ("action/gripper_closedness_action", 0),
        CLOSING,
    ),
    "nyu_door_opening": (
        {**RTX, "action/gripper_closedness_action": 1},
        TEXT,
        ("action/gripper_closedness_action", 0),
        CLOSING,
    ),
    "viola": (
        {
            **RTX,
            "action/gripper_closedness_action": 0,
            "observation/joint_states": 7,
            "observation/gripper_states": 1,
        },
        TEXT,
        ("action/gripper_closedness_action", 0),
        CLOSING,
    ),
    "berkeley_autolab_ur5": (
        {**RTX, "action/gripper_closedness_action": 0, "observation/robot_state": 15},
        TEXT,
        ("action/gripper_closedness_action", 0),
        CLOSING,
    ),
    "toto": (
        {**RTX, "action/open_gripper": (0, "bool", "none"), "observation/state": 7},
        TEXT,
        ("action/open_gripper", 0),
        {1: 1, 0: 0},
    ),
    "language_table": (
        {"action": 2, "observation/effector_translation": 2},
        "observation/instruction",
        ("action", 0),
        {0.5: 1},
    ),
    "stanford_hydra": ({"action": 7, "observation/state": 27}, OWN_TEXT, ("action", 6), {1.0: 0, 0.0: 1}),
    "austin_buds": AUSTIN,
    "utaustin_mutex": AUSTIN,
    "austin_sailor": SAILOR,
    "austin_sirius": SAILOR,
    "bc_z": (
        {
            "action/future/xyz_residual": 30,
            "action/future/axis_angle_residual": 30,
            "action/future/target_close": (10, "int64", "none"),
            "observation/present/xyz": 3,
            "observation/present/axis_angle": 3,
            "observation/present/sensed_close": 1,
        },
        TEXT,
        ("action/future/target_close", 0),
        {1: 0, 0: 1},
    ),
    "fmb": (
        {"action": 7, "observation/eef_pose": 7, "observation/state_gripper_pose": 0},
        OWN_TEXT,
        ("action", 6),
        {1.0: 1, 0.0: 0},
    ),
    "droid": (
        {
            "action_dict/cartesian_velocity": (6, "float64", "none"),
            "action_dict/gripper_position": (1, "float64", "none"),
            "observation/cartesian_position": (6, "float64", "none"),
            "observation/gripper_position": (1, "float64", "none"),
        },
        OWN_TEXT,
        ("action_dict/gripper_position", 0),
        {1.0: 0, 0.0: 1},
    ),
    "libero": ({"action": 7, "observation/state": 8}, OWN_TEXT, ("action", 6), {1.0: 0, -1.0: 1}),
}


@pytest.fixture
def folder(tmp_path: Path, tools: Any, write: Callable[..., Any]) -> Callable[[str, float], tuple[Path, Any]]:
    """name, gripper value -> a folder of one episode of that dataset, and its arrays."""

    def make(name: str, gripper: float) -> tuple[Path, Any]:
        shapes, instruction, (feature, element), _ = SHAPES[name]
        rng = np.random.default_rng(1)
        specs: dict[str, Any] = {"steps/is_first": tools.tensor((), "bool")}
        values: dict[str, Any] = {"steps/is_first": np.arange(STEPS) == 0}
        arrays = {}
        for key, about in shapes.items():
            size, dtype, encoding = about if isinstance(about, tuple) else (about, F32, "none")
            array = rng.uniform(-0.05, 0.05, (STEPS, max(1, size))).astype(np.float32)
            if key == feature and name != "berkeley_cable_routing" and name != "language_table":
                array[:, element] = gripper
            array = array.astype(dtype)
            arrays[key] = array
            specs[f"steps/{key}"] = tools.tensor((size,) if size else (), dtype, encoding)
            raw = [zlib.compress(row.tobytes()) for row in array]
            values[f"steps/{key}"] = raw if encoding == "zlib" else array
        if name == "language_table":
            codes = np.zeros((STEPS, 512), np.int32)
            codes[:, :8] = [ord(c) for c in "push red"]
            specs["steps/observation/instruction"] = tools.tensor((512,), "int32")
            values["steps/observation/instruction"] = codes
        else:
            specs[f"steps/{instruction}"] = tools.tensor((), "string")
            values[f"steps/{instruction}"] = [b"push red"] * STEPS
        for key in OXE[name].cameras.values():
            specs[f"steps/observation/{key}"] = tools.image((4, 6, 3))
            values[f"steps/observation/{key}"] = [tools.png(np.full((4, 6, 3), 9, np.uint8))] * STEPS
        root = tmp_path / f"{name}-{gripper}"
        write(root, specs, [values], name=OXE[name].tfds[0])
        return root, arrays

    return make


def only(source: RldsSource) -> SourceEpisode:
    (episode,) = source.episodes((0, 0), "raise", Losses())
    return episode


@pytest.mark.parametrize("name", OXE)
def test_each_dataset_is_standardized(name: str, folder: Callable[[str, float], tuple[Path, Any]]) -> None:
    for gripper, opening in SHAPES[name][3].items():
        root, arrays = folder(name, gripper)
        source = RldsSource.open(root, None, "train")  # known by the name in dataset_info.json
        assert source.entry is OXE[name]
        contract = source.contract
        assert contract == type(contract).from_json(contract.to_json())
        assert {c.name: (c.width, c.height) for c in contract.cameras} == dict.fromkeys(OXE[name].cameras, (6, 4))
        episode = only(source)
        numbers = episode.numbers()
        assert numbers.instruction == "push red"
        assert (numbers.state.dtype, numbers.actions.dtype) == (np.float32, np.float32)
        assert numbers.state.shape == (STEPS, len(contract.state_names))
        assert numbers.actions.shape == (STEPS, 7)
        np.testing.assert_array_equal(numbers.actions[:, 6], opening)
        images = {role: list(frames) for role, frames in episode.images().items()}
        assert {role: len(frames) for role, frames in images.items()} == dict.fromkeys(OXE[name].cameras, STEPS)
        moved = next(x for key, x in arrays.items() if key.startswith("action"))
        width = min(3, moved.shape[1])
        expected = moved[:, :width].astype(np.float32)
        np.testing.assert_array_equal(numbers.actions[:, :width], expected)
        low, high = np.array(contract.action.low), np.array(contract.action.high)
        assert ((numbers.actions >= low) & (numbers.actions <= high)).all()


def test_the_states_are_the_named_elements(folder: Callable[[str, float], tuple[Path, Any]]) -> None:
    for name, key, elements in (
        ("taco_play", "observation/robot_obs", [0, 1, 2, 3, 4, 5, 6]),
        ("stanford_hydra", "observation/state", [0, 1, 2, 7, 8, 9, 24]),
        ("berkeley_autolab_ur5", "observation/robot_state", [6, 7, 8, 9, 10, 11, 12, 13]),
        ("austin_buds", "observation/state", [0, 1, 2, 3, 4, 5, 6, 7]),
    ):
        root, arrays = folder(name, 1.0)
        state = only(RldsSource.open(root, name, "train")).numbers().state
        np.testing.assert_array_equal(state, arrays[key][:, elements])


@given(st.lists(st.sampled_from([-1.0, -0.2, -0.05, 0.0, 0.05, 0.2, 1.0]), min_size=1, max_size=30))
def test_relative_gripper_commands_accumulate(commands: list[float]) -> None:
    given_ = [c for c in commands if abs(c) > 0.1]
    opening = 1.0 if not given_ or given_[0] > 0 else 0.0  # the first command changes something
    expected = []
    for command in commands:
        opening = opening if abs(command) <= 0.1 else float(command < 0)
        expected.append(opening)
    np.testing.assert_array_equal(opened_by(np.array(commands, np.float32))[:, 0], expected)


def test_a_missing_camera_or_feature_is_named(folder: Callable[[str, float], tuple[Path, Any]]) -> None:
    root, _ = folder("libero", 1.0)
    with pytest.raises(Unknown, match=r"camera 'wirst'.*did you mean wrist"):
        RldsSource.open(root, "libero", "train", ("wirst",))
    assert [c.name for c in RldsSource.open(root, "libero", "train", ("wrist",)).contract.cameras] == ["wrist"]
    with pytest.raises(Unknown, match="steps/action/open_gripper"):  # another dataset's entry
        only(RldsSource.open(root, "toto", "train")).numbers()


def test_an_entry_is_found_by_name_or_asked_for(
    tmp_path: Path, folder: Callable[[str, float], tuple[Path, Any]]
) -> None:
    with pytest.raises(Unknown, match="did you mean bridge"):
        load_oxe("brige")
    dataset = RldsDataset.open(folder("toto", 1)[0])
    assert load_oxe(None, dataset) is OXE["toto"]
    strange = RldsDataset(tmp_path, "my_own", "1.0.0", {}, {})
    with pytest.raises(UsageError, match=r"give dataset=NAME .*'my_own'.*bridge, "):
        load_oxe(None, strange)
    names = [name for entry in OXE.values() for name in entry.tfds]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("mixture", ["bridge_only", "oxe_magic_soup"])
def test_mixtures_name_datasets_there_are(mixture: str) -> None:
    weights = load_mixture(mixture)
    assert set(weights) <= set(OXE)
    assert all(weight > 0 for weight in weights.values())


@pytest.mark.parametrize("states", ["pad", "drop"])
def test_the_magic_soup_is_one_run(
    states: str, tmp_path: Path, folder: Callable[[str, float], tuple[Path, Any]]
) -> None:
    """The command of its YAML file, on one small episode of each dataset."""
    from volar.robots.command_line import parse
    from volar.vla.train import TrainConfig, train

    for name in load_mixture("oxe_magic_soup"):
        root, _ = folder(name, next(iter(SHAPES[name][3])))
        convert(ConvertConfig("rlds", root, tmp_path / "soup" / name, image_size=8))
    (command,) = re.findall(r"volar-train (.*)", SOUP.read_text().replace("\n#    ", " "))
    command = command.replace("DIR", str(tmp_path / "soup")).replace("states=pad", f"states={states}")
    words = [*command.split(), "steps=2", "batch_size=8", "width=16", "layers=1", "precision=fp32", "threads=1"]
    config = parse(TrainConfig, [*words, f"output={tmp_path / 'policy'}"])
    train(config)
    contract = PolicyContract.load(tmp_path / "policy/checkpoints/last/pretrained_model/contract.json")
    if states == "drop":
        assert contract.state_names == ("no_state",)
        return
    assert contract.state_names[:7] == tuple(name for name, _ in OXE["bridge"].state)
    stated = {(name, unit) for key in load_mixture("oxe_magic_soup") for name, unit in OXE[key].state}
    assert len(contract.state_names) == len(set(contract.state_names)) == len(stated)
