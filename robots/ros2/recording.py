"""An MCAP recording of what the controller saw, was told, and did; `ros2 bag` and Foxglove open it.

volar/observation/<camera>   sensor_msgs/Image        as it went to the policy
volar/observation/state      sensor_msgs/JointState   the state vector by name, with it
volar/chunk                  trajectory_msgs/JointTrajectory   the policy's raw answer, actions by name, stamped with
                                                               the observation it answers
volar/command                trajectory_msgs/JointTrajectory   each command that was sent
volar/tick                   std_msgs/String          JSON: state, reason, refusal, share of each limit, flags
"""

import json
import threading
from array import array
from pathlib import Path
from queue import Full, Queue
from typing import Any, Final

import numpy as np

from volar.robots.body import JointCommand
from volar.robots.contract import PolicyContract
from volar.robots.control_loop import TickReport
from volar.robots.errors import VolarError
from volar.robots.limit_margins import limit_use
from volar.robots.ros2.messages import set_stamp
from volar.robots.spec import RobotSpec

QUEUED: Final = 500  # ticks: five seconds at 100 Hz; a disk that is slower than that loses some, counted
NEAR: Final = 0.9  # share of a limit from which it is flagged


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
        from rosbags.typesys import Stores, get_typestore

        types = get_typestore(Stores.ROS2_KILTED)
        kinds = {f"observation/{c.name}": "sensor_msgs/msg/Image" for c in self._contract.cameras}
        kinds |= {"observation/state": "sensor_msgs/msg/JointState", "tick": "std_msgs/msg/String"}
        kinds |= dict.fromkeys(("chunk", "command"), "trajectory_msgs/msg/JointTrajectory")
        return {name: self._bag.add_connection(f"/volar/{name}", kind, typestore=types) for name, kind in kinds.items()}

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
        from rclpy.serialization import serialize_message

        for topic, message in self._messages(report):
            self._bag.write(self._topics[topic], report.stamp_ns + self._epoch_ns, serialize_message(message))
        self._before = report.command

    def _messages(self, report: TickReport) -> list[tuple[str, Any]]:
        from sensor_msgs.msg import Image, JointState
        from std_msgs.msg import String

        found: list[tuple[str, Any]] = [("command", self._command(report)), ("tick", String(data=self._tick(report)))]
        if report.observation is not None:
            for camera, image in report.observation.images.items():
                height, width = image.shape[:2]
                picture = Image(height=height, width=width, step=3 * width, encoding="rgb8", data=image.tobytes())
                set_stamp(picture.header.stamp, report.observation.stamp_ns + self._epoch_ns)
                found.append((f"observation/{camera}", picture))
            state = JointState(name=list(self._contract.state_names), position=array("d", report.observation.state))
            set_stamp(state.header.stamp, report.observation.stamp_ns + self._epoch_ns)
            found.append(("observation/state", state))
        if report.chunk is not None:
            rows, dt_ns = report.chunk.actions, round(report.chunk.dt_s * 1e9)
            stamp_ns = report.chunk.stamp_ns + self._epoch_ns
            found.append(("chunk", _trajectory(self._contract.action.names, rows, stamp_ns, dt_ns)))
        return found

    def _command(self, report: TickReport) -> Any:
        command = report.command
        stamp_ns, period_ns = report.stamp_ns + self._epoch_ns, round(self._period_s * 1e9)
        message = _trajectory(self._spec.joint_names, command.q[None], stamp_ns, period_ns)
        message.points[0].velocities = array("d", command.dq)
        message.points[0].accelerations = array("d", command.ddq)
        return message

    def _tick(self, report: TickReport) -> str:
        use = limit_use(self._spec, report.command, self._before, self._period_s)
        return json.dumps(
            {
                "state": report.mode,
                "reason": report.reason,
                "refused": report.refused,
                "denied": report.denied,
                "gripper_width_m": report.command.gripper_width_m,
                "limits": {name: round(share, 4) for name, share in use.items()},
                "near": [name for name, share in use.items() if share > NEAR],
            }
        )


def _trajectory(names: tuple[str, ...], rows: Any, stamp_ns: int, dt_ns: int) -> Any:
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    message = JointTrajectory(joint_names=list(names))
    set_stamp(message.header.stamp, max(0, stamp_ns))
    for i, row in enumerate(rows, 1):
        point = JointTrajectoryPoint(positions=array("d", np.asarray(row, np.float64)))
        set_stamp(point.time_from_start, i * dt_ns)
        message.points.append(point)
    return message
