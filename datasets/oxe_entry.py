"""What Volar knows of one Open X-Embodiment dataset, and the few rules its entries in `oxe.py` are made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from volar.datasets.rlds import RldsEpisode
from volar.robots.action_space import ActionSpec

Array = NDArray[np.float32]
Named = tuple[tuple[str, str], ...]  # (name, unit) of each dimension

OBSERVATION, ACTION = "steps/observation/", "steps/action/"
NAMES = ("dx", "dy", "dz", "rx", "ry", "rz", "gripper")
FRANKA = "franka_panda"
# Bounds that only data which is not of an arm would leave: half a metre and half a turn in one step.
STEP_M, STEP_RAD = 0.5, float(np.pi)


@dataclass(frozen=True)
class OxeDataset:
    """One dataset, standardized.

    `tfds`: the names it has in `dataset_info.json`. `cameras`: role -> key below `steps/observation/`; roles are
    `primary`, `secondary`, `tertiary` and `wrist`, so that datasets can be mixed. `state`: (name, unit) of each
    dimension. `action`: meaning, rate and rotation convention. `gripper`: the rule that made `action`'s gripper of
    what is stored. `numbers`: episode -> state (T, S) and actions (T, A). `instruction`: the feature that holds it, or
    a function. `source`: where the facts come from.
    """

    tfds: tuple[str, ...]
    robot: str
    cameras: Mapping[str, str]
    state: Named
    action: ActionSpec
    gripper: str
    source: str
    numbers: Callable[[RldsEpisode], tuple[Array, Array]]
    instruction: str | Callable[[RldsEpisode], str] = OBSERVATION + "natural_language_instruction"


def delta(
    rate_hz: int,
    *,
    unit: Literal["physical", "controller"] = "physical",
    rotation: Literal["euler_xyz", "rotation_vector"] = "euler_xyz",
) -> ActionSpec:
    """7-D displacement in the base frame, gripper 1 = open. `controller`: a controller's input in [-1, 1], unscaled."""
    physical = unit == "physical"
    step_m, step_rad = (STEP_M, STEP_RAD) if physical else (1.0, 1.0)
    return ActionSpec(
        kind="ee_delta",
        names=NAMES,
        low=(-step_m,) * 3 + (-step_rad,) * 3 + (0.0,),
        high=(step_m,) * 3 + (step_rad,) * 3 + (1.0,),
        units=(("m",) * 3 + ("rad",) * 3 if physical else ("1",) * 6) + ("1",),
        rotation=rotation,
        rate_hz=rate_hz,
    )


def position() -> Named:
    return tuple((f"ee_{axis}", "m") for axis in "xyz")


def euler() -> Named:
    return tuple((f"ee_{name}", "rad") for name in ("roll", "pitch", "yaw"))


def axis_angle() -> Named:
    return tuple((f"ee_axis_angle_{axis}", "rad") for axis in "xyz")


def quaternion() -> Named:
    return tuple((f"ee_q{axis}", "1") for axis in "xyzw")


def joints(count: int) -> Named:
    return tuple((f"joint_{i + 1}", "rad") for i in range(count))


def gripper(unit: str = "1") -> Named:
    return (("gripper", unit),)


NO_STATE: Named = (("no_state", "1"),)  # a constant 0: the dataset holds no state


def no_state(episode: RldsEpisode) -> Array:
    return np.zeros((episode.steps, 1), np.float32)


def column(values: Any) -> Array:
    """(T,) or (T, 1) -> (T, 1) float32."""
    return np.asarray(values, dtype=np.float32).reshape(len(values), -1)[:, :1]


def stacked(*parts: Any) -> Array:
    """Columns side by side as (T, D) float32; a (T,) is one column."""
    return np.concatenate([np.asarray(x, np.float32).reshape(len(x), -1) for x in parts], axis=1)


def observed(episode: RldsEpisode, *keys: str) -> Array:
    return stacked(*(episode[OBSERVATION + key] for key in keys))


def moved(episode: RldsEpisode, opening: Any) -> Array:
    """RT-X's form of an action, `world_vector` and `rotation_delta`, with the gripper's opening (T,) or (T, 1)."""
    return stacked(episode[ACTION + "world_vector"], episode[ACTION + "rotation_delta"], opening)


def opened_by(closing: Any) -> Array:
    """Relative commands (T,), above 0.1 to close and below -0.1 to open -> the opening (T, 1) they leave, 1 or 0.

    Before the first command it is the opposite of what that command makes it; without one, open.
    """
    values = np.asarray(closing, dtype=np.float32).reshape(len(closing))
    command = np.where(values > 0.1, 0.0, 1.0)  # the state after a command
    given = np.abs(values) > 0.1
    if not given.any():
        return np.ones((len(values), 1), np.float32)
    last = np.maximum.accumulate(np.where(given, np.arange(len(values)), -1))
    first = command[np.argmax(given)]
    return column(np.where(last < 0, 1.0 - first, command[np.maximum(last, 0)]))


def inverted(closedness: Any) -> Array:
    """Closedness, clipped to [0, 1] -> opening (T, 1)."""
    return (1.0 - np.clip(column(closedness), 0.0, 1.0)).astype(np.float32)
