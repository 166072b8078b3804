"""A LeRobot `Robot` whose motors are the simulated SO-101's; in a module of the name by which LeRobot finds it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lerobot.robots.config import RobotConfig
from lerobot.robots.robot import Robot
from lerobot.robots.utils import ensure_safe_goal_position
from numpy.typing import NDArray

from volar.robots.body import JointCommand
from volar.robots.so101 import SO101
from volar.sim.world import TaskWorld

MOTORS = (*SO101.joint_names, "gripper")
TICK_S = 0.01


@RobotConfig.register_subclass("simulated_so101")
@dataclass(kw_only=True)
class SimulatedSO101Config(RobotConfig):
    use_degrees: bool = True
    max_relative_target: float | None = None
    size: list[int] = field(default_factory=lambda: [96, 64])


class SimulatedSO101(Robot):
    """Motors of 4096 steps with a calibrated range; each read of the bus takes one control period."""

    config_class, name = SimulatedSO101Config, "simulated_so101"
    broken: Exception | None = None
    log: list[str] = []  # noqa: RUF012, of all of them: `control` makes its own

    def __init__(self, config: SimulatedSO101Config) -> None:
        super().__init__(config)
        self.config = config
        self.world = TaskWorld("reach", "so101", {"front": (config.size[0], config.size[1])})
        self.world.reset(3)
        self.now_ns, self._connected = 0, False
        self._rng = np.random.default_rng(0)
        self._frame = self.world.body.images()["front"]  # OpenGL belongs to one thread, so the others add noise to it

    @property
    def observation_features(self) -> dict[str, Any]:
        return {f"{motor}.pos": float for motor in MOTORS} | {"front": (self.config.size[1], self.config.size[0], 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        return {f"{motor}.pos": float for motor in MOTORS}

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        return bool(self.calibration)

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def disconnect(self) -> None:
        speed = float(np.abs(self.world.body.joint_state().dq).max())
        self.log.append(f"disconnected at {'rest' if speed < 0.05 else speed}")
        self._connected = False
        self.world.close()

    def _per_radian(self, motor: str) -> float:
        if self.config.use_degrees:
            return 180 / np.pi
        entry = self.calibration[motor]
        half = (entry.range_max - entry.range_min) / 2 * 2 * np.pi / 4095
        return (-100.0 if entry.drive_mode else 100.0) / half

    def _jaw_percent_per_m(self) -> float:
        entry = self.calibration["gripper"]
        return 100.0 / ((entry.range_max - entry.range_min) * 2 * np.pi / 4095 * SO101.gripper_m_per_unit)

    def _positions(self) -> dict[str, float]:
        state = self.world.body.joint_state()
        found = {n: float(q) * self._per_radian(n) for n, q in zip(SO101.joint_names, state.q, strict=True)}
        return found | {"gripper": state.gripper_width_m * self._jaw_percent_per_m()}

    def get_observation(self) -> dict[str, Any]:
        self.world.advance(TICK_S)
        self.now_ns += round(TICK_S * 1e9)
        if self.broken is not None:
            raise self.broken
        return {f"{k}.pos": v for k, v in self._positions().items()} | {"front": self._camera()}

    def _camera(self) -> NDArray[np.uint8]:
        noise = self._rng.integers(0, 4, self._frame.shape, np.uint8)
        return np.asarray(np.minimum(self._frame, 251) + noise, np.uint8)

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        goal = {key.removesuffix(".pos"): value for key, value in action.items()}
        if self.config.max_relative_target is not None:
            here = self._positions()
            goal = ensure_safe_goal_position(
                {key: (value, here[key]) for key, value in goal.items()}, self.config.max_relative_target
            )
        q = np.array([goal[name] / self._per_radian(name) for name in SO101.joint_names])
        zero = np.zeros(len(q))
        self.world.body.send(JointCommand(q, zero, zero, goal["gripper"] / self._jaw_percent_per_m()))
        return {f"{key}.pos": value for key, value in goal.items()}
