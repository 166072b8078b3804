"""The robot behind its ROS 2 topics, as the control loop sees one: newest joint state, images of one moment."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.body import JointCommand, JointState
from volar.robots.errors import VolarError
from volar.robots.spec import RobotSpec

Image = NDArray[np.uint8]

FRAMES: Final = 8  # kept of each camera, to find those of one moment
STATES_NS: Final = 1_000_000_000  # kept of the joint states, to find the one of that moment
MAX_STATES: Final = 1000  # kept at most: those of a second at 1 kHz
APART_NS: Final = 100_000_000  # from the images to that joint state, or `joint_state_age_s` where that is longer
FINGERS_NS: Final = 3_000_000_000  # they may lag behind the arm: there are drivers that tell them once a second
RESTART_NS: Final = 200_000_000  # messages overtake each other by less; what is older by more is of a clock set back


class NotReady(VolarError):
    """Asked for what no message has brought yet."""


class Ros2Body:
    """`volar.robots.body.Body` fed by subscriptions, from any thread; `send` hands commands to `publish`.

    Stamps are on the loop's clock [ns]. `cameras`: name -> (width, height) of the policy. `sync_s`: how far apart the
    cameras' images of one observation may be; `age_s`: the loop's `joint_state_age_s`. A joint state is as old as its
    oldest joint; fingers that lag behind the arm for more than `FINGERS_NS` make it older, until it is
    `stale_joint_state`.
    """

    def __init__(
        self,
        spec: RobotSpec,
        cameras: Mapping[str, tuple[int, int]],
        publish: Callable[[JointCommand], None],
        sync_s: float = 0.05,
        age_s: float = 0.1,
    ) -> None:
        self._spec, self._publish = spec, publish
        self._sync_ns, self._apart_ns = round(sync_s * 1e9), max(APART_NS, round(age_s * 1e9))
        self._lock = threading.Lock()
        self._found: dict[str, tuple[float, float, int]] = {}  # joint -> position, velocity, stamp
        self._states: deque[JointState] = deque(maxlen=MAX_STATES)
        self._frames: dict[str, deque[tuple[int, Image]]] = {name: deque(maxlen=FRAMES) for name in cameras}
        self._taken: JointState | None = None
        self.problems: dict[str, str] = {}  # camera or topic -> what was wrong with its last message

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def waits_for(self) -> tuple[str, ...]:
        """What has not come yet: joints and cameras, by name."""
        with self._lock:
            joints = (*self._spec.joint_names, *self._spec.gripper_joint_names)
            missing = [f"joint {name}" for name in joints if name not in self._found]
            return (*missing, *(f"camera {name}" for name, frames in self._frames.items() if not frames))

    def on_joint_state(
        self, names: Sequence[str], positions: Sequence[float], velocities: Sequence[float], stamp_ns: int
    ) -> None:
        """Joints are found by name; those of other robots are left alone, and arm and gripper may come apart."""
        if len(positions) < len(names):
            self.problems["joint_states"] = f"{len(names)} names and {len(positions)} positions"
            return
        wanted = {*self._spec.joint_names, *self._spec.gripper_joint_names}
        with self._lock:
            for i, name in enumerate(names):
                if name in wanted:
                    speed = float(velocities[i]) if i < len(velocities) else 0.0
                    self._found[name] = float(positions[i]), speed, stamp_ns
            if not wanted <= self._found.keys() or wanted.isdisjoint(names):
                return
            arm = [self._found[name] for name in self._spec.joint_names]
            q, dq = np.array([joint[:2] for joint in arm]).T
            fingers = [self._found[name] for name in self._spec.gripper_joint_names]
            width_m = self._spec.gripper_width(np.array([joint[0] for joint in fingers]))
            arm_ns, lagging_ns = min(joint[2] for joint in arm), min(joint[2] for joint in fingers) + FINGERS_NS
            state = JointState(q, dq, width_m, min(arm_ns, lagging_ns))
            if self._states and state.stamp_ns < self._states[-1].stamp_ns - RESTART_NS:
                self._states.clear()
            self._states.append(state)
            while self._states[0].stamp_ns < state.stamp_ns - STATES_NS:
                self._states.popleft()
            if lagging_ns < arm_ns:
                silent = ", ".join(self._spec.gripper_joint_names)
                self.problems["joint_states"] = f"{silent}: silent for more than {FINGERS_NS / 1e9:g} s"
            else:
                self.problems.pop("joint_states", None)

    def on_image(self, camera: str, image: Image, stamp_ns: int) -> None:
        """A frame of the policy's size; one that is older than the newest is dropped, unless its clock was set back."""
        with self._lock:
            frames = self._frames[camera]
            if frames and stamp_ns < frames[-1][0] - RESTART_NS:
                frames.clear()
            if not frames or stamp_ns >= frames[-1][0]:
                frames.append((stamp_ns, image))
            self.problems.pop(camera, None)

    def forget(self) -> None:
        """Everything that came so far: after it, `waits_for` names all again."""
        with self._lock:
            self._found.clear()
            self._states.clear()
            for frames in self._frames.values():
                frames.clear()

    def joint_state(self) -> JointState:
        with self._lock:
            if not self._states:
                raise NotReady("no joint state has come yet")
            return self._states[-1]

    def images(self) -> dict[str, Image]:
        """The newest images of one moment. Raises `NotReady` where a camera has none, or they, or the joint states that
        there are, lie too far apart."""
        with self._lock:
            silent = [name for name, frames in self._frames.items() if not frames]
            if silent:
                raise NotReady(f"no image of camera {', '.join(silent)} has come yet")
            moment = min((frames[-1][0] for frames in self._frames.values()), default=0)
            chosen = {
                name: min(frames, key=lambda frame: abs(frame[0] - moment)) for name, frames in self._frames.items()
            }
            stamps = [stamp for stamp, _ in chosen.values()]
            if stamps and max(stamps) - min(stamps) > self._sync_ns:
                apart_ms = (max(stamps) - min(stamps)) / 1e6
                raise NotReady(f"images lie {apart_ms:.0f} ms apart, camera_sync_s allows {self._sync_ns / 1e6:.0f}")
            then_ns = min(stamps, default=0)
            if self._states:
                nearest = min(self._states, key=lambda state: abs(state.stamp_ns - then_ns))
                if stamps and (apart_ns := abs(nearest.stamp_ns - then_ns)) > self._apart_ns:
                    raise NotReady(
                        f"the joint state nearest to the images lies {apart_ns / 1e6:.0f} ms from them, of "
                        f"{self._apart_ns / 1e6:.0f} allowed; are the camera's stamps those of the capture?"
                    )
                self._taken = replace(nearest, stamp_ns=then_ns) if stamps else self._states[-1]
            return {name: image for name, (_, image) in chosen.items()}

    def taken(self) -> JointState:
        """The joint state of the moment of the last `images`."""
        if self._taken is None:
            raise NotReady("no images have been asked for yet")
        return self._taken

    def image_stamps(self) -> dict[str, int]:
        with self._lock:
            return {name: frames[-1][0] for name, frames in self._frames.items() if frames}

    def send(self, command: JointCommand) -> None:
        self._publish(command)
