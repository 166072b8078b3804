"""One task in one scene: what an environment, an evaluation and a demonstration all run on."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.control_loop import ControlLoop
from volar.robots.errors import Unknown
from volar.robots.interface import ActionChunk
from volar.robots.kinematics import Arm
from volar.robots.spec import RobotSpec, load_robot
from volar.sim import scene
from volar.sim.scene import SceneState
from volar.sim.sim_robot import SimRobot, SimulationDiverged
from volar.sim.table import table_of
from volar.sim.tasks import load_task
from volar.sim.tasks.layout import NoLayout
from volar.sim.tasks.task import Goal, instruction, wrong_instruction

RANDOMIZATIONS = ("none",)
CONTROL_PERIOD_S = 0.01  # 100 Hz, the rate of the real arm's command interface used here


class TaskWorld:
    """Scene, robot body, task and goal; the caller brings the control loop.

    `reset(seed)` alone determines an episode, whatever ran before. `body` is a `SimRobot`; `goal` and
    `instruction` are those of the current episode. `robot`: a name or a `RobotSpec` with the cameras
    `cameras`; images are square, `image_size` pixels. Raises `Unknown` for an unknown task, robot or camera.
    """

    def __init__(
        self,
        task: str,
        robot: str = "fr3",
        cameras: tuple[str, ...] = ("front", "wrist"),
        image_size: int = 96,
        randomization: str = "none",
    ) -> None:
        import mujoco

        if randomization not in RANDOMIZATIONS:
            raise Unknown("randomization", randomization, RANDOMIZATIONS)
        self.task = load_task(task)
        self.spec: RobotSpec = load_robot(robot)
        for camera in cameras:
            if camera not in self.spec.cameras:
                raise Unknown("camera", camera, self.spec.cameras)
        self.model = scene.compiled(robot, self.task.props)
        self.data: Any = mujoco.MjData(self.model)
        self.table = table_of(self.spec)
        self._reader = scene.SceneReader(self.model, self.spec)
        self.body = SimRobot(self.spec, self.model, self.data, dict.fromkeys(cameras, (image_size, image_size)))
        self.goal = Goal("", np.zeros(3))
        self.seed = -1
        self.instruction = ""
        self.draws: Mapping[str, Any] = {}  # what randomization drew for this episode
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        """Places everything for that episode, at rest. Raises `NoLayout`, naming the seed."""
        rng = np.random.default_rng([seed, zlib.crc32(self.task.name.encode())])
        try:
            self.goal, placement = self.task.sample(rng, self.spec)
        except NoLayout as error:
            raise NoLayout(f"{self.task.name}, seed {seed}: {error}") from error
        self.seed, self._rng = seed, rng
        self.instruction = instruction(self.task, self.goal, rng)
        scene.place(self.model, self.data, self.spec, placement)
        self.body.restart()

    def advance(self, dt_s: float = CONTROL_PERIOD_S) -> None:
        """Steps the physics. Raises `SimulationDiverged`, naming the seed."""
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
        """The scripted action (7,) for the current state, base frame."""
        action = self.task.expert(self.state, self.goal)
        action[:3] *= self.table.scale
        return action

    def points(self) -> NDArray[np.float32]:
        """`Episode.points` now: (2, 5), rows target and destination; columns x y z [m], u v in the front image."""
        state = self.state
        goal = self.goal
        positions = self.table.to_base(np.stack([self.task.target(state, goal), self.task.destination(state, goal)]))
        seen = scene.camera_view(self.model, self.data, scene.LABELLED_CAMERA).project(positions)  # (2, 2)
        return np.hstack([positions, seen]).astype(np.float32)

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

    def reset(self, seed: int) -> None:
        """Resets the world, and the loop to the world's measured state."""
        self.world.reset(seed)
        self._loop.reset(self.world.body.now_ns)

    def step(self, action: NDArray[np.float32]) -> None:
        """Runs an action (A,) for one policy step. Raises `SimulationDiverged`; `ValueError` if not finite."""
        dt_s = 1.0 / self.world.spec.action.rate_hz
        chunk = ActionChunk(action[None].astype(np.float32), self.world.body.now_ns, dt_s)
        refused = self._loop.push(chunk, self.world.body.now_ns)
        if refused is not None:
            raise ValueError(f"the action {action} was refused: {refused}")
        for _ in range(round(dt_s / CONTROL_PERIOD_S)):
            self._loop.tick(self.world.body.now_ns)
            self.world.advance(CONTROL_PERIOD_S)

    def proprio(self) -> NDArray[np.float32]:
        """The measured state vector (S,), as in the robot's `state_names`."""
        measured = self.world.body.joint_state()
        return self.arm.proprio(measured.q, measured.gripper_width_m)
