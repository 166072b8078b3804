"""Put a block into the bowl and let it go."""

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.experts import pick_and_place
from volar.sim.predicates import gripper_open, in_bowl
from volar.sim.props import BOWL_FLOOR_M
from volar.sim.scene import BLOCK_HALF_M, Placement, SceneState
from volar.sim.tasks.layout import BLOCKS_HIGH, BLOCKS_LOW, Area, sample_blocks
from volar.sim.tasks.task import Goal, Task, Vector, sample_goal

_BOWL = Area(BLOCKS_LOW, BLOCKS_HIGH, 0.085)  # the open hand beside a block clears the rim
_RELEASE_Z_M = 0.048  # of the block's centre: the open fingers stay above the rim, and it falls by 0.02 m


class PlaceIn(Task):
    name = "place_in"
    props = ("bowl",)
    max_steps = 120
    steps_after_success = 4
    templates = (
        "put the {color} block in the bowl",
        "place the {color} block in the bowl",
        "drop the {color} cube into the bowl",
        "put the {color} cube inside the bowl",
        "move the {color} block into the bowl",
        "pick up the {color} block and put it in the bowl",
    )
    held_out_templates = ("throw the {color} block in the bowl", "leave the {color} cube in the bowl")

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        placement, ((x, y),) = sample_blocks(rng, robot, others=[_BOWL])
        return sample_goal(rng, placement), placement.with_props({"bowl": np.array([x, y, 0.0, 0.0])})

    def success(self, state: SceneState, goal: Goal) -> bool:
        return in_bowl(state.block(goal.color), state.props["bowl"]) and gripper_open(state.gripper_width_m)

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        return np.array([*state.props["bowl"][:2], BOWL_FLOOR_M + BLOCK_HALF_M])

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        release = np.array([*state.props["bowl"][:2], _RELEASE_Z_M])
        return pick_and_place(state, state.block(goal.color), release)
