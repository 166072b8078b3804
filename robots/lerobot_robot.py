"""Any LeRobot `Robot` with position-controlled joints as a `Body`: the one module that drives LeRobot's robots.

A serial bus answers in milliseconds and at times not at all, so one thread owns it (`exchange`, again and again): it
sends the newest command, reads joints and cameras, and stamps them with the time before the read. The control loop
takes what is there and never waits; the stamps of a bus that fails grow old, and the loop stops the arm as
`stale_joint_state`.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.body import JointCommand, JointState
from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.robots.joint_units import DEGREES, PERCENT, JointUnits, half_ranges_deg
from volar.robots.spec import RobotSpec

POS: Final = ".pos"
CLAMPED: Final = 1e-3  # difference between asked and sent that counts, in the robot's units
FIRST_READ_S: Final = 10.0
Image = NDArray[np.uint8]


class LeRobotRobotError(VolarError):
    """A LeRobot robot that cannot be driven: not calibrated, other joints or cameras, a bus that does not answer."""


@dataclass(frozen=True)
class Clamp:
    """A target that the robot did not take as it was: its own limit (`max_relative_target`) came in between."""

    joint: str
    asked: float
    sent: float


class LeRobotBody:
    """`Body` over a connected, calibrated LeRobot robot; a context manager that owns its thread, not the robot.

    `units`: by default of the robot's configuration and calibration (`units_of`). `cameras`: LeRobot's name -> ours,
    where they differ. `clock`: the control loop's [ns]. Without `start`, call `exchange` yourself. `clamps` counts
    targets that were cut, `clamp` is the latest; `error` is what the bus raised last, None once it answers again.
    Raises `LeRobotRobotError` naming joints or units that are missing.
    """

    def __init__(
        self,
        robot: Any,
        spec: RobotSpec,
        *,
        units: JointUnits | None = None,
        cameras: Mapping[str, str] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        period_s: float = 0.01,
    ) -> None:
        self._robot, self._spec, self._clock, self._period_s = robot, spec, clock, period_s
        self._keys = tuple(f"{name}{POS}" for name in (*spec.joint_names, "gripper"))
        for what, features in (("observes", robot.observation_features), ("takes", robot.action_features)):
            if missing := [key for key in self._keys if key not in features]:
                raise LeRobotRobotError(f"{robot.name} {what} no {', '.join(missing)} (it has {', '.join(features)})")
        self._units = units or units_of(robot, spec)
        images = [key for key, value in robot.observation_features.items() if isinstance(value, tuple)]
        self._cameras = {key: (cameras or {}).get(key, key) for key in images}
        self._newest: tuple[JointState, dict[str, Image]] | None = None  # of one turn of the bus, replaced as one
        self._taken: JointState | None = None
        self._command: JointCommand | None = None
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.clamps, self.clamp = 0, None  # type: int, Clamp | None
        self.error: Exception | None = None

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    def joint_state(self) -> JointState:
        """The newest measurement. Raises `LeRobotRobotError` before the first."""
        return self._answered()[0]

    def images(self) -> Mapping[str, Image]:
        """The newest frames. Raises `LeRobotRobotError` before the first."""
        self._taken, images = self._answered()
        return images

    def taken(self) -> JointState:
        """The joint state of the same turn of the bus as the last `images`, stamped with the time before it."""
        return self.joint_state() if self._taken is None else self._taken

    def image_stamps(self) -> Mapping[str, int]:
        """When the newest frames were read; LeRobot's cameras raise by themselves when theirs is older than 0.5 s."""
        return {} if self._newest is None else dict.fromkeys(self._newest[1], self._newest[0].stamp_ns)

    def send(self, command: JointCommand) -> None:
        """Hands the command to the thread; a newer one takes the place of one not sent yet."""
        with self._lock:
            self._command = command
        self._wake.set()

    def require_cameras(self, contract: PolicyContract) -> None:
        """Raises `LeRobotRobotError` where a camera, or its size, is not what the policy wants."""
        have = {ours: self._robot.observation_features[key] for key, ours in self._cameras.items()}
        for camera in contract.cameras:
            found = have.get(camera.name)
            if found is None or tuple(found) != (camera.height, camera.width, 3):
                raise LeRobotRobotError(
                    f"camera {camera.name}: policy wants {camera.width}x{camera.height}, {self._robot.name} has "
                    f"{', '.join(f'{name} {size[1]}x{size[0]}' for name, size in have.items()) or 'no camera'}; set "
                    "width and height in the robot's configuration"
                )

    def exchange(self) -> None:
        """One turn of the bus: sends what is to be sent, reads. What the bus raises is kept in `error`."""
        with self._lock:
            command, self._command = self._command, None
        try:
            if command is not None:
                self._send(command)
            stamp_ns = self._clock()
            self._take(self._robot.get_observation(), stamp_ns)
            self.error = None
        except Exception as error:  # drivers raise what their bus raises; age of the stamps is what stops the arm
            self.error = error

    def start(self) -> None:
        """Starts the thread and waits for the first measurement. Raises `LeRobotRobotError` when none comes."""
        self._thread = threading.Thread(target=self._run, name="lerobot-bus", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + FIRST_READ_S
        while self._newest is None and time.monotonic() < deadline:
            time.sleep(0.001)
        if self._newest is None:
            self.close()
            raise LeRobotRobotError(f"{self._robot.name} does not answer: {self.error}")

    def close(self) -> None:
        """Sends the last command, if there is one left, and ends the thread; may be called twice."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _answered(self) -> tuple[JointState, dict[str, Image]]:
        if self._newest is None:
            raise LeRobotRobotError(f"{self._robot.name} has not answered yet: {self.error}")
        return self._newest

    def _run(self) -> None:
        while not self._closed or self._command is not None:
            self._wake.clear()
            self.exchange()
            self._wake.wait(self._period_s)

    def _send(self, command: JointCommand) -> None:
        opening = command.gripper_width_m / self._spec.gripper_width_max
        asked = dict(zip(self._keys, self._units.to_native(command.q, opening).tolist(), strict=True))
        sent = self._robot.send_action(dict(asked))
        for key, value in asked.items():
            if abs(sent.get(key, value) - value) > CLAMPED:
                self.clamps, self.clamp = self.clamps + 1, Clamp(key, value, float(sent[key]))

    def _take(self, observation: Mapping[str, Any], stamp_ns: int) -> None:
        native = np.array([float(observation[key]) for key in self._keys])
        *q, opening = self._units.from_native(native)
        before = None if self._newest is None else self._newest[0]
        dq: NDArray[np.float64] = np.zeros(len(q))
        if before is not None and stamp_ns > before.stamp_ns:
            dq = (np.array(q) - before.q) / ((stamp_ns - before.stamp_ns) / 1e9)
        images = {ours: np.asarray(observation[key], np.uint8) for key, ours in self._cameras.items()}
        state = JointState(np.array(q), dq, float(opening) * self._spec.gripper_width_max, stamp_ns)
        self._newest = state, images


def units_of(robot: Any, spec: RobotSpec) -> JointUnits:
    """Units of a robot that says so (`use_degrees`) and has a calibration; its gripper is 0 (closed) to 100.

    Raises `LeRobotRobotError` when either is not known.
    """
    use_degrees = getattr(robot.config, "use_degrees", None)
    if use_degrees is None:
        raise LeRobotRobotError(f"{robot.name} does not say use_degrees, so the units of its joints are not known")
    if not robot.calibration:
        raise LeRobotRobotError(
            f"{robot.name} has no calibration at {robot.calibration_fpath}: lerobot-calibrate "
            f"--robot.type={robot.config.type} --robot.id={robot.id} makes it"
        )
    ranges = half_ranges_deg(robot.calibration, (*spec.joint_names, "gripper"))
    # The jaw's own calibrated range says how much of it is the opening the tasks use.
    span_m = np.radians(2 * abs(ranges[-1])) * spec.gripper_m_per_unit
    open_percent = 100.0 * spec.gripper_width_max / float(span_m)
    return JointUnits(DEGREES if use_degrees else PERCENT, 0.0, open_percent, () if use_degrees else ranges[:-1])


def open_robot(path: Path) -> Any:
    """The LeRobot robot of a JSON file with what `--robot.type=... --robot.port=...` would say; not connected.

    Raises `LeRobotRobotError` naming the types there are, or what draccus says of a field.
    """
    import draccus
    from lerobot.robots.config import RobotConfig
    from lerobot.robots.utils import make_robot_from_config

    try:
        raw = json.loads(path.read_text())
        _register(raw["type"])
        return make_robot_from_config(draccus.decode(RobotConfig, raw))
    except KeyError as error:
        raise LeRobotRobotError(f'{path} has no {error}; {{"type": "so101_follower", "port": ...}}') from error
    except Exception as error:  # JSON, draccus, a missing driver: each has its own
        raise LeRobotRobotError(f"{path}: {' '.join(str(error).split())[:400]}") from error


def _register(kind: str) -> None:
    """Imports LeRobot's robots until one has registered that type."""
    import contextlib
    import importlib
    import pkgutil

    from lerobot import robots
    from lerobot.robots.config import RobotConfig

    for module in pkgutil.iter_modules(robots.__path__):
        if kind in RobotConfig.get_known_choices():
            return
        if module.ispkg:
            with contextlib.suppress(ImportError):  # the driver of another robot is not installed
                importlib.import_module(f"lerobot.robots.{module.name}")
    if kind not in RobotConfig.get_known_choices():
        raise LeRobotRobotError(
            f"unknown type {kind!r} (choices: {', '.join(sorted(RobotConfig.get_known_choices()))})"
        )
