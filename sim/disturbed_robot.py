"""A simulated body seen through imperfect encoders, cameras and wires."""

import hashlib
import struct
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from volar.robots.body import JointCommand, JointState
from volar.robots.spec import RobotSpec
from volar.sim.sim_robot import SimRobot

Image = NDArray[np.uint8]

_HISTORY = 64  # states kept; the longest delay is 0.3 s, a control period at least 5 ms
_TILE_MARGIN = 64  # pixels by which the noise tile is larger than an image: so many offsets a side
_PERFECT_JPEG = 100.0


@dataclass(frozen=True)
class Disturbance:
    """One episode's. `joint_offset` (J,) measured minus true [rad]; delays [s]; `frame_drop`: probability that an
    image is the last one again; `image_noise` [levels], `image_blur` [pixels], `image_brightness` [levels, added],
    `image_contrast` (a factor about middle grey); `image_jpeg`: quality, 100 for none. `seed` decides noise."""

    joint_offset: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    action_delay: float = 0.0
    state_delay: float = 0.0
    observation_delay: float = 0.0
    frame_drop: float = 0.0
    image_noise: float = 0.0
    image_blur: float = 0.0
    image_brightness: float = 0.0
    image_contrast: float = 1.0
    image_jpeg: float = _PERFECT_JPEG
    seed: int = 0


class DisturbedRobot:
    """`volar.robots.body.Body` around a `SimRobot`; `disturb` sets how, for the episode that then begins.

    Noise depends on the disturbance's seed and on time only. Older states and commands are kept by time, so that
    a delay is exact to a control period.
    """

    def __init__(self, inner: SimRobot) -> None:
        self.inner = inner
        height, width = (max((size[i] for size in inner.cameras.values()), default=1) for i in (1, 0))
        shape = (height + _TILE_MARGIN, width + _TILE_MARGIN, 3)
        self._white = np.random.default_rng(0).standard_normal(shape, np.float32)
        self._tiles: tuple[Image, Image] | None = None  # of noise: what is added, and what is taken away
        self._curve: Image | None = None
        self._kernel: NDArray[np.float32] | None = None
        self._past: deque[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = deque(maxlen=_HISTORY)
        self._due: deque[tuple[int, NDArray[np.float64], NDArray[np.float64], float]] = deque()
        self._last: dict[str, Image] = {}
        self._shown: dict[str, NDArray[np.float64]] = {}  # positions (nq,) in it
        self._action_ns = self._state_ns = self._image_ns = 0  # delays
        self.disturbance = Disturbance()

    @property
    def spec(self) -> RobotSpec:
        return self.inner.spec

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """Camera name -> (width, height) [pixels]."""
        return self.inner.cameras

    @property
    def now_ns(self) -> int:
        """Simulation time since `restart` [ns]."""
        return self.inner.now_ns

    @property
    def sees_late(self) -> bool:
        """True where an image may show what was before."""
        return bool(self._image_ns) or self.disturbance.frame_drop > 0

    def disturb(self, disturbance: Disturbance) -> None:
        """From the next `restart` on."""
        self.disturbance = disturbance
        self._tiles, self._curve, self._kernel = None, None, None
        delays_s = disturbance.action_delay, disturbance.state_delay, disturbance.observation_delay
        self._action_ns, self._state_ns, self._image_ns = (round(delay * 1e9) for delay in delays_s)
        if disturbance.image_blur > 0:
            radius = int(np.ceil(3 * disturbance.image_blur))
            weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / disturbance.image_blur) ** 2)
            self._kernel = (weights / weights.sum()).astype(np.float32)
        if disturbance.image_noise > 0:
            noise = np.rint(self._white * np.float32(disturbance.image_noise))
            self._tiles = np.clip(noise, 0, 255).astype(np.uint8), np.clip(-noise, 0, 255).astype(np.uint8)
        if disturbance.image_brightness or disturbance.image_contrast != 1.0:
            levels = 127.5 + disturbance.image_contrast * (np.arange(256) - 127.5) + disturbance.image_brightness
            self._curve = np.clip(np.rint(levels), 0, 255).astype(np.uint8)

    def restart(self) -> None:
        """Sets the clock to zero and forgets what was; the caller has placed the bodies."""
        self.inner.restart()
        self._past.clear()
        self._due.clear()
        self._last.clear()
        self._shown.clear()
        if self._state_ns or self._image_ns:
            self._remember()

    def joint_state(self) -> JointState:
        state = self.inner.joint_state(self._recall(self._state_ns) if self._state_ns else None)
        state.q[...] += self.disturbance.joint_offset  # a new array, and cheaper than a new state
        return state

    def send(self, command: JointCommand) -> None:
        self.drive(command.q, command.dq, command.gripper_width_m)

    def drive(self, q: NDArray[np.float64], dq: NDArray[np.float64], gripper_width_m: float) -> None:
        """As `SimRobot.drive`, late, and by encoders that are off."""
        q = q - self.disturbance.joint_offset
        if self._action_ns:
            self._due.append((self.inner.now_ns + self._action_ns, q, dq, gripper_width_m))
        else:
            self.inner.drive(q, dq, gripper_width_m)

    def advance(self, dt_s: float) -> None:
        """As `SimRobot.advance`; a command that is due acts from its beginning."""
        while self._due and self._due[0][0] <= self.inner.now_ns:
            _, q, dq, gripper_width_m = self._due.popleft()
            self.inner.drive(q, dq, gripper_width_m)
        self.inner.advance(dt_s)
        if self._past:
            self._remember()

    def images(self) -> dict[str, Image]:
        then = self._then()
        clean = self.inner.images(then if self._image_ns else None)
        if not clean:
            return {}
        # Noise by seed and time: a hash takes a tenth of the time that a generator does to be made.
        key = self.disturbance.seed.to_bytes(8) + self.now_ns.to_bytes(8)
        chance = hashlib.blake2b(key, digest_size=6 * len(clean)).digest()
        for k, (name, image) in enumerate(clean.items()):
            drop, y, x = struct.unpack_from("<IBB", chance, 6 * k)
            if name not in self._last or drop >= self.disturbance.frame_drop * 2**32:
                self._last[name] = self._developed(image, y % _TILE_MARGIN, x % _TILE_MARGIN)
                self._shown[name] = then
        return {name: image.copy() for name, image in self._last.items()}

    def image_stamps(self) -> dict[str, int]:
        """When what `images` shows now was so [ns]; an image that is dropped then is the older one all the same."""
        then_ns = self._recall(self._image_ns)[0] if self._image_ns else self.now_ns
        return dict.fromkeys(self.cameras, then_ns)

    def may_show(self, camera: str) -> list[NDArray[np.float64]]:
        """Positions (nq,) that an image of now may show: those of its time, and those of the last one, which it may
        repeat."""
        repeated = [self._shown[camera]] if self.disturbance.frame_drop > 0 and camera in self._shown else []
        return [self._then(), *repeated]

    def close(self) -> None:
        """Frees the renderer."""
        self.inner.close()

    def _developed(self, image: Image, y: int, x: int) -> Image:
        """What a camera makes of an image (H, W, 3): lens, exposure, sensor with the noise at (y, x), compression."""
        import cv2

        if self._kernel is not None:  # a third of the time that cv2.GaussianBlur takes
            cv2.sepFilter2D(image, -1, self._kernel, self._kernel, dst=image)
        if self._curve is not None:
            cv2.LUT(image, self._curve, dst=image)
        if self._tiles is not None:  # sums of bytes, which saturate, are fast
            rows, columns = slice(y, y + image.shape[0]), slice(x, x + image.shape[1])
            cv2.add(image, self._tiles[0][rows, columns], dst=image)
            cv2.subtract(image, self._tiles[1][rows, columns], dst=image)
        if self.disturbance.image_jpeg < _PERFECT_JPEG:
            quality = [cv2.IMWRITE_JPEG_QUALITY, round(self.disturbance.image_jpeg)]
            _, code = cv2.imencode(".jpg", image, quality)  # it takes red for blue, on the way there and back
            image = cv2.imdecode(code, cv2.IMREAD_COLOR)  # type: ignore[assignment]
        return image

    def _then(self) -> NDArray[np.float64]:
        return self._recall(self._image_ns)[1] if self._image_ns else self.inner.snapshot()[0]

    def _remember(self) -> None:
        self._past.append((self.inner.now_ns, *self.inner.snapshot()))

    def _recall(self, delay_ns: int) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
        """When, positions (nq,) and velocities (nv,) as they were then; the first ones before there were any."""
        then_ns = self.now_ns - delay_ns
        for past in reversed(self._past):
            if past[0] <= then_ns:
                return past
        return self._past[0]
