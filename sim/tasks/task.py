"""What a task is, and what the tasks of the suite share: goals, layouts, language."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import VolarError
from volar.robots.spec import RobotSpec
from volar.sim.scene import BLOCK_ON_TABLE_Z_M, COLORS, PLATE_HALF_HEIGHT_M, Placement, SceneState

Vector = NDArray[np.float64]

# Where blocks may lie [m], base frame; all of it is seen by the front camera and reached with fingers down.
BLOCKS_LOW, BLOCKS_HIGH = np.array([0.37, -0.20]), np.array([0.60, 0.20])
YAW_MAX_RAD = 0.3
# The open hand's fingers reach 0.060 m from its centre along y and a neighbour turned by 0.3 rad 0.025 m.
BLOCK_DISTANCE_M = 0.095
PLATE_DISTANCE_M = 0.12
JOINT_NOISE_RAD = 0.02
_ATTEMPTS = 2000

LEFT = np.array([0.0, 1.0, 0.0])  # +y of the base frame, as the robot sees it
SIDES = {"left": LEFT, "right": -LEFT}
NOWHERE = np.full(3, np.nan)


class NoLayout(VolarError):
    """Rejection sampling found no layout; names the seed where it is known."""


@dataclass(frozen=True)
class Goal:
    """What an episode asks for. `color`: of the target block; `start` (3,): where it was at reset [m];
    `side`: `left` or `right` for tasks that have one, else an empty string."""

    color: str
    start: Vector
    side: str = ""


class Task(Protocol):
    """One task, one file; `volar.sim.tasks.TASKS` names them all.

    `templates` are format strings over `color` and `side`; those of `held_out_templates` are never used
    in demonstrations.
    """

    name: str
    props: tuple[str, ...]  # what stands on the table beside the four blocks
    max_steps: int  # at the 10 Hz policy rate
    steps_after_success: int  # a demonstration goes on for so long, to show the end being held
    templates: tuple[str, ...]
    held_out_templates: tuple[str, ...]

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        """A random goal and where everything starts. Raises `NoLayout`."""
        ...

    def success(self, state: SceneState, goal: Goal) -> bool: ...

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        """Where the target block is to go (3,) [m], NaN where the task has no such place."""
        ...

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        """The scripted action (7,) for this state: a 0.1 s end-effector delta and the gripper, 1 = open."""
        ...


def instruction(task: Task, goal: Goal, rng: np.random.Generator, held_out: bool = False) -> str:
    """One of the task's phrasings of the goal."""
    templates = task.held_out_templates if held_out else task.templates
    return templates[rng.integers(len(templates))].format(color=goal.color, side=goal.side)


def wrong_instruction(task: Task, goal: Goal, rng: np.random.Generator) -> str:
    """The same order about a block of another colour; success is still judged by `goal`."""
    others = [color for color in COLORS if color != goal.color]
    return instruction(task, Goal(others[rng.integers(len(others))], goal.start, goal.side), rng)


def sample_placement(rng: np.random.Generator, robot: RobotSpec) -> Placement:
    """Blocks and plate apart from each other, the arm near home, the gripper open. Raises `NoLayout`."""
    for _ in range(_ATTEMPTS):
        centres = rng.uniform(BLOCKS_LOW, BLOCKS_HIGH, (len(COLORS) + 1, 2))  # the plate is the last
        gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + np.eye(len(centres))  # (5, 5)
        if gaps[:-1, :-1].min() >= BLOCK_DISTANCE_M and gaps[-1].min() >= PLATE_DISTANCE_M:
            break
    else:
        raise NoLayout(f"no layout of {len(COLORS)} blocks and a plate in {_ATTEMPTS} attempts")
    heights = np.full((len(COLORS), 1), BLOCK_ON_TABLE_Z_M)
    return Placement(
        blocks=np.hstack([centres[:-1], heights]),
        yaw=rng.uniform(-YAW_MAX_RAD, YAW_MAX_RAD, len(COLORS)),
        plate=np.array([*centres[-1], PLATE_HALF_HEIGHT_M]),
        q=np.array(robot.home) + rng.uniform(-JOINT_NOISE_RAD, JOINT_NOISE_RAD, robot.joints),
        gripper_width_m=robot.gripper_width_max,
    )


def sample_goal(rng: np.random.Generator, placement: Placement) -> Goal:
    """Any of the blocks."""
    index = int(rng.integers(len(COLORS)))
    return Goal(COLORS[index], placement.blocks[index].copy())
