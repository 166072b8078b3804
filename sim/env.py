"""The tasks as Gymnasium environments: `gymnasium.make("volar.sim.gymnasium_ids:volar/Lift-v0")`."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from volar.robots.spec import robot_name
from volar.sim.randomization import Randomization
from volar.sim.tasks import TASKS
from volar.sim.world import TASK_HZ, StepDriver, TaskWorld

INSTRUCTION_BYTES = 96  # of the observation's `instruction`: UTF-8, padded with zeros
_STATE_BOUND = 10.0  # [m]; every entry of the state is a length or a direction cosine

ObservationDict = dict[str, NDArray[Any]]


def encode_instruction(text: str) -> NDArray[np.uint8]:
    """UTF-8 in a fixed number of bytes, zero padded. Raises `ValueError` when it is too long."""
    raw = text.encode()
    if len(raw) > INSTRUCTION_BYTES:
        raise ValueError(f"the instruction has {len(raw)} bytes, at most {INSTRUCTION_BYTES} fit: {text!r}")
    return np.frombuffer(raw.ljust(INSTRUCTION_BYTES, b"\0"), np.uint8).copy()


def decode_instruction(codes: NDArray[np.uint8]) -> str:
    """Inverse of `encode_instruction`."""
    return codes.tobytes().rstrip(b"\0").decode()


class TabletopEnv(gymnasium.Env[ObservationDict, NDArray[np.float32]]):
    """One task of the tabletop suite at the policy's rate.

    Observation: one uint8 (H, W, 3) image for each camera under its name; `state` float32 (S,), the robot's
    `state_names`; `instruction` uint8 (96,), see `decode_instruction` (`info["instruction"]` has the text).
    Action: float32 (7,), the robot's `ActionSpec`; executed through the control loop and the safety filter
    that a real arm has, in periods of 10 ms, `control_hz` times a second (the robot's own rate, 10, by default).
    Reward 1 on success, which terminates; `max_steps` truncates (the task's own by default, for as many seconds).
    An arm that jams is stopped by the loop's guard as a real one is; `info["stopped"]` of `step` then names the fault.
    `randomization`: a preset's name, a YAML file's path or a `Randomization`; `info["draws"]` of `reset` is what it
    drew, and `reset(options={"draws": ...})` repeats that. `reset(seed)` alone determines the episode; without a
    seed, the next one is drawn from the environment's generator. `asset`: `menagerie:PATH`, your own model of the
    robot. `cameras=()` needs no OpenGL. Raises `Unknown` for a task, robot, camera or randomization that does not
    exist, `SimulationDiverged` when the physics diverges.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  # Gymnasium's own

    def __init__(
        self,
        task: str,
        robot: str = "fr3",
        cameras: tuple[str, ...] = ("front", "wrist"),
        image_size: int = 96,
        max_steps: int | None = None,
        render_mode: str | None = None,
        randomization: str | Path | Randomization = "none",
        world_seed: int = 0,
        control_hz: float | None = None,
        asset: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode {render_mode!r} is not one of {self.metadata['render_modes']}")
        self.render_mode = render_mode
        robot = robot_name(robot, asset)
        self.world = TaskWorld(task, robot, tuple(cameras), image_size, randomization, world_seed, control_hz)
        rate_hz = self.world.spec.action.rate_hz
        self.metadata = self.metadata | {"render_fps": round(rate_hz)}
        usual = round(self.world.task.max_steps * rate_hz / TASK_HZ)
        self.max_steps = usual if max_steps is None else max_steps
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, is {self.max_steps}")
        self._driver = StepDriver(self.world)
        self._steps = 0
        self._observation: ObservationDict = {}
        action, states = self.world.spec.action, len(self.world.spec.state_names)
        low, high = np.array(action.low, np.float32), np.array(action.high, np.float32)
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        sizes = self.world.body.cameras.items()
        self.observation_space: spaces.Space[Any] = spaces.Dict(
            {
                **{name: spaces.Box(0, 255, (height, width, 3), np.uint8) for name, (width, height) in sizes},
                "state": spaces.Box(-_STATE_BOUND, _STATE_BOUND, (states,), np.float32),
                "instruction": spaces.Box(0, 255, (INSTRUCTION_BYTES,), np.uint8),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationDict, dict[str, Any]]:
        super().reset(seed=seed)
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        self._driver.reset(episode, (options or {}).get("draws"))
        self._steps = 0
        draws = {"draws": dict(self.world.draws)} if self.world.randomization.terms else {}
        return self._observe(), self._info(episode) | draws

    def step(self, action: NDArray[np.float32]) -> tuple[ObservationDict, float, bool, bool, dict[str, Any]]:
        self._driver.step(np.asarray(action, np.float32))
        self._steps += 1
        success = self.world.success()
        truncated = not success and self._steps >= self.max_steps
        info = self._info(self.world.seed) | {"is_success": success, "stopped": self._driver.stopped}
        return self._observe(), float(success), success, truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """The first camera's image, (H, W, 3)."""
        if self.render_mode is None or not self.world.body.cameras:
            return None
        if not self._observation:
            raise RuntimeError("render before reset")
        image: NDArray[np.uint8] = self._observation[next(iter(self.world.body.cameras))]
        return image

    def close(self) -> None:
        self.world.close()

    def _observe(self) -> ObservationDict:
        self._observation = {
            **self.world.body.images(),
            "state": self._driver.proprio(),
            "instruction": encode_instruction(self.world.instruction),
        }
        return self._observation

    def _info(self, seed: int) -> dict[str, Any]:
        return {"instruction": self.world.instruction, "seed": seed, "task": self.world.task.name}


def environment_id(task: str) -> str:
    """`place_on` -> `volar/PlaceOn-v0`."""
    return f"volar/{''.join(word.capitalize() for word in task.split('_'))}-v0"


def register() -> None:
    """Registers every task with Gymnasium, once; `import volar.sim.gymnasium_ids` does it for `gymnasium.make`."""
    for task in TASKS:
        if environment_id(task) in gymnasium.registry:
            continue
        # No `max_episode_steps`: the environment truncates itself, so that a caller can choose.
        gymnasium.register(environment_id(task), entry_point="volar.sim.env:TabletopEnv", kwargs={"task": task})
