"""What an episode did, control period by control period: kept in memory, written down only when it breaks."""

import traceback
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from volar.robots.body import JointCommand

if TYPE_CHECKING:
    import mujoco

STATES = 100  # the last second; older ones follow from the commands


class Trace:
    """`commands`: every one so far. `reason` and `traceback`: what ended the episode, empty while nothing has."""

    def __init__(self) -> None:
        self.commands: list[JointCommand] = []
        self.reason, self.traceback = "", ""
        self._states: deque[tuple[NDArray[np.float64], ...]] = deque(maxlen=STATES)

    def state(self, data: "mujoco.MjData") -> None:
        """Remembers the state after a control period."""
        self._states.append((data.qpos.copy(), data.qvel.copy(), data.ctrl.copy()))

    def fail(self, error: Exception) -> None:
        """Remembers what ended the episode."""
        self.reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        self.traceback = "".join(traceback.format_exception(error))

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """`q`, `dq`, `ddq` (T, J) and `gripper_width_m` (T,) of the commands; `qpos`, `qvel`, `ctrl` (S, ...) of the
        last control periods, S <= `STATES`."""
        commands = {name: np.array([getattr(c, name) for c in self.commands]) for name in ("q", "dq", "ddq")}
        widths = np.array([command.gripper_width_m for command in self.commands])
        states = {name: np.array([s[i] for s in self._states]) for i, name in enumerate(("qpos", "qvel", "ctrl"))}
        return {**commands, "gripper_width_m": widths, **states}
