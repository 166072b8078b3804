"""What an episode earns: success in what was asked for, and optionally the way there.

The reward follows from the instruction that the policy was given, not from the scene's own goal: told to lift the blue
block, lifting the red one earns nothing. Everything is a function of the simulator's state, as the tasks themselves.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import Unknown, VolarError
from volar.sim.scene import SceneState
from volar.sim.tasks.task import SIDES, Goal, Task

_REACH_SCALE_M = 0.1  # distances at which half of the potential's share is lost
_CARRY_SCALE_M = 0.1
_REACH_SHARE = 0.5


class Reward(Protocol):
    """Judges one episode. `begin` once, then `after_step` after each policy step, in order."""

    def begin(self, state: SceneState) -> None: ...

    def after_step(self, state: SceneState, success: bool) -> float: ...


def told_goal(task: Task, instruction: str, own: Goal, start: SceneState) -> Goal:
    """The goal that an instruction asks for in a scene whose own goal is `own`.

    Every phrasing of the task is tried, held-out ones too. What the order does not name (a second colour, a side) stays
    as in `own`, whose values are therefore tried first. Raises `VolarError` for words that are no order of this task.
    """
    others = _first(own.other, own.choices) if own.other else ("",)
    sides = _first(own.side, SIDES) if own.side else ("",)
    for color, side, other in itertools.product(_first(own.color, own.choices), sides, others):
        for template in (*task.templates, *task.held_out_templates):
            if template.format(color=color, side=side, other=other) == instruction:
                return _at(task, replace(own, color=color, side=side, other=other), own, start)
    raise VolarError(f"{instruction!r} is no order of {task.name} about {', '.join(own.choices)}")


def _first(value: str, choices: Iterable[str]) -> tuple[str, ...]:
    return (value, *(choice for choice in choices if choice != value))


def _at(task: Task, goal: Goal, own: Goal, start: SceneState) -> Goal:
    if goal.color == own.color:
        return replace(goal, start=own.start)
    return replace(goal, start=np.array(task.target(start, goal)))


@dataclass(frozen=True)
class Told:
    """A task with the goal that the policy was told: `success` of the state is that of this goal."""

    task: Task
    goal: Goal

    def success(self, state: SceneState) -> bool:
        return self.task.success(state, self.goal)


class SparseReward:
    """1 at success, or what is taken for it, which ends the episode."""

    def begin(self, state: SceneState) -> None:
        pass

    def after_step(self, state: SceneState, success: bool) -> float:
        return float(success)


class DenseReward:
    """Success, and `weight` times the progress of hand and target, as differences of a potential.

    Ng, Harada and Russell ("Policy invariance under reward transformations", ICML 1999), with the discount of one step
    `gamma`: the best policy stays the best. Distractors and other blocks do not enter.
    """

    def __init__(self, told: Told, gamma: float, weight: float = 1.0) -> None:
        self._told, self._gamma, self._weight = told, gamma, weight
        self._before = 0.0

    def begin(self, state: SceneState) -> None:
        self._before = potential(self._told, state)

    def after_step(self, state: SceneState, success: bool) -> float:
        now = 0.0 if success else potential(self._told, state)  # of a state after the end: none
        shaped = self._gamma * now - self._before
        self._before = now
        return float(success) + self._weight * shaped


def potential(told: Told, state: SceneState) -> float:
    """Between -1 and 0: how near the hand is to the target, and the target to where it is to go."""
    target = told.task.target(state, told.goal)
    reach = _closeness(float(np.linalg.norm(state.tcp - target)), _REACH_SCALE_M)
    destination = told.task.destination(state, told.goal)
    if not np.isfinite(destination).all():
        return reach - 1.0
    carry = _closeness(float(np.linalg.norm(destination - target)), _CARRY_SCALE_M)
    return _REACH_SHARE * reach + (1 - _REACH_SHARE) * carry - 1.0


def _closeness(distance_m: float, scale_m: float) -> float:
    return scale_m / (scale_m + distance_m)


REWARDS = ("sparse", "dense")  # of the simulator's state
CLASSIFIER = "classifier"  # as sparse, but a learned judge (`volar.rl.success_network`) says what success is


def make_reward(name: str, told: Told, gamma: float, weight: float = 1.0) -> Reward:
    """`gamma`, `weight`: of `DenseReward`. Raises `Unknown` for what is neither `CLASSIFIER` nor one of `REWARDS`."""
    if name in ("sparse", CLASSIFIER):
        return SparseReward()
    if name == "dense":
        return DenseReward(told, gamma, weight)
    raise Unknown("reward", name, (*REWARDS, CLASSIFIER))


def privileged_state(told: Told, state: SceneState, left: float, tasks: Sequence[str]) -> NDArray[np.float32]:
    """What the critic sees (P,): where hand, target and destination are, relative to each other [m] and scaled to
    about one; the gripper; the joints of the scene; the share `left` of the episode's time; which task it is."""
    target = told.task.target(state, told.goal)
    destination = np.nan_to_num(told.task.destination(state, told.goal) - target)
    start = np.nan_to_num(target - told.goal.start)
    joints = np.zeros(4)
    found = list(state.joints.values())[:4]
    joints[: len(found)] = found
    kind = [float(told.task.name == task) for task in tasks]
    side = {"left": 1.0, "right": -1.0}.get(told.goal.side, 0.0)
    parts = (
        (state.tcp - target) / 0.1,
        destination / 0.1,
        start / 0.1,
        state.tcp / 0.3,
        [state.gripper_width_m / 0.04, left, side],
        joints / 0.1,
        kind,
    )
    return np.concatenate(parts).clip(-5, 5).astype(np.float32)


def privileged_size(tasks: Sequence[str]) -> int:
    """P of `privileged_state`."""
    return 19 + len(tasks)
