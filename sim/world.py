"""One task in one scene: what an environment, an evaluation and a demonstration all run on."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.datasets.episode import HAND_ROW
from volar.robots.control_loop import NOT_FOLLOWED, ControlLoop
from volar.robots.errors import Unknown, VolarError
from volar.robots.interface import ActionChunk
from volar.robots.kinematics import Arm
from volar.robots.loop_state import STOPPED
from volar.robots.spec import RobotSpec, load_robot
from volar.sim import scene
from volar.sim.disturbed_robot import DisturbedRobot
from volar.sim.randomization import Draws, Randomization
from volar.sim.randomizer import Randomizer
from volar.sim.scene import CameraView, Placement, SceneState
from volar.sim.sim_robot import SimRobot, SimulationDiverged
from volar.sim.table import Table, table_of
from volar.sim.tasks import load_task
from volar.sim.tasks.layout import NoLayout
from volar.sim.tasks.task import Goal, instruction, wrong_instruction

TASK_HZ = 10.0  # of the tasks' `max_steps` and of the displacements that experts answer
CONTROL_PERIOD_S = 0.01  # 100 Hz, the rate of the real arm's command interface used here
_STILL_M = 0.002  # a third of a pixel of the front image; what settles on the table moves by a tenth of that


@dataclass(frozen=True)
class View:
    """The labelled camera, the table, and how high the robot's base stands above the table top's plane [m]."""

    camera: CameraView
    table: Table
    base_height_m: float = 0.0

    def label(self, places: NDArray[np.float64]) -> NDArray[np.float32]:
        """Table coordinates (N, 3) -> (N, 5): x y z [m] in the base frame, u v in the front image; NaN stays NaN."""
        positions = self.table.to_base(places)
        seen = self.camera.project(positions)
        # The scene's origin is on the table, the base frame above or below it.
        return np.hstack([positions - [0.0, 0.0, self.base_height_m], seen]).astype(np.float32)

    def places(self, labels: NDArray[np.float32]) -> NDArray[np.float64]:
        """Labels (N, 5) -> table coordinates (N, 3)."""
        return self.table.to_table(labels[:, :3].astype(np.float64) + np.array([0.0, 0.0, self.base_height_m]))


class TaskWorld:
    """Scene, robot body, task and goal; the caller brings the control loop.

    `reset(seed)` alone determines an episode, whatever ran before. `goal` and `instruction` are those of the current
    episode, `draws` what randomization drew for it. `cameras`: names, whose images are square of `image_size` pixels,
    or name -> (width, height). `randomization`: a preset's name, a file's path, or the thing itself; what it draws
    once for a world follows from `world_seed`. `control_hz`: actions a second, the robot's own by default; bounds of
    displacements go with it. Raises `Unknown` for an unknown task, robot, camera or randomization, `ValueError` for
    a rate that is no whole number of control periods.
    """

    def __init__(
        self,
        task: str,
        robot: str = "fr3",
        cameras: tuple[str, ...] | Mapping[str, tuple[int, int]] = ("front", "wrist"),
        image_size: int = 96,
        randomization: str | Path | Randomization = "none",
        world_seed: int = 0,
        control_hz: float | None = None,
    ) -> None:
        import mujoco

        self.randomization = Randomization.of(randomization)
        self.task = load_task(task)
        self.spec: RobotSpec = _at_rate(load_robot(robot), control_hz)
        for camera in cameras:
            if camera not in self.spec.cameras:
                raise Unknown("camera", camera, self.spec.cameras)
        self.randomizer: Randomizer | None = None
        self.model = scene.compiled(robot, self.task.props)
        if self.randomization.terms:
            self.randomizer = Randomizer(self.randomization, robot, self.task.props, world_seed)
            self.model = self.randomizer.model
        self.data: Any = mujoco.MjData(self.model)
        self.table = table_of(self.spec)
        self._reader = scene.SceneReader(self.model, self.spec)
        sizes = cameras if isinstance(cameras, Mapping) else dict.fromkeys(cameras, (image_size, image_size))
        self.body = self._body(sizes)
        self.goal = Goal("", np.zeros(3))
        self.seed = -1
        self.instruction = ""
        self.draws: Draws = {}

    def reset(self, seed: int, draws: Draws | None = None) -> None:
        """Places everything for that episode, at rest; with the `draws` of an earlier one where these are given.

        Raises `NoLayout`, naming the seed, and `VolarError` for draws of another randomization.
        """
        rng = np.random.default_rng([seed, zlib.crc32(self.task.name.encode())])
        self.draws = {}
        try:
            self.goal, placement = self.task.sample(rng, self.spec)
        except NoLayout as error:
            raise NoLayout(f"{self.task.name}, seed {seed}: {error}") from error
        self.seed = seed
        self.instruction = instruction(self.task, self.goal, rng)
        self.place(placement, seed, draws)

    def place(self, placement: Placement, seed: int, draws: Draws | None = None) -> None:
        """Puts everything there, at rest; what varies follows from `seed`, or is `draws`. Raises as `reset` does."""
        if self.randomizer is None:
            if draws:
                raise VolarError(f"randomization none has no draws, was given {sorted(draws)}")
            scene.place(self.model, self.data, self.spec, placement)
        else:
            self._place_varied(self.randomizer, seed, placement, draws)
        self.body.restart()

    def _body(self, sizes: Mapping[str, tuple[int, int]]) -> SimRobot | DisturbedRobot:
        robot = SimRobot(self.spec, self.model, self.data, sizes)
        return DisturbedRobot(robot) if self.randomizer is not None and self.randomizer.disturbs else robot

    def _place_varied(self, randomizer: Randomizer, seed: int, placement: Placement, draws: Draws | None) -> None:
        randomizer.stage.data = self.data
        randomizer.begin(seed, draws)
        scene.place(self.model, self.data, self.spec, randomizer.placed(placement))
        self.draws = randomizer.settle(seed, self.table.to_base(self.task.destination(self.state, self.goal)))
        if isinstance(self.body, DisturbedRobot):
            self.body.disturb(randomizer.disturbance())

    def advance(self, dt_s: float = CONTROL_PERIOD_S) -> None:
        """Steps the physics. Raises `SimulationDiverged`, naming the seed."""
        if self.randomizer is not None:
            self.randomizer.tick(self.body.now_ns)
        try:
            self.body.advance(dt_s)
        except SimulationDiverged as error:
            raise SimulationDiverged(f"{self.task.name}, seed {self.seed}: {error}") from error

    @property
    def state(self) -> SceneState:
        """Positions of everything now, table coordinates."""
        return self._reader.read(self.data)

    def success(self) -> bool:
        return self.task.success(self.state, self.goal)

    def expert(self) -> NDArray[np.float64]:
        """The scripted action (7,) for the current state, base frame, for one step at the world's rate."""
        action = self.task.expert(self.state, self.goal)
        action[:3] *= self.table.scale
        share = TASK_HZ / self.spec.action.rate_hz
        return action if share == 1.0 else np.concatenate([action[:-1] * share, action[-1:]])

    def points(self) -> NDArray[np.float32]:
        """`Episode.points` now: (3, 5), rows target, destination, hand; columns x y z [m], u v in the front image.

        Where images come late, of what they show: without the hand, and without what has moved since an image that may
        be repeated.
        """
        if not (isinstance(self.body, DisturbedRobot) and self.body.sees_late):
            return self.view().label(self._places(self.state))
        qpos = self.body.may_show(scene.LABELLED_CAMERA)
        places, *repeated = [self._places(self._reader.read(self.body.inner.as_it_was(q))) for q in qpos]  # (3, 3) each
        for others in repeated:
            places[np.linalg.norm(others - places, axis=1) > _STILL_M] = np.nan
        places[HAND_ROW] = np.nan
        return self.view().label(places)

    def _places(self, state: SceneState) -> NDArray[np.float64]:
        """Of target, destination and hand: (3, 3), table coordinates."""
        return np.stack([self.task.target(state, self.goal), self.task.destination(state, self.goal), state.tcp])

    def view(self) -> View:
        """How places are labelled now."""
        height_m = 0.0 if self.randomizer is None else self.randomizer.base_height_m
        return View(scene.camera_view(self.model, self.data, scene.LABELLED_CAMERA), self.table, height_m)

    def wrong_instruction(self) -> str:
        """An order about another block; always the same one for a seed. `success` is still that of `goal`."""
        rng = np.random.default_rng([self.seed, zlib.crc32(b"wrong"), zlib.crc32(self.task.name.encode())])
        return wrong_instruction(self.task, self.goal, rng)

    def rephrased(self) -> str:
        """The goal in a phrasing that demonstrations never use; always the same one for a seed."""
        rng = np.random.default_rng([self.seed, zlib.crc32(b"rephrased"), zlib.crc32(self.task.name.encode())])
        return instruction(self.task, self.goal, rng, held_out=True)

    def close(self) -> None:
        """Frees the renderer."""
        self.body.close()


class StepDriver:
    """Executes one action at a time in a `TaskWorld`, through the loop and the filter that a real arm has."""

    def __init__(self, world: TaskWorld) -> None:
        self.world = world
        self.arm = Arm(world.spec)
        self._loop = ControlLoop(world.body, self.arm, world.spec.action, period_s=CONTROL_PERIOD_S)

    def reset(self, seed: int, draws: Draws | None = None) -> None:
        """Resets the world, see `TaskWorld.reset`, and the loop to the world's measured state."""
        self.world.reset(seed, draws)
        self._loop.reset(self.world.body.now_ns)

    def step(self, action: NDArray[np.float32]) -> None:
        """Runs an action (A,) for one policy step; an arm that a fault has stopped rests, see `stopped`.

        Raises `SimulationDiverged`; `ValueError` if the action is not finite.
        """
        dt_s = 1.0 / self.world.spec.action.rate_hz
        chunk = ActionChunk(action[None].astype(np.float32), self.world.body.now_ns, dt_s)
        refused = self._loop.push(chunk, self.world.body.now_ns)
        if refused not in (None, NOT_FOLLOWED):
            raise ValueError(f"the action {action} was refused: {refused}")
        for _ in range(round(dt_s / CONTROL_PERIOD_S)):
            self._loop.tick(self.world.body.now_ns)
            self.world.advance(CONTROL_PERIOD_S)

    @property
    def stopped(self) -> str:
        """The fault that has stopped the arm for the rest of the episode, or an empty string."""
        return self._loop.mode.fault or "" if self._loop.mode.state == STOPPED else ""

    def proprio(self) -> NDArray[np.float32]:
        """The measured state vector (S,), as in the robot's `state_names`."""
        measured = self.world.body.joint_state()
        return self.arm.proprio(measured.q, measured.gripper_width_m)


def _at_rate(robot: RobotSpec, control_hz: float | None) -> RobotSpec:
    """The robot told so often: the same speeds, so smaller displacements in one action."""
    if control_hz is None or control_hz == robot.action.rate_hz:
        return robot
    periods = 1.0 / (control_hz * CONTROL_PERIOD_S) if control_hz > 0 else 0.0
    if periods < 1 or abs(periods - round(periods)) > 1e-9:
        raise ValueError(f"control_hz={control_hz} must divide {1 / CONTROL_PERIOD_S:g} Hz: 10, 20, 25, 50, 100")
    share, action = robot.action.rate_hz / control_hz, robot.action
    if action.kind != "ee_delta":
        return replace(robot, action=replace(action, rate_hz=control_hz))
    arm = action.size - (action.gripper != "none")
    low, high = (tuple(v * share for v in x[:arm]) + x[arm:] for x in (action.low, action.high))
    return replace(robot, action=replace(action, low=low, high=high, rate_hz=control_hz))
