"""The one object that dataset, policy, artifact and robot must agree on, hashed by content."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from volar.robots.action_space import ActionSpec
from volar.robots.errors import VolarError
from volar.robots.spec import RobotSpec

FORMAT_VERSION = 1
# How the images come that a body hands over. A policy that wants something else would see another world.
PREPROCESSING = {"image": "rgb uint8, no crop"}


@dataclass(frozen=True)
class CameraSpec:
    """A camera a policy wants: its name and image size [pixels]."""

    name: str
    width: int
    height: int


@dataclass(frozen=True)
class FieldStatistics:
    """Per-dimension statistics of one vector, over every frame of a dataset.

    `mask`: False where a dimension passes through the normalizer unchanged (OpenVLA's rule for the
    gripper). All are tuples of one length; a non-finite value raises `ValueError`.
    """

    q01: tuple[float, ...]
    q99: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    mask: tuple[bool, ...]
    count: int

    def __post_init__(self) -> None:
        size = len(self.q01)
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "count":
                continue
            if len(value) != size:
                raise ValueError(f"statistics {item.name} has {len(value)} entries, q01 has {size}")
            if not all(math.isfinite(v) for v in value):
                raise ValueError(f"statistics {item.name} holds a non-finite value: {value}")


@dataclass(frozen=True)
class PolicyContract:
    """Everything a policy assumes about the body and the data. docs/lerobot.md shows one.

    `state_names`/`state_units`: (S,). `statistics`: for `action` and `observation.state`; empty only
    for a dataset still being written. `chunk_length`: H; `execute_steps`: how many of the H steps are
    executed before the next observation is asked for. `preprocessing`: named facts such as the
    resize rule. `robot`: the `RobotSpec.name` the actions are for.
    """

    robot: str
    action: ActionSpec
    state_names: tuple[str, ...]
    state_units: tuple[str, ...]
    cameras: tuple[CameraSpec, ...]
    chunk_length: int
    execute_steps: int
    statistics: Mapping[str, FieldStatistics] = field(default_factory=dict)
    instruction_template: str = "{instruction}"
    preprocessing: Mapping[str, str] = field(default_factory=lambda: dict(PREPROCESSING))
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"contract format {self.format_version} is not {FORMAT_VERSION}; use the volar that wrote it"
            )
        if len(self.state_names) != len(self.state_units):
            raise ValueError(f"{len(self.state_names)} state names but {len(self.state_units)} units")
        if not 1 <= self.execute_steps <= self.chunk_length:
            raise ValueError(f"execute_steps {self.execute_steps} is not in 1..{self.chunk_length} (chunk_length)")
        if "{instruction}" not in self.instruction_template:
            raise ValueError(f"instruction_template {self.instruction_template!r} lacks {{instruction}}")
        sizes = {"action": self.action.size, "observation.state": len(self.state_names)}
        for key, value in self.statistics.items():
            if key not in sizes:
                raise ValueError(f"statistics for {key!r}, choices: {', '.join(sizes)}")
            if len(value.q01) != sizes[key]:
                raise ValueError(f"statistics for {key} have {len(value.q01)} dimensions, the contract {sizes[key]}")

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, shortest floats; equal contracts give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @staticmethod
    def from_json(text: str) -> "PolicyContract":
        """Inverse of `to_json`. Raises `ContractError` naming unknown and missing fields."""
        try:
            raw = json.loads(text)
            _require_fields(raw)
            return PolicyContract(
                **_only(PolicyContract, raw)
                | {
                    "action": ActionSpec(**_tuples(_only(ActionSpec, raw["action"]))),
                    "cameras": tuple(CameraSpec(**_only(CameraSpec, c)) for c in raw["cameras"]),
                    "state_names": tuple(raw["state_names"]),
                    "state_units": tuple(raw["state_units"]),
                    "statistics": {
                        key: FieldStatistics(**_tuples(_only(FieldStatistics, value)))
                        for key, value in raw.get("statistics", {}).items()
                    },
                }
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise ContractError(f"contract cannot be read: {error}") from error

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json() + "\n")

    @staticmethod
    def load(path: Path) -> "PolicyContract":
        if not path.is_file():
            raise ContractError(f"no contract at {path}; a volar dataset or policy carries one")
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ContractError(f"the contract {path} cannot be read: {error}") from error
        try:
            return PolicyContract.from_json(text)
        except ContractError as error:
            raise ContractError(f"{path}: {error}") from error


class ContractError(VolarError):
    """A contract that cannot be read, or that does not fit what it is used with."""


@dataclass(frozen=True)
class Mismatch:
    """One differing field: where, what the policy wants, what is there."""

    field: str
    wanted: object
    found: object

    def __str__(self) -> str:
        return f"{self.field}: policy wants {self.wanted}, found {self.found}"


def differences(a: PolicyContract, b: PolicyContract, ignore: tuple[str, ...] = ()) -> list[Mismatch]:
    """Every leaf field in which two contracts differ; `ignore` names top-level fields to skip."""

    def leaves(value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return {
                k: v for key, item in value.items() for k, v in leaves(item, f"{path}.{key}" if path else key).items()
            }
        return {path: value}

    left, right = (leaves({k: v for k, v in json.loads(c.to_json()).items() if k not in ignore}, "") for c in (a, b))
    keys = sorted(left.keys() | right.keys())
    return [Mismatch(k, left.get(k), right.get(k)) for k in keys if left.get(k) != right.get(k)]


def is_policys_own(fact: str) -> bool:
    """Whether an entry of `preprocessing` tells what a policy does itself (`normalization`, `network.image`,
    `lerobot.units` and their like): hashed with the rest, and no business of a body."""
    return fact == "normalization" or "." in fact


def check(contract: PolicyContract, robot: RobotSpec) -> list[Mismatch]:
    """Every field in which a policy's contract does not fit a robot; empty when it fits.

    A robot takes its own `action` or its `joint_action`, and gives its `state_names` or its `joint_state_names`.
    """
    found: list[Mismatch] = []

    def compare(name: str, wanted: object, have: object) -> None:
        if wanted != have:
            found.append(Mismatch(name, wanted, have))

    from volar.robots.plausibility import implausible

    compare("robot", contract.robot, robot.name)
    for name, rule in contract.preprocessing.items():
        if not is_policys_own(name):
            compare(f"preprocessing.{name}", rule, PREPROCESSING.get(name))
    joints = contract.action.kind == "joint_position"  # absolute, so that any rate is the robot's
    have = robot.joint_action(contract.action.rate_hz) if joints else robot.action
    for item in fields(ActionSpec):
        compare(f"action.{item.name}", getattr(contract.action, item.name), getattr(have, item.name))
    of_joints = contract.state_names == robot.joint_state_names
    compare("state_names", contract.state_names, robot.joint_state_names if of_joints else robot.state_names)
    compare("state_units", contract.state_units, robot.joint_state_units if of_joints else robot.state_units)
    for camera in contract.cameras:
        if camera.name not in robot.cameras:
            found.append(
                Mismatch(
                    f"cameras.{camera.name}", f"{camera.width}x{camera.height}", f"cameras {', '.join(robot.cameras)}"
                )
            )
    return found + implausible(contract, robot)


def require(contract: PolicyContract, robot: RobotSpec) -> None:
    """Raises `ContractError` listing every differing field when the policy does not fit the robot."""
    found = check(contract, robot)
    if found:
        raise ContractError(f"the policy does not fit robot {robot.name!r}: " + "; ".join(map(str, found)))


def _only(cls: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in fields(cls)}
    unknown = sorted(set(raw) - names)
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)} (fields: {', '.join(sorted(names))})")
    return dict(raw)


def _require_fields(raw: Any) -> None:
    """Raises `ContractError` naming every field that is missing, `action`'s too, so that one look mends a file."""

    def missing(cls: type, found: Any, prefix: str) -> list[str]:
        required = [item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING]
        return [prefix + name for name in required if name not in found]

    if not isinstance(raw, dict):
        raise ContractError(f"contract cannot be read: it holds {type(raw).__name__}, not an object of fields")
    lacking = missing(PolicyContract, raw, "")
    if isinstance(raw.get("action"), dict):
        lacking += missing(ActionSpec, raw["action"], "action.")
    if lacking:
        raise ContractError(f"contract lacks {', '.join(lacking)}")


def _tuples(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
