"""Sort two blocks by colour: each onto the mat of its own colour."""

from dataclasses import replace

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.colors import COLORS
from volar.sim.experts import OPEN, action, pick_and_place, towards
from volar.sim.predicates import gripper_open, on_mat
from volar.sim.props import MAT_HEIGHT_M
from volar.sim.scene import BLOCK_HALF_M, Placement, SceneState
from volar.sim.tasks.layout import Area, sample_blocks, sample_colors
from volar.sim.tasks.task import Goal, Task, Vector

# One mat on each side, the blocks between them.
_MATS = tuple(Area(np.array([0.42, y - 0.02]), np.array([0.56, y + 0.02]), 0.075) for y in (-0.23, 0.23))
_BLOCKS = Area(np.array([0.37, -0.13]), np.array([0.60, 0.13]), 0.0475)
_REST_HEIGHT_M = 0.15  # of the fingertips, when all is done


class Sort(Task):
    name = "sort"
    props = ("mats",)
    max_steps = 260
    steps_after_success = 4
    templates = (
        "sort the {color} and the {other} block by color",
        "put the {color} block and the {other} block on the mats of their colors",
        "place the {color} block and the {other} block on their mats",
        "sort the {color} and the {other} cube onto their mats",
        "move the {color} and the {other} block each to its own mat",
    )
    held_out_templates = ("tidy the {color} and the {other} block by color",)

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        color, other = sample_colors(rng, 2)
        placement, mats = sample_blocks(rng, robot, _BLOCKS, _MATS)
        order = rng.permutation(2)
        props = {f"mat_{name}": np.array([*mats[i], 0.0, 0.0]) for name, i in zip((color, other), order, strict=True)}
        goal = Goal(color, placement.blocks[COLORS.index(color)].copy())
        return replace(goal, other=other), placement.with_props(props)

    def success(self, state: SceneState, goal: Goal) -> bool:
        return not self._unsorted(state, goal) and gripper_open(state.gripper_width_m)

    def target(self, state: SceneState, goal: Goal) -> Vector:
        return state.block(self._next(state, goal))

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        mat = state.props[f"mat_{self._next(state, goal)}"]
        return np.array([mat[0], mat[1], MAT_HEIGHT_M + BLOCK_HALF_M])

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        if self.success(state, goal):
            return action(towards(state.tcp, np.array([*state.tcp[:2], _REST_HEIGHT_M])), OPEN)
        return pick_and_place(state, self.target(state, goal), self.destination(state, goal))

    def _next(self, state: SceneState, goal: Goal) -> str:
        """The colour that is to be moved now; the last one while the hand is still at it."""
        unsorted = self._unsorted(state, goal)
        low = [c for c in (goal.color, goal.other) if c not in unsorted and self._beside(state, c)]
        return (*low, *unsorted, goal.other)[0]

    def _beside(self, state: SceneState, color: str) -> bool:
        """The hand has put that block down and is not yet above it."""
        offset = state.tcp - state.block(color)
        return bool(np.linalg.norm(offset[:2]) < 0.04 and offset[2] < 0.06)

    def _unsorted(self, state: SceneState, goal: Goal) -> list[str]:
        colors = (goal.color, goal.other)
        return [color for color in colors if not on_mat(state.block(color), state.props[f"mat_{color}"])]
