"""Joint positions in LeRobot's units, as its arms record them, to a robot's own: radians, and the gripper's opening.

What LeRobot's units are, and where their zeros lie: `robots/joint_units.py`.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from volar.datasets.lerobot_format import DatasetInfo, readable, vectors
from volar.datasets.lerobot_layout import CONTRACT, DatasetError, feature_names, parquet_file
from volar.datasets.statistics import field_statistics
from volar.robots.contract import PolicyContract
from volar.robots.joint_units import RADIANS, JointUnits
from volar.robots.lerobot_contract import ACTION, STATE, joint_order, told_units
from volar.robots.plausibility import SLACK, implausible
from volar.robots.spec import RobotSpec, load_robot

Vectors = NDArray[np.float32]

_WIDEST = 4.0  # openings of the robot's own: a jaw may open farther than the widest that a policy here can tell it


@dataclass(frozen=True)
class ToldJoints:
    """What somebody says of a dataset, see `told_units`."""

    robot: str
    unit: str | None = None
    gripper: tuple[float, float] | None = None
    calibration: Path | None = None


@dataclass(frozen=True)
class RobotJoints:
    """`state_order`, `action_order`: (J + 1,) where the robot's joints and then its gripper stand in the dataset."""

    robot: RobotSpec
    units: JointUnits
    state_order: tuple[int, ...]
    action_order: tuple[int, ...]

    @staticmethod
    def of(info: DatasetInfo, told: ToldJoints) -> "RobotJoints":
        """Raises as `load_robot`, `told_units` and `joint_order`, and `DatasetError` where the numbers do not fit."""
        if (info.root / CONTRACT).is_file():
            fix = "leave robot= out, or remove the file if it is wrong"
            raise DatasetError(f"{info.root} has a {CONTRACT}, which says what its numbers mean: {fix}")
        robot = load_robot(told.robot)
        units = told_units(info.root, robot.joint_names, told.unit, told.gripper, told.calibration)
        orders = []
        for key in (STATE, ACTION):
            info.size(key)  # raises where there is none
            names = feature_names(info.features[key])
            fix = "contract=FILE says what other numbers mean (docs/lerobot.md)"
            orders.append(joint_order(names, robot, f"{info.root}: the names of {key}", fix))
        joints = RobotJoints(robot, units, *orders)
        joints._require_fit(info)
        return joints

    def contract(self, rate_hz: float) -> PolicyContract:
        """Without cameras and statistics."""
        return PolicyContract(
            robot=self.robot.name,
            action=self.robot.joint_action(float(rate_hz)),
            state_names=self.robot.joint_state_names,
            state_units=self.robot.joint_state_units,
            cameras=(),
            chunk_length=1,
            execute_steps=1,
        )

    @property
    def facts(self) -> dict[str, str]:
        """What was done, to be kept with the dataset."""
        return {"robot": self.robot.name, "units": json.dumps(asdict(self.units), sort_keys=True)}

    def state(self, native: Vectors) -> Vectors:
        """(T, J + 1) in the dataset's order and units -> joints [rad], gripper's width [m], at most the robot's."""
        values = self.units.from_native(native[:, list(self.state_order)].astype(np.float64))
        values[:, -1] = values[:, -1].clip(max=1.0) * self.robot.gripper_width_max
        return values.astype(np.float32)

    def actions(self, native: Vectors) -> Vectors:
        """(T, J + 1) in the dataset's order and units -> joints [rad] and the opening, clipped to [0, 1]."""
        values = self.units.from_native(native[:, list(self.action_order)].astype(np.float64))
        values[:, -1] = values[:, -1].clip(0.0, 1.0)  # encoders pass their ends, jaws the robot's width
        return values.astype(np.float32)

    def _require_fit(self, info: DatasetInfo) -> None:
        """Raises `DatasetError` where the numbers, of all episodes, cannot be the robot's in those units."""
        native = {key: _finite(info, key) for key in (STATE, ACTION)}
        if not all(len(values) for values in native.values()):
            return  # nothing can be read, as the conversion says
        for key, order in ((STATE, self.state_order), (ACTION, self.action_order)):
            self._require_units(f"{info.root}: {key}", native[key][:, list(order)].astype(np.float64))
        statistics = {
            STATE: field_statistics(self.state(native[STATE])),
            ACTION: field_statistics(self.actions(native[ACTION])),
        }
        if found := implausible(replace(self.contract(info.fps), statistics=statistics), self.robot):
            said = "; ".join(f"{m.field}: {m.wanted} wanted, found {m.found}" for m in found)
            raise DatasetError(f"{info.root} in {self.units.unit} is not of {self.robot.name}: {said}")

    def _require_units(self, what: str, native: NDArray[np.float64]) -> None:
        """`native`: (N, J + 1) in the robot's order."""
        largest = float(np.abs(native[:, :-1]).max())
        turn = float(np.abs([self.robot.position_min, self.robot.position_max]).max())  # [rad]
        if self.units.unit != RADIANS and largest <= (1 + SLACK) * turn:
            raise DatasetError(f"{what}: no joint ever leaves +-{largest:.3g}, not in {self.units.unit}: unit=radians?")
        q01, q99 = np.quantile(self.units.from_native(native)[:, -1], (0.01, 0.99))
        if not -SLACK <= q01 <= 1 + SLACK or q99 > _WIDEST:
            low, high = np.quantile(native[:, -1], (0.01, 0.99))
            given = f"{self.units.gripper_closed:g},{self.units.gripper_open:g}"
            raise DatasetError(f"{what}: the gripper goes from {low:.4g} to {high:.4g}, not within gripper={given}")


def _finite(info: DatasetInfo, key: str) -> Vectors:
    """(N, D) of every file that can be read, without the frames that the conversion will refuse."""

    def pieces() -> Iterator[Vectors]:
        for path, _ in info.by_file():
            with suppress(DatasetError):  # the conversion says what is wrong
                yield vectors(readable(path, lambda p: parquet_file(p).read([key])), key).astype(np.float32)

    found = np.concatenate([np.zeros((0, info.size(key)), np.float32), *pieces()])
    kept: Vectors = found[np.isfinite(found).all(axis=1)]
    return kept
