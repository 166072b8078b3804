"""The contract: canonical bytes, a hash that moves with every field, and differences that name themselves."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.robots.action_space import ActionSpec, end_effector_delta
from volar.robots.contract import (
    CameraSpec,
    ContractError,
    FieldStatistics,
    PolicyContract,
    check,
    differences,
    require,
)
from volar.robots.errors import Unknown
from volar.robots.fr3 import FR3
from volar.robots.spec import load_robot


def statistics(low: list[float], high: list[float]) -> FieldStatistics:
    """Spread evenly between the bounds, less a third, so that a decimal form is long."""
    middle, half = (np.array(low) + high) / 2, (np.array(high) - low) / 3
    rows = {"q01": middle - half, "q99": middle + half, "mean": middle, "std": half / 2}
    rows |= {"min": np.array(low), "max": np.array(high)}
    last_passes = (True,) * (len(low) - 1) + (False,)
    return FieldStatistics(**{k: tuple(v.tolist()) for k, v in rows.items()}, mask=last_passes, count=1000)


@pytest.fixture
def contract() -> PolicyContract:
    return PolicyContract(
        robot="fr3",
        action=FR3.action,
        state_names=FR3.state_names,
        state_units=FR3.state_units,
        cameras=(CameraSpec("front", 96, 64), CameraSpec("wrist", 64, 64)),
        chunk_length=8,
        execute_steps=4,
        statistics={
            "action": statistics(list(FR3.action.low), list(FR3.action.high)),
            "observation.state": statistics(
                [0.3, -0.3, 0.01] + [-1.0] * 6 + [0.0], [0.7, 0.3, 0.5] + [1.0] * 6 + [0.08]
            ),
        },
    )


def test_json_round_trip_is_exact(contract: PolicyContract, tmp_path: Path) -> None:
    again = PolicyContract.from_json(contract.to_json())
    assert again == contract
    assert again.to_json() == contract.to_json()
    contract.save(tmp_path / "folder" / "contract.json")
    assert PolicyContract.load(tmp_path / "folder" / "contract.json").sha256 == contract.sha256


def test_hash_does_not_depend_on_the_order_of_keys(contract: PolicyContract) -> None:
    shuffled = json.dumps(dict(reversed(json.loads(contract.to_json()).items())), indent=2)
    assert PolicyContract.from_json(shuffled).sha256 == contract.sha256
    turned = replace(contract, statistics=dict(reversed(list(contract.statistics.items()))))
    assert turned.sha256 == contract.sha256


@pytest.mark.parametrize(
    "change",
    [
        {"robot": "ur5e"},
        {"action": end_effector_delta(rate_hz=5.0)},
        {"cameras": (CameraSpec("front", 64, 96), CameraSpec("wrist", 64, 64))},
        {"chunk_length": 16},
        {"execute_steps": 5},
        {"statistics": {}},
        {"instruction_template": "do {instruction}"},
        {"preprocessing": {"image": "bgr"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_hash_moves_with_every_field(contract: PolicyContract, change: dict[str, Any]) -> None:
    changed = replace(contract, **change)
    assert changed.sha256 != contract.sha256
    assert {mismatch.field.split(".")[0] for mismatch in differences(contract, changed)} == set(change)
    assert differences(contract, changed, ignore=tuple(change)) == []


def test_a_fitting_policy_has_no_mismatch(contract: PolicyContract) -> None:
    assert check(contract, FR3) == []
    require(contract, FR3)


def test_check_lists_every_differing_field(contract: PolicyContract) -> None:
    action = replace(FR3.action, gripper="open_is_zero", frame="tool", rate_hz=5.0)
    wrong = replace(
        contract,
        robot="ur5e",
        action=action,
        state_names=("a",) * 9 + ("b",),
        cameras=(CameraSpec("front", 1, 1), CameraSpec("overhead", 96, 64)),
    )
    fields = {mismatch.field for mismatch in check(wrong, FR3)}
    assert fields == {
        "robot",
        "action.gripper",
        "action.frame",
        "action.rate_hz",
        "state_names",
        "cameras.overhead",
    }
    with pytest.raises(ContractError) as raised:
        require(wrong, FR3)
    for name in (*fields, "ur5e", "open_is_zero", "front, wrist"):
        assert name in str(raised.value)


def _without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw.pop(key)


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda raw: raw.update(colour="red"), "no field colour"),
        (lambda raw: raw["action"].update(polarity="x"), "no field polarity"),
        (lambda raw: raw["cameras"][0].update(fps=30), "no field fps"),
        (lambda raw: raw["statistics"]["action"].update(median=[0]), "no field median"),
        (_without("action"), "action"),
        (_without("robot"), "robot"),
        (lambda raw: raw.update(format_version=99), "format 99"),
        (lambda raw: raw.update(execute_steps=9), "execute_steps 9"),
        (lambda raw: raw.update(instruction_template="do it"), "lacks"),
        (lambda raw: raw["statistics"]["action"].update(q01=[0.0]), "entries"),
        (lambda raw: raw["action"].update(gripper="half"), "choices"),
        (lambda raw: raw["action"].update(low=[1.0]), "low has 1"),
    ],
)
def test_tampering_is_named(contract: PolicyContract, tamper: Callable[[dict[str, Any]], object], said: str) -> None:
    raw = json.loads(contract.to_json())
    tamper(raw)
    with pytest.raises(ContractError, match=said):
        PolicyContract.from_json(json.dumps(raw))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_what_is_no_contract_is_refused(text: str) -> None:
    with pytest.raises(ContractError):
        PolicyContract.from_json(text)


def test_every_missing_field_is_named_at_once_and_the_file(contract: PolicyContract, tmp_path: Path) -> None:
    raw = json.loads(contract.to_json())
    for lost in (raw.pop("robot"), raw.pop("chunk_length"), raw["action"].pop("units")):
        assert lost
    (tmp_path / "mine.json").write_text(json.dumps(raw))
    with pytest.raises(ContractError, match=r"mine\.json: contract lacks robot, chunk_length, action\.units$"):
        PolicyContract.load(tmp_path / "mine.json")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="no contract at"):
        PolicyContract.load(tmp_path / "contract.json")


def test_statistics_must_be_finite() -> None:
    with pytest.raises(ValueError, match="non-finite"):
        replace(statistics([0, 0], [1, 1]), std=(float("nan"), 1.0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "torque"}, "choices: ee_delta, joint_position"),
        ({"frame": "world"}, "choices: base, tool"),
        ({"rotation": "euler"}, "choices"),
        ({"gripper": "closed"}, "choices"),
        ({"names": ()}, "names"),
        ({"names": ("dx",) * 7}, "distinct"),
        ({"units": ("m",)}, "units has 1 entries for 7 names"),
        ({"low": (1.0,) * 7, "high": (1.0,) * 7}, "below its high"),
        ({"rate_hz": 0.0}, "positive"),
        ({"rate_hz": float("nan")}, "positive"),
    ],
)
def test_action_spec_names_what_is_wrong(change: dict[str, Any], said: str) -> None:
    base: ActionSpec = end_effector_delta()
    with pytest.raises(ValueError, match=said):
        replace(base, **change)


def test_robot_names() -> None:
    assert load_robot("fr3") is FR3
    with pytest.raises(Unknown, match="did you mean fr3"):
        load_robot("fr33")


def test_robot_lengths_are_checked() -> None:
    with pytest.raises(ValueError, match="velocity_max has 1 entries for 7"):
        replace(FR3, velocity_max=(1.0,))
    with pytest.raises(ValueError, match="home"):
        replace(FR3, home=(9.0,) * 7)
