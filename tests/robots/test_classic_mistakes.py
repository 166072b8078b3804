"""The mistakes that break deployed policies silently: here each has a name. And what is right passes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from volar.robots.chunk_buffer import ChunkBuffer
from volar.robots.contract import CameraSpec, ContractError, FieldStatistics, PolicyContract, check
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.fr3 import FR3
from volar.robots.interface import ActionChunk, Observation
from volar.robots.policies import default_policy

if TYPE_CHECKING:
    from .conftest import TinyArtifact

SHIPPED = PolicyContract.load(default_policy() / "contract.json")
ACTION, STATE = SHIPPED.statistics["action"], SHIPPED.statistics["observation.state"]
FLOATS = ("q01", "q99", "mean", "std", "min", "max")


def scaled(s: FieldStatistics, factor: Any, dimensions: slice) -> FieldStatistics:
    """Statistics as they are when those dimensions were measured in another unit."""
    rows = {name: np.array(getattr(s, name)) for name in FLOATS}
    for row in rows.values():
        row[dimensions] *= factor
    rows["min"], rows["max"] = np.minimum(rows["min"], rows["max"]), np.maximum(rows["min"], rows["max"])
    return replace(s, **{name: tuple(row.tolist()) for name, row in rows.items()})


def reordered(s: FieldStatistics, order: list[int]) -> FieldStatistics:
    return replace(s, **{name: tuple(getattr(s, name)[i] for i in order) for name in FLOATS})


def with_statistics(**changed: FieldStatistics) -> PolicyContract:
    names = {"action": "action", "state": "observation.state"}
    return replace(SHIPPED, statistics=SHIPPED.statistics | {names[key]: value for key, value in changed.items()})


def with_action(**changes: Any) -> PolicyContract:
    return replace(SHIPPED, action=replace(SHIPPED.action, **changes))


def swapped(names: tuple[str, ...], i: int, j: int) -> tuple[str, ...]:
    listed = list(names)
    listed[i], listed[j] = listed[j], listed[i]
    return tuple(listed)


JOINT_ACTION = replace(SHIPPED.action, kind="joint_position", names=(*FR3.joint_names[:6], "gripper"), rotation="none")
MISTAKES: dict[str, tuple[PolicyContract, str]] = {
    "another robot": (replace(SHIPPED, robot="ur5e"), "robot"),
    "swapped action dimensions": (with_action(names=swapped(SHIPPED.action.names, 0, 1)), "action.names"),
    "swapped state dimensions": (replace(SHIPPED, state_names=swapped(SHIPPED.state_names, 0, 1)), "state_names"),
    "degrees declared": (with_action(units=("m",) * 3 + ("deg",) * 3 + ("1",)), "action.units"),
    "millimetres declared": (with_action(units=("mm",) * 3 + ("rad",) * 3 + ("1",)), "action.units"),
    "gripper polarity": (with_action(gripper="open_is_zero"), "action.gripper"),
    "no gripper": (with_action(gripper="none"), "action.gripper"),
    "tool frame for base frame": (with_action(frame="tool"), "action.frame"),
    "rotation left out": (with_action(rotation="none"), "action.rotation"),
    "wrong rate": (with_action(rate_hz=5.0), "action.rate_hz"),
    "absolute joints for displacements": (replace(SHIPPED, action=JOINT_ACTION), "action.names"),
    "wider bounds": (with_action(high=tuple(2 * v for v in SHIPPED.action.high)), "action.high"),
    "quaternion in the state": (
        replace(SHIPPED, state_names=(*SHIPPED.state_names[:3], "qx", "qy", "qz", "qw", "a", "b", "gripper_width")),
        "state_names",
    ),
    "state in millimetres": (replace(SHIPPED, state_units=("mm",) * 3 + SHIPPED.state_units[3:]), "state_units"),
    "wrong camera": (
        replace(SHIPPED, cameras=(CameraSpec("overhead", 96, 96), *SHIPPED.cameras[1:])),
        "cameras.overhead",
    ),
    "BGR images": (replace(SHIPPED, preprocessing={"image": "bgr uint8, no crop"}), "preprocessing.image"),
    "cropped images": (replace(SHIPPED, preprocessing={"image": "rgb uint8, crop 0.9"}), "preprocessing.image"),
    "images scaled to one": (replace(SHIPPED, preprocessing={"image": "rgb float"}), "preprocessing.image"),
    "an unknown step": (replace(SHIPPED, preprocessing={"gamma": "2.2"}), "preprocessing.gamma"),
    # From here on the contract says the right thing, and its numbers another.
    "millimetres undeclared": (
        with_statistics(state=scaled(STATE, 1000.0, slice(0, 3))),
        "statistics.observation.state.ee_x",
    ),
    "actions in millimetres undeclared": (
        with_statistics(action=scaled(ACTION, 1000.0, slice(0, 3))),
        "statistics.action.dx",
    ),
    "statistics of another robot": (
        with_statistics(state=scaled(STATE, 0.45, slice(0, 2))),
        "statistics.observation.state.ee_x",
    ),
    "statistics of swapped dimensions": (
        with_statistics(state=reordered(STATE, [2, 1, 0, *range(3, 10)])),
        "statistics.observation.state.ee_x",
    ),
    "extremes for quantiles": (
        with_statistics(state=replace(STATE, q01=STATE.min, q99=STATE.max)),
        "statistics.observation.state",
    ),
    "q01 and q99 swapped": (
        with_statistics(action=replace(ACTION, q01=ACTION.q99, q99=ACTION.q01)),
        "statistics.action.dx",
    ),
    "variance for standard deviation": (
        with_statistics(state=replace(STATE, std=tuple(100 * v for v in STATE.std))),
        "statistics.observation.state.ee_x",
    ),
    "absolute poses for displacements": (
        with_statistics(action=replace(ACTION, **{name: (0.5,) * 3 + getattr(ACTION, name)[3:] for name in FLOATS})),
        "statistics.action.dx",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_contract_with_it_is_refused_by_name(mistake: str) -> None:
    contract, field = MISTAKES[mistake]
    assert field in {found.field for found in check(contract, FR3)}


def test_degrees_and_millimetres_are_guessed() -> None:
    degrees = scaled(ACTION, 180 / np.pi, slice(3, 6))
    degrees = replace(degrees, **{name: (*getattr(degrees, name)[:3], 8.0, 8.0, 8.0, 1.0) for name in ("q99", "max")})
    said = {found.field: str(found) for found in check(with_statistics(action=degrees), FR3)}
    assert "in degrees?" in said["statistics.action.rx"]
    millimetres = with_statistics(state=scaled(STATE, 1000.0, slice(0, 3)))
    assert (
        "in millimetres?"
        in {found.field: str(found) for found in check(millimetres, FR3)}["statistics.observation.state.ee_x"]
    )


Damage = Callable[[Observation], Any]


def images(change: Callable[[Any], Any]) -> Damage:
    return lambda o: replace(o, images={name: change(image) for name, image in o.images.items()})


MISFITS: dict[str, tuple[Damage, type[Exception], str]] = {
    "another resolution": (images(lambda v: v[::2, ::2]), ContractError, "16x16"),
    "a camera too few": (lambda o: replace(o, images={"front": o.images["front"]}), ContractError, "wrist"),
    "a camera too many": (lambda o: replace(o, images=o.images | {"third": o.images["front"]}), ContractError, "third"),
    "channels first": (images(lambda v: v.transpose(2, 0, 1)), ValueError, r"\(H, W, 3\)"),
    "images between 0 and 1": (images(lambda v: v / np.float32(255)), ValueError, "uint8"),
    "an alpha channel": (images(lambda v: v[:, :, [0, 1, 2, 0]]), ValueError, "16, 4"),
    "float64 state": (lambda o: replace(o, state=o.state.astype(np.float64)), ValueError, "float32"),
    "a batch dimension": (lambda o: replace(o, state=o.state[None]), ValueError, r"\(S,\)"),
    "NaN in the state": (lambda o: replace(o, state=o.state * np.float32(np.nan)), ValueError, "non-finite"),
    "state too short": (lambda o: replace(o, state=o.state[:7]), ContractError, "10 numbers, found 7"),
}  # fmt: skip


@pytest.mark.parametrize("misfit", MISFITS)
def test_an_observation_with_it_is_refused_by_name(artifact: "TinyArtifact", misfit: str) -> None:
    damage, error, said = MISFITS[misfit]
    with pytest.raises(error, match=said):
        ExportedPolicy(artifact.path, verify=False).predict(damage(artifact.observation()))


LATE = {
    "a chunk at another rate": (ActionChunk(np.zeros((8, 7), np.float32), 0, 0.2), "chunk_wrong_rate"),
    "a chunk for another arm": (ActionChunk(np.zeros((8, 8), np.float32), 0, 0.1), "chunk_wrong_width"),
    "a clock that runs ahead": (ActionChunk(np.zeros((8, 7), np.float32), 10**12, 0.1), "chunk_from_the_future"),
    "a clock that lags": (ActionChunk(np.zeros((8, 7), np.float32), -(10**12), 0.1), "chunk_entirely_past"),
    "an answer of NaN": (ActionChunk(np.full((8, 7), np.nan, np.float32), 0, 0.1), "chunk_non_finite"),
    "an empty answer": (ActionChunk(np.zeros((0, 7), np.float32), 0, 0.1), "chunk_empty"),
}


@pytest.mark.parametrize("mistake", LATE)
def test_a_chunk_with_it_is_refused_by_name(mistake: str) -> None:
    chunk, name = LATE[mistake]
    assert ChunkBuffer(FR3.action).push(chunk, now_ns=10**9 // 2) == name


def _wider(s: FieldStatistics, share: float) -> FieldStatistics:
    """As of data that reached a little further."""
    width = np.array(s.max) - np.array(s.min)
    return replace(
        s,
        min=tuple((np.array(s.min) - share * width).tolist()),
        max=tuple((np.array(s.max) + share * width).tolist()),
    )


RIGHT: dict[str, PolicyContract] = {
    "as shipped": SHIPPED,
    "one camera": replace(SHIPPED, cameras=SHIPPED.cameras[:1]),
    "the other camera": replace(SHIPPED, cameras=SHIPPED.cameras[1:]),
    "cameras in another order": replace(SHIPPED, cameras=SHIPPED.cameras[::-1]),
    "a wide image": replace(SHIPPED, cameras=(CameraSpec("front", 160, 96),)),
    "a large image": replace(SHIPPED, cameras=(CameraSpec("front", 512, 512),)),
    "longer chunks": replace(SHIPPED, chunk_length=2 * SHIPPED.chunk_length),
    "one action a chunk": replace(SHIPPED, chunk_length=1, execute_steps=1),
    "looks at every step": replace(SHIPPED, execute_steps=1),
    "the whole chunk executed": replace(SHIPPED, execute_steps=SHIPPED.chunk_length),
    "another prompt": replace(SHIPPED, instruction_template="In: what should the robot do to {instruction}? Out:"),
    "no statistics yet": replace(SHIPPED, statistics={}),
    "statistics of few frames": with_statistics(state=replace(STATE, q01=STATE.min, q99=STATE.max, count=20)),
    "data that reached further": with_statistics(state=_wider(STATE, 0.3)),
    "slower demonstrations": with_statistics(action=scaled(ACTION, 0.2, slice(0, 3))),
    "a dimension that never moved": with_statistics(
        action=replace(ACTION, **{name: (0.0, *getattr(ACTION, name)[1:]) for name in FLOATS})
    ),
    "a gripper never closed": with_statistics(
        action=replace(ACTION, **{name: (*getattr(ACTION, name)[:6], 0.0 if name == "std" else 1.0) for name in FLOATS})
    ),
    "only the left half": with_statistics(
        state=replace(STATE, **{name: (getattr(STATE, name)[0], 0.1, *getattr(STATE, name)[2:]) for name in ("mean",)})
    ),
    "no preprocessing named": replace(SHIPPED, preprocessing={}),
    "everything normalized": with_statistics(action=replace(ACTION, mask=(True,) * 7)),
    "more frames": with_statistics(state=replace(STATE, count=10**9)),
}


@pytest.mark.parametrize("variant", RIGHT)
def test_what_is_right_passes(variant: str) -> None:
    assert check(RIGHT[variant], FR3) == []


def test_there_are_enough_of_both() -> None:
    assert len(MISTAKES) + len(MISFITS) + len(LATE) >= 26
    assert len(RIGHT) >= 20


def test_an_edited_artifact_is_refused(artifact: "TinyArtifact", tmp_path: Path) -> None:
    """The mistake after export: a contract that was right for another file."""
    replace(artifact.contract(), robot="ur5e").save(artifact.path / "contract.json")
    with pytest.raises(Exception, match=r"contract\.json has SHA-256"):
        ExportedPolicy(artifact.path)
