"""Under what an episode is run: how the policy is told, what randomization draws, how commands reach the arm.

The same scenes are run under each condition, so that every one of them is paired with the standard one.
"""

from typing import TYPE_CHECKING

from volar.robots.errors import Unknown, UsageError
from volar.sim.randomization import PRESETS, Randomization

if TYPE_CHECKING:
    from volar.sim.world import TaskWorld

STANDARD = "standard"
WRONG_INSTRUCTION = "wrong_instruction"
HELD_OUT_INSTRUCTION = "held_out_instruction"
TOLD = (STANDARD, WRONG_INSTRUCTION, HELD_OUT_INSTRUCTION)
THROUGH_ROS2 = "through_ros2"
_RANDOMIZATION = "randomization:"


def under_randomization(name: str) -> str:
    """The condition in which the standard instruction is given under that randomization."""
    return _RANDOMIZATION + name


def randomization_of(condition: str, standard: str) -> str:
    """What randomization an episode under `condition` has, where the standard condition has `standard`."""
    return condition.removeprefix(_RANDOMIZATION) if condition.startswith(_RANDOMIZATION) else standard


def check_condition(condition: str) -> None:
    """Raises `Unknown` for a condition that does not exist."""
    if condition not in (*TOLD, THROUGH_ROS2) and not condition.startswith(_RANDOMIZATION):
        raise Unknown("condition", condition, (*TOLD, THROUGH_ROS2, *map(under_randomization, PRESETS)))


def told(world: "TaskWorld", condition: str) -> str:
    """The instruction that the policy gets in the world's current episode."""
    if condition == WRONG_INSTRUCTION:
        return world.wrong_instruction()
    return world.rephrased() if condition == HELD_OUT_INSTRUCTION else world.instruction


def randomizations(text: str) -> tuple[str, ...]:
    """`none,visual,my.yaml` -> its names, the first of which is the standard condition's; `all`: every preset.

    Raises `Unknown` for a preset that does not exist, `UsageError` for a file that does not or one named twice.
    """
    names = PRESETS if text == "all" else tuple(part.strip() for part in text.split(","))
    for name in names:
        Randomization.of(name)
        if names.count(name) > 1:
            raise UsageError(f"randomization={text} names {name} twice")
    return names
