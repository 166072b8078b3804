"""An MCAP recording of what the controller saw, was told, and did; `ros2 bag` and Foxglove open it.

volar/observation/<camera>   sensor_msgs/Image        as it went to the policy
volar/observation/state      sensor_msgs/JointState   the state vector by name, with it
volar/chunk                  trajectory_msgs/JointTrajectory   the policy's raw answer, actions by name, stamped with
                                                               the observation it answers
volar/command                trajectory_msgs/JointTrajectory   each command that was sent
volar/tick                   std_msgs/String          JSON: state, reason, refusal, share of each limit, flags, whether
                                                      the command was sent
"""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Full, Queue
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.body import JointCommand
from volar.robots.contract import PolicyContract
from volar.robots.control_loop import TickReport
from volar.robots.errors import VolarError
from volar.robots.limit_margins import limit_use
from volar.robots.spec import RobotSpec

QUEUED: Final = 500  # ticks: five seconds at 100 Hz; a disk that is slower than that loses some, counted
NEAR: Final = 0.9  # share of a limit from which it is flagged
_NONE: Final = np.zeros(0)


class Recorder:
    """Writes in a thread of its own. `dropped`: ticks that the disk was too slow for.

    `epoch_ns`: what a stamp of the loop's clock lacks to the time of other recordings.

    Raises `VolarError` where `folder` is taken or cannot be made.
    """

    def __init__(
        self, folder: Path, spec: RobotSpec, contract: PolicyContract, period_s: float, epoch_ns: int = 0
    ) -> None:
        from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

        self.dropped = 0
        self._spec, self._contract, self._period_s, self._epoch_ns = spec, contract, period_s, epoch_ns
        self._queue: Queue[TickReport | None] = Queue(QUEUED)
        self._before: JointCommand | None = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._bag = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
            self._bag.open()
        except (WriterError, OSError) as error:
            raise VolarError(
                f"record {folder} cannot be written: {error}; give a folder that is not there yet"
            ) from error
        self._make = _Messages()
        self._topics = self._connect()
        self._thread = threading.Thread(target=self._write_all, name="volar-recorder", daemon=True)
        self._thread.start()

    def add(self, report: TickReport) -> None:
        """Takes a tick; never waits."""
        try:
            self._queue.put_nowait(report)
        except Full:
            self.dropped += 1

    def close(self) -> None:
        """Writes what is queued and closes the file; may be called twice."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _connect(self) -> dict[str, Any]:
        kinds = {f"observation/{c.name}": "sensor_msgs/msg/Image" for c in self._contract.cameras}
        kinds |= {"observation/state": "sensor_msgs/msg/JointState", "tick": "std_msgs/msg/String"}
        kinds |= dict.fromkeys(("chunk", "command"), "trajectory_msgs/msg/JointTrajectory")
        add = self._bag.add_connection
        return {name: add(f"/volar/{name}", kind, typestore=self._make.types) for name, kind in kinds.items()}

    def _write_all(self) -> None:
        try:
            while (report := self._queue.get()) is not None:
                self._write(report)
        except OSError:  # a full disk: the arm goes on, and diagnostics count what is lost
            self._count_the_rest()
        finally:
            self._bag.close()

    def _count_the_rest(self) -> None:
        self.dropped += 1
        while self._queue.get() is not None:
            self.dropped += 1

    def _write(self, report: TickReport) -> None:
        for topic, message in self._messages(report):
            data = self._make.types.serialize_cdr(message, message.__msgtype__)
            self._bag.write(self._topics[topic], report.stamp_ns + self._epoch_ns, data)
        self._before = report.command

    def _messages(self, report: TickReport) -> list[tuple[str, Any]]:
        make, epoch_ns = self._make, self._epoch_ns
        found = [("tick", make("std_msgs/msg/String", data=self._tick(report)))]
        if report.sent:
            found.append(("command", self._command(report)))
        if (seen := report.observation) is not None:
            stamp_ns = seen.stamp_ns + epoch_ns
            found += [(f"observation/{camera}", make.image(stamp_ns, image)) for camera, image in seen.images.items()]
            found.append(("observation/state", make.state(stamp_ns, self._contract.state_names, seen.state)))
        if (chunk := report.chunk) is not None:
            points = [make.point(i * chunk.dt_s, row) for i, row in enumerate(chunk.actions, 1)]
            found.append(("chunk", make.trajectory(chunk.stamp_ns + epoch_ns, self._contract.action.names, points)))
        return found

    def _command(self, report: TickReport) -> Any:
        command = report.command
        point = self._make.point(self._period_s, command.q, command.dq, command.ddq)
        return self._make.trajectory(report.stamp_ns + self._epoch_ns, self._spec.joint_names, [point])

    def _tick(self, report: TickReport) -> str:
        use = limit_use(self._spec, report.command, self._before, self._period_s)
        return json.dumps(
            {
                "state": report.mode,
                "reason": report.reason,
                "refused": report.refused,
                "denied": report.denied,
                "sent": report.sent,
                "gripper_width_m": report.command.gripper_width_m,
                "limits": {name: round(share, 4) for name, share in use.items()},
                "near": [name for name, share in use.items() if share > NEAR],
            }
        )


class _Messages:
    """Makes rosbags' messages: what rclpy serializes ends in up to a few hundred bytes of whatever was in memory."""

    def __init__(self) -> None:
        from rosbags.typesys import Stores, get_typestore

        self.types = get_typestore(Stores.ROS2_KILTED)

    def __call__(self, kind: str, **fields: Any) -> Any:
        return self.types.types[kind](**fields)

    def header(self, stamp_ns: int) -> Any:
        sec, nanosec = divmod(max(0, stamp_ns), 1_000_000_000)
        stamp = self("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)
        return self("std_msgs/msg/Header", stamp=stamp, frame_id="")

    def image(self, stamp_ns: int, image: NDArray[np.uint8]) -> Any:
        height, width = image.shape[:2]
        about = {"height": height, "width": width, "step": 3 * width, "encoding": "rgb8", "is_bigendian": 0}
        return self("sensor_msgs/msg/Image", header=self.header(stamp_ns), data=image.reshape(-1), **about)

    def state(self, stamp_ns: int, names: Sequence[str], values: NDArray[np.float32]) -> Any:
        positions = values.astype(np.float64)
        rest = {"velocity": _NONE, "effort": _NONE}
        header = self.header(stamp_ns)
        return self("sensor_msgs/msg/JointState", header=header, name=list(names), position=positions, **rest)

    def point(self, after_s: float, *derivatives: NDArray[Any]) -> Any:
        """`derivatives`: positions, and velocities and accelerations where there are any."""
        sec, nanosec = divmod(round(after_s * 1e9), 1_000_000_000)
        kinds = ("positions", "velocities", "accelerations", "effort")
        values = dict.fromkeys(kinds, _NONE) | {
            kind: np.asarray(row, np.float64) for kind, row in zip(kinds, derivatives, strict=False)
        }
        after = self("builtin_interfaces/msg/Duration", sec=sec, nanosec=nanosec)
        return self("trajectory_msgs/msg/JointTrajectoryPoint", time_from_start=after, **values)

    def trajectory(self, stamp_ns: int, names: Sequence[str], points: list[Any]) -> Any:
        header = self.header(stamp_ns)
        return self("trajectory_msgs/msg/JointTrajectory", header=header, joint_names=list(names), points=points)
