"""Put a block on the plate and let it go."""

import numpy as np

from volar.robots.spec import RobotSpec
from volar.sim.experts import pick_and_place
from volar.sim.predicates import gripper_open, on_plate
from volar.sim.scene import BLOCK_ON_PLATE_Z_M, Placement, SceneState
from volar.sim.tasks.layout import sample_placement
from volar.sim.tasks.task import Goal, Task, Vector, sample_goal


class PlaceOn(Task):
    name = "place_on"
    props = ("plate",)
    max_steps = 120
    steps_after_success = 4
    templates = (
        "put the {color} block on the plate",
        "place the {color} block on the plate",
        "set the {color} cube on the plate",
        "move the {color} block onto the plate",
        "put the {color} cube onto the plate",
        "pick up the {color} block and place it on the plate",
    )
    held_out_templates = ("drop the {color} block on the plate", "lay the {color} cube on the plate")

    def sample(self, rng: np.random.Generator, robot: RobotSpec) -> tuple[Goal, Placement]:
        placement = sample_placement(rng, robot)
        return sample_goal(rng, placement), placement

    def success(self, state: SceneState, goal: Goal) -> bool:
        return on_plate(state.block(goal.color), state.plate) and gripper_open(state.gripper_width_m)

    def destination(self, state: SceneState, goal: Goal) -> Vector:
        return np.array([state.plate[0], state.plate[1], BLOCK_ON_PLATE_Z_M])

    def expert(self, state: SceneState, goal: Goal) -> Vector:
        return pick_and_place(state, state.block(goal.color), self.destination(state, goal))
