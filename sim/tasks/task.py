"""What a task is: goals, success, the expert, and the language of orders."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from volar.robots.spec import RobotSpec
from volar.sim.colors import COLORS
from volar.sim.scene import Placement, SceneState

Vector = NDArray[np.float64]

LEFT = np.array([0.0, 1.0, 0.0])  # +y of the base frame, as the robot sees it
SIDES = {"left": LEFT, "right": -LEFT}
NOWHERE = np.full(3, np.nan)


@dataclass(frozen=True)
class Goal:
    """What an episode asks for. `color`: of what the order names first; `start` (3,): where that was at reset [m];
    `side`: `left` or `right`; `other`: a second colour; both empty for tasks without. `choices`: the colours that
    an order could have named in this scene."""

    color: str
    start: Vector
    side: str = ""
    other: str = ""
    choices: tuple[str, ...] = COLORS


class Task(Protocol):
    """One task, one file; `volar.sim.tasks.TASKS` names them all. Everything is in table coordinates.

    `templates` are format strings over `color`, `side` and `other`; those of `held_out_templates` are never used
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

    def target(self, state: SceneState, goal: Goal) -> Vector:
        """Where what the order names first is (3,) [m]: the block of that colour, unless a task says otherwise."""
        return state.block(goal.color)

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        """Where the target is to go (3,) [m], NaN where the task has no such place."""
        return NOWHERE

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        """The scripted action (7,) for this state: a 0.1 s end-effector delta and the gripper, 1 = open."""
        ...


def instruction(task: Task, goal: Goal, rng: np.random.Generator, held_out: bool = False) -> str:
    """One of the task's phrasings of the goal."""
    templates = task.held_out_templates if held_out else task.templates
    return templates[rng.integers(len(templates))].format(color=goal.color, side=goal.side, other=goal.other)


def wrong_instruction(task: Task, goal: Goal, rng: np.random.Generator) -> str:
    """The same order naming another colour that the scene has; success is still judged by `goal`."""
    others = [color for color in goal.choices if color not in (goal.color, goal.other)]
    wrong = Goal(others[rng.integers(len(others))], goal.start, goal.side, goal.other)
    return instruction(task, wrong, rng)


def sample_goal(rng: np.random.Generator, placement: Placement) -> Goal:
    """Any of the blocks."""
    index = int(rng.integers(len(COLORS)))
    return Goal(COLORS[index], placement.blocks[index].copy())
