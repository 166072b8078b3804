"""volar-convert inspect: it finds what was put in, in every form of dataset, and only that."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.datasets.convert import ConvertConfig, convert, main
from volar.datasets.inspect_dataset import Contents, InspectConfig, contents, findings
from volar.datasets.lerobot_layout import DatasetError
from volar.robots.errors import UsageError

NAMES = ("dx", "dy", "dz", "gripper")


@pytest.fixture
def healthy() -> Contents:
    """Forty episodes of 50 steps, which begin open and end closed."""
    rng = np.random.default_rng(0)
    actions = rng.normal(scale=0.01, size=(2000, 4)).astype(np.float32)
    actions[:, 3] = np.arange(2000) % 50 < 30
    state = rng.normal(size=(2000, 2)).astype(np.float32)
    names = {"state": ("x", "y"), "actions": NAMES}
    return Contents("test", 5, {}, names, "open_is_one", [50] * 40, Counter(), state, actions)


def changed(healthy: Contents, column: int, values: Any, where: Any = slice(None)) -> list[tuple[str, str]]:
    actions = healthy.actions.copy()
    actions[where, column] = values
    return [(f.dimension, f.what) for f in findings(replace(healthy, actions=actions))]


def test_nothing_is_said_of_a_healthy_dataset(healthy: Contents) -> None:
    assert findings(healthy) == []


def test_each_fault_is_found_in_its_dimension(healthy: Contents) -> None:
    ((name, what),) = changed(healthy, 1, 0.25)
    assert (name, what.startswith("constant at 0.25")) == ("action dy", True)
    ((name, what),) = changed(healthy, 0, np.clip(healthy.actions[:, 0], -0.01, 1))
    assert name == "action dx"
    assert what == f"saturated: {np.mean(healthy.actions[:, 0] <= -0.01):.0%} of the steps are at -0.01"
    ((name, what),) = changed(healthy, 2, 3.0, [5, 900, 901])
    assert (name, what.startswith("outliers: 3 steps beyond 10 IQR")) == ("action dz", True)
    ((name, what),) = changed(healthy, 0, 0.5, [1])
    assert name == "action dx"


def test_a_gripper_of_the_other_polarity_is_found(healthy: Contents) -> None:
    gripper = healthy.actions[:, 3]
    ((name, what),) = changed(healthy, 3, 1 - gripper)
    assert (name, what.startswith("looks inverted: 100% of the episodes begin as if 0 is open")) == (
        "action gripper",
        True,
    )
    ((_, what),) = changed(healthy, 3, 2 * gripper - 1)
    assert what == "is in -1 to 1, the contract says 0 to 1"
    ((_, what),) = changed(healthy, 3, np.repeat(np.arange(40) % 2, 50) * gripper)
    assert what.startswith("polarity not clear: 50%")
    assert findings(replace(healthy, gripper="none")) == []


def test_rlds_and_what_it_is_converted_to_have_the_same_contents(bridge_folder: Path, tmp_path: Path) -> None:
    convert(ConvertConfig("rlds", bridge_folder, tmp_path / "out"))
    before, after = contents(InspectConfig(bridge_folder)), contents(InspectConfig(tmp_path / "out"))
    np.testing.assert_array_equal(before.actions, after.actions)
    np.testing.assert_array_equal(before.state, after.state)
    assert (before.lengths, before.instructions, before.names) == (after.lengths, after.instructions, after.names)
    assert after.cameras["wrist"] == "8 x 8, image, missing in 3 episodes"
    part = contents(InspectConfig(tmp_path / "out", episodes=2))
    assert part.lengths == before.lengths[:2]
    assert len(part.actions) == sum(part.lengths)
    (tmp_path / "out/meta/volar_contract.json").unlink()
    foreign = contents(InspectConfig(tmp_path / "out"))
    assert foreign.form == "LeRobotDataset v3.0 without a contract"
    assert foreign.names["actions"][0] == "dx"


def test_settings_of_other_forms_are_refused(bridge_folder: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"split=val is not for LeRobotDataset, which .* is: leave it out"):
        contents(InspectConfig(dataset, split="val"))
    with pytest.raises(UsageError, match="dataset=bridge is not for LeRobotDataset"):
        contents(InspectConfig(dataset, dataset="bridge"))
    (tmp_path / "a.hdf5").touch()
    with pytest.raises(UsageError, match="split=val is not for HDF5"):
        contents(InspectConfig(tmp_path, split="val"))


def test_the_verb_prints_it(
    bridge_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.argv", ["volar-convert", "inspect", str(bridge_folder)])
    assert main() == 0
    said = capsys.readouterr().out
    for part in ("RLDS, split train of 7 episodes", "5 Hz", "put the cup in the sink", "ee_roll", "primary: 24 x 16"):
        assert part in said
    monkeypatch.setattr("sys.argv", ["volar-convert", "inspect", "--help"])
    assert main() == 0
    assert "usage: volar-convert inspect" in capsys.readouterr().out
    with pytest.raises(DatasetError, match=r"no dataset_info\.json"):
        contents(InspectConfig(tmp_path))


def test_no_name_and_no_number_is_cut_in_a_narrow_terminal(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["volar-convert", "inspect", str(dataset)])
    assert main() == 0
    assert "\N{HORIZONTAL ELLIPSIS}" not in capsys.readouterr().out


def test_a_path_with_nothing_to_inspect_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no file or folder .*nowhere"):
        contents(InspectConfig(tmp_path / "nowhere"))
    (tmp_path / "cache.json").write_text("{}")
    with pytest.raises(DatasetError, match="holds generated scenes, which have no episodes"):
        contents(InspectConfig(tmp_path))
