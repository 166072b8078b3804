"""The contract of a LeRobot policy directory, from its files alone: no torch, no LeRobot, no weights.

`config.json` says cameras, sizes and chunks, the processors how values are normalized. What they do not say (which
robot, how often, what the numbers of a state and an action are) stands in `volar_facts.json` beside them:

    python -m volar.robots.lerobot_facts policy=DIR robot=so101 dataset=DATASET unit=degrees gripper=0,35
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.errors import VolarError
from volar.robots.joint_units import UNITS, JointUnits, half_ranges_deg, read_calibration
from volar.robots.lerobot_statistics import PREPROCESSOR, read_json, require_statistics, steps
from volar.robots.spec import RobotSpec, load_robot

FACTS = "volar_facts.json"
STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
TELL: Final = "python -m volar.robots.lerobot_facts policy=DIR robot=so101 dataset=DATASET unit=degrees gripper=0,35"


class FactMissing(VolarError):
    """Something that a LeRobot policy's files do not say, and that nobody has told."""

    def __init__(self, folder: Path, what: str, how: str) -> None:
        super().__init__(f"{folder} does not say {what}; tell it: {how}")


@dataclass(frozen=True)
class PolicyFacts:
    """`volar_facts.json`. `action_names`, `state_names`: as in the dataset's `meta/info.json`, in its order.

    `units`: of joint positions; None for a policy whose names are the robot's own (`dx`, ... `gripper`). `cameras`:
    the dataset's camera -> the robot's, where they differ. `execute_steps`: how many actions of a chunk are executed
    before the next is asked for; None: half a chunk, so that the next one can arrive, or what the policy says if less.
    """

    robot: str
    rate_hz: float
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    units: JointUnits | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    execute_steps: int | None = None

    def save(self, folder: Path) -> Path:
        path = folder / FACTS
        path.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")
        return path

    @staticmethod
    def load(folder: Path) -> "PolicyFacts":
        """Raises `FactMissing` where the file, or a field of it, is missing; `VolarError` when it is damaged."""
        if not (folder / FACTS).is_file():
            raise FactMissing(folder, "which robot it drives, how often, and in which units", TELL)
        raw = read_json(folder / FACTS)
        known = {item.name for item in fields(PolicyFacts)}
        if unknown := sorted(raw.keys() - known):
            raise VolarError(f"{folder / FACTS} has no field {', '.join(unknown)} (fields: {', '.join(sorted(known))})")
        for name in ("robot", "rate_hz", "action_names", "state_names"):
            if name not in raw:
                raise FactMissing(folder, f"{name!r} in {FACTS}", TELL)
        try:
            names = {name: tuple(raw[name]) for name in ("action_names", "state_names")}
            units = raw.get("units")
            if units is not None:
                units = JointUnits(**units | {"half_ranges_deg": tuple(units.get("half_ranges_deg", ()))})
            return PolicyFacts(**raw | names | {"units": units})
        except TypeError as error:
            raise VolarError(f"{folder / FACTS} cannot be read: {error}") from error


@dataclass(frozen=True)
class LeRobotContract:
    """What the files and the facts come to. `images`: the policy's key before renaming -> the contract's camera.

    `state_order`, `action_order`: where the robot's joints and then its gripper stand in the policy's vectors, each
    (J + 1,); the identity where `units` is None. `observation_steps`: how many observations the policy looks at.
    `chunked`: it predicts chunks, else single actions.
    """

    contract: PolicyContract
    images: Mapping[str, str]
    units: JointUnits | None
    state_order: tuple[int, ...]
    action_order: tuple[int, ...]
    observation_steps: int
    chunked: bool
    width_max_m: float

    def policy_state(self, state: NDArray[np.float32]) -> NDArray[np.float32]:
        """The contract's state (S,) in the policy's order and units."""
        if self.units is None:
            return state.copy()
        found = np.empty(len(state), np.float32)
        q = state[:-1].astype(np.float64)
        found[list(self.state_order)] = self.units.to_native(q, float(state[-1]) / self.width_max_m)
        return found

    def actions(self, native: NDArray[np.float32]) -> NDArray[np.float32]:
        """The policy's actions (H, A) in the contract's order and units."""
        if self.units is None:
            return native.astype(np.float32)
        ordered = native[:, list(self.action_order)].astype(np.float64)
        return self.units.from_native(ordered).astype(np.float32)


def read_contract(folder: Path) -> PolicyContract:
    """The contract of the LeRobot policy in `folder`; raises as `derive`."""
    return derive(folder, PolicyFacts.load(folder)).contract


def derive(folder: Path, facts: PolicyFacts) -> LeRobotContract:
    """Raises `MissingStatistics`, `FactMissing`, or a `VolarError` naming what does not fit the robot."""
    config = read_json(folder / "config.json")
    for key in ("type", "input_features", "output_features"):
        if not config.get(key):
            raise VolarError(f"{folder / 'config.json'} has no {key!r}; it configures no LeRobot policy")
    statistics_sha256 = require_statistics(folder, config)
    robot = load_robot(facts.robot)
    _check_sizes(folder, config, facts)
    length, execute, chunked = _chunk(config, facts.execute_steps)
    of_joints = facts.action_names != robot.action.names
    if of_joints and facts.units is None:
        raise FactMissing(folder, "the units of its joint positions", "unit=degrees gripper=CLOSED,OPEN")
    action = robot.joint_action(facts.rate_hz) if of_joints else replace(robot.action, rate_hz=facts.rate_hz)
    images, cameras = _cameras(folder, config, facts.cameras)
    contract = PolicyContract(
        robot=facts.robot,
        action=action,
        state_names=robot.joint_state_names if of_joints else robot.state_names,
        state_units=robot.joint_state_units if of_joints else robot.state_units,
        cameras=cameras,
        chunk_length=length,
        execute_steps=execute,
        preprocessing=_preprocessing(config, facts, statistics_sha256),
    )
    if of_joints:
        whose, fix = "the policy's joints", f"name them so in {FACTS}, in the policy's order"
        state, order = (joint_order(n, robot, whose, fix) for n in (facts.state_names, facts.action_names))
        if facts.units is not None and facts.units.half_ranges_deg and len(facts.units.half_ranges_deg) != robot.joints:
            raise VolarError(f"{len(facts.units.half_ranges_deg)} calibrated ranges for the {robot.joints} joints")
    elif facts.state_names != robot.state_names:
        raise VolarError(f"state_names: policy has {facts.state_names}, {robot.name} gives {robot.state_names}")
    else:
        state, order = tuple(range(len(facts.state_names))), tuple(range(action.size))
    units = facts.units if of_joints else None
    history = int(config.get("n_obs_steps") or 1)
    return LeRobotContract(contract, images, units, state, order, history, chunked, robot.gripper_width_max)


def _check_sizes(folder: Path, config: Mapping[str, Any], facts: PolicyFacts) -> None:
    """The features are those that a body has: a state, cameras, one action; as long as the facts' names."""
    path, inputs, outputs = folder / "config.json", config["input_features"], config["output_features"]
    strange = sorted(key for key, value in inputs.items() if value["type"] not in ("STATE", "VISUAL"))
    if strange:
        raise VolarError(f"{path}: no robot has the inputs {', '.join(strange)}; only images and {STATE}")
    states = [key for key, value in inputs.items() if value["type"] == "STATE"]
    if states != [STATE] or list(outputs) != [ACTION]:
        raise VolarError(f"{path}: a policy here maps {STATE} to {ACTION}, this one {states} to {sorted(outputs)}")
    for key, names, feature in (
        (STATE, facts.state_names, inputs[STATE]),
        (ACTION, facts.action_names, outputs[ACTION]),
    ):
        if [len(names)] != list(feature["shape"]):
            raise VolarError(f"{path}: {key} has shape {feature['shape']}, {FACTS} names {len(names)}: {names}")


def _chunk(config: Mapping[str, Any], execute_steps: int | None) -> tuple[int, int, bool]:
    """Chunk length, steps to execute of it, and whether there are chunks at all. Checked again with the weights."""
    # ACT, SmolVLA, pi0: the whole chunk comes back; VQ-BeT; Diffusion, Multi-task DiT: what is to be executed of it.
    length = next((config[k] for k in ("chunk_size", "action_chunk_size", "n_action_steps") if config.get(k)), None)
    if length is None:
        return 1, 1, False
    if execute_steps is None:
        execute_steps = min(int(config.get("n_action_steps") or length), max(1, int(length) // 2))
        if int(config.get("n_obs_steps") or 1) > 1:
            execute_steps = 1  # its observations were one step apart
    if not 1 <= execute_steps <= length:
        raise VolarError(f"execute_steps={execute_steps} must be from 1 to {length}, the length of a chunk")
    return int(length), execute_steps, True


def _cameras(
    folder: Path, config: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[dict[str, str], tuple[CameraSpec, ...]]:
    """The policy's image keys before renaming -> cameras, and the cameras with their sizes, in the policy's order."""
    renamed = {
        new: old
        for step in steps(folder, PREPROCESSOR)
        if step.get("registry_name") == "rename_observations_processor"
        for old, new in (step["config"].get("rename_map") or {}).items()
    }
    images, cameras = {}, []
    for key, feature in config["input_features"].items():
        if feature["type"] != "VISUAL" or "empty_camera" in key:  # VLAs fill the latter in themselves
            continue
        channels, height, width = feature["shape"]
        if channels != 3:
            raise VolarError(f"{folder / 'config.json'}: {key} has {channels} channels; only RGB images are supported")
        raw = renamed.get(key, key)
        camera = raw.removeprefix(IMAGES)
        images[raw] = names.get(camera, camera)
        cameras.append(CameraSpec(images[raw], width, height))
    unused = sorted(names.keys() - {raw.removeprefix(IMAGES) for raw in images})
    if unused or len(set(images.values())) < len(images):
        known = ", ".join(raw.removeprefix(IMAGES) for raw in images)
        raise VolarError(f"cameras={dict(names)} must name each of the policy's cameras once: {known or 'it has none'}")
    return images, tuple(cameras)


def joint_order(names: tuple[str, ...], robot: RobotSpec, whose: str, fix: str) -> tuple[int, ...]:
    """Where the robot's joints, and then the gripper, are among those names (LeRobot's end in `.pos`).

    Raises `VolarError` saying `whose` names are others, and the `fix`.
    """
    bare = [name.removesuffix(".pos") for name in names]
    wanted = (*robot.joint_names, "gripper")
    if sorted(bare) != sorted(wanted):
        raise VolarError(f"{whose} {', '.join(names)} are not those of {robot.name}: {', '.join(wanted)}; {fix}")
    return tuple(bare.index(name) for name in wanted)


def told_units(
    folder: Path,
    joints: tuple[str, ...],
    unit: str | None,
    gripper: tuple[float, float] | None,
    calibration: Path | None,
) -> JointUnits:
    """What `unit=`, `gripper=` and `calibration=` say of joint positions in a folder. Raises as `JointUnits`.

    `FactMissing` where one of the first two is not told.
    """
    if unit is None:
        raise FactMissing(folder, "the units of its joint positions", f"unit= one of {', '.join(UNITS)}")
    if gripper is None:
        raise FactMissing(folder, "which gripper values are closed and open", "gripper=CLOSED,OPEN, for example 0,35")
    ranges: tuple[float, ...] = ()
    if calibration is not None:
        ranges = half_ranges_deg(read_calibration(calibration.expanduser()), joints)
    return JointUnits(unit, *gripper, half_ranges_deg=ranges)


def _preprocessing(config: Mapping[str, Any], facts: PolicyFacts, statistics_sha256: str) -> dict[str, str]:
    """What else decides the numbers, so that the contract's hash moves with it."""
    modes = {f"normalization.{kind}": mode for kind, mode in (config.get("normalization_mapping") or {}).items()}
    told = {} if facts.units is None else {"units": json.dumps(asdict(facts.units), sort_keys=True)}
    names = {"action_names": ",".join(facts.action_names), "state_names": ",".join(facts.state_names)}
    return {
        "image": "rgb uint8, no crop",
        "lerobot.type": config["type"],
        "lerobot.statistics_sha256": statistics_sha256,
        **{f"lerobot.{key}": value for key, value in (modes | told | names).items()},
    }
