"""What the control loop needs of a robot body, simulated or real, and what it may send to one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from volar.robots.interface import ActionChunk, Observation
from volar.robots.spec import RobotSpec

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class JointState:
    """Measured state: `q` (J,) [rad], `dq` (J,) [rad/s], gripper width [m], stamp on the loop's clock [ns]."""

    q: Vector
    dq: Vector
    gripper_width_m: float
    stamp_ns: int


@dataclass(frozen=True)
class JointCommand:
    """What a robot is told for one control period; made by `SafetyFilter` only.

    `q` (J,) [rad], `dq` (J,) [rad/s], `ddq` (J,) [rad/s^2], gripper width [m].
    """

    q: Vector
    dq: Vector
    ddq: Vector
    gripper_width_m: float


class Body(Protocol):
    """A robot body: simulated (`volar.sim.sim_robot.SimRobot`) or real.

    Optional: `image_stamps() -> Mapping[str, int]`, when the newest frame of each camera was captured, on the loop's
    clock [ns]; called in every tick, so it must be cheap. Without it nobody notices a camera that has fallen silent
    before its image is found to repeat.
    And `taken() -> JointState`, the state measured when what `images` returned last was captured, stamped with that
    time: where images travel, an observation is of then, not of now. Without it they count as taken when asked for.
    """

    @property
    def spec(self) -> RobotSpec: ...

    def joint_state(self) -> JointState: ...

    def images(self) -> Mapping[str, NDArray[np.uint8]]:
        """Current camera images, (H, W, 3) each; called only when an observation is taken."""
        ...

    def send(self, command: JointCommand) -> None: ...


class ChunkSource(Protocol):
    """Where the control loop gets its chunks: a policy in this process, in another, or remote.

    `submit` must return at once; `poll` returns each chunk once, when it is there. Optional: two properties, `failure`,
    why no chunk will ever come any more, None while one may, and `error`, the latest reason why there was none; and
    `submit_after(observation, prefix)`, where `takes_prefix` is true, called in place of `submit` with the
    `ActionPrefix` that is executed meanwhile.
    """

    def submit(self, observation: Observation) -> None: ...

    def poll(self, now_ns: int) -> ActionChunk | None: ...

    @property
    def pending(self) -> bool:
        """True from `submit` until its chunk has been polled or given up."""
        ...
