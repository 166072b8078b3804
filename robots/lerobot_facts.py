"""Tells what a LeRobot policy directory does not: which robot it drives, how often, and in which units.

Writes volar_facts.json beside the policy; after that `lerobot:DIR` is a policy for volar-control and volar-evaluate.
Names and rate come from the training dataset's meta/info.json, or as action_names=, state_names= and rate_hz=.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from volar.robots.command_line import run
from volar.robots.errors import UsageError, VolarError
from volar.robots.joint_units import PERCENT, UNITS
from volar.robots.lerobot_contract import ACTION, STATE, FactMissing, PolicyFacts, derive, told_units
from volar.robots.lerobot_statistics import read_json
from volar.robots.spec import load_robot

EXAMPLES = (
    "python -m volar.robots.lerobot_facts policy=outputs/act/pretrained_model robot=so101 dataset=data/pick "
    "unit=degrees gripper=0,35",
    "python -m volar.robots.lerobot_facts policy=outputs/act/pretrained_model robot=fr3 dataset=runs/data",
    "python -m volar.robots.lerobot_facts policy=DIR robot=so101 dataset=data/pick unit=range_m100_100 "
    "gripper=0,35 calibration=~/.cache/huggingface/lerobot/calibration/robots/so_follower/arm.json cameras.top=front",
)


@dataclass(frozen=True)
class FactsConfig:
    """Settings of `python -m volar.robots.lerobot_facts`."""

    policy: Path = field(metadata={"help": "LeRobot policy directory (pretrained_model)"})
    robot: str = field(metadata={"help": "the robot its actions are for: fr3, so101, ur5e"})
    dataset: Path | None = field(default=None, metadata={"help": "the LeRobot dataset it was trained on"})
    rate_hz: float | None = field(default=None, metadata={"help": "actions a second; by default the dataset's fps"})
    action_names: tuple[str, ...] = field(default=(), metadata={"help": "by default the dataset's"})
    state_names: tuple[str, ...] = field(default=(), metadata={"help": "by default the dataset's"})
    unit: str | None = field(default=None, metadata={"help": f"of joint positions: {', '.join(UNITS)}"})
    gripper: tuple[float, float] | None = field(
        default=None, metadata={"help": "its values where closed, and where open as wide as the robot here goes"}
    )
    calibration: Path | None = field(default=None, metadata={"help": f"LeRobot's file of that arm, for {PERCENT}"})
    cameras: dict[str, str] = field(default_factory=dict, metadata={"help": "cameras.THEIRS=OURS where names differ"})
    execute_steps: int | None = field(default=None, metadata={"help": "of a chunk; by default at most half of it"})
    overwrite: bool = field(default=False, metadata={"help": "replace a volar_facts.json"})


def write_facts(config: FactsConfig) -> PolicyFacts:
    """Writes the file once everything fits. Raises `FactMissing` naming what is left to tell, and as `derive`."""
    from volar.robots.contract import require
    from volar.robots.policies import find_policy

    folder = find_policy(config.policy)
    info = read_json(config.dataset / "meta" / "info.json") if config.dataset else {}
    features = info.get("features", {})
    names = {
        key: given or tuple(features.get(key, {}).get("names") or ())
        for key, given in ((ACTION, config.action_names), (STATE, config.state_names))
    }
    rate_hz = config.rate_hz or info.get("fps")
    if rate_hz is None:
        raise FactMissing(folder, "how many actions a second it gives", "rate_hz=30, or dataset=DATASET")
    for key, option in ((ACTION, "action_names"), (STATE, "state_names")):
        if not names[key]:
            raise FactMissing(folder, f"what the numbers of {key} are", f"{option}=NAME,NAME,... or dataset=DATASET")
    robot = load_robot(config.robot)
    units = None
    if names[ACTION] != robot.action.names:
        units = told_units(folder, robot.joint_names, config.unit, config.gripper, config.calibration)
    if units is None and (config.unit or config.gripper or config.calibration):
        raise UsageError("unit=, gripper= and calibration= are for joint positions; these actions are the robot's own")
    facts = PolicyFacts(
        config.robot, float(rate_hz), names[ACTION], names[STATE], units, config.cameras, config.execute_steps
    )
    require(derive(folder, facts).contract, robot)
    if (folder / "volar_facts.json").exists() and not config.overwrite:
        raise VolarError(f"{folder} has a volar_facts.json; overwrite=true replaces it")
    print(f"facts: {facts.save(folder)}")
    return facts


def _main(config: FactsConfig) -> None:
    write_facts(config)


def main() -> int:
    return run("volar.robots.lerobot_facts", FactsConfig, _main, doc=__doc__, examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
