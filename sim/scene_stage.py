"""What the axes of randomization act on: a scene of one's own, its elements by name, and how to restore it."""

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.spec import RobotSpec

if TYPE_CHECKING:
    import mujoco


class Stage:
    """A private copy of a compiled scene, with names for its elements (see `randomization_axes`).

    `data`: the simulation's state, for axes that act on it; the world sets it. `sensing`: settings of
    `disturbed_robot.Disturbance`; `distractors`: how many of them there are to be.
    """

    def __init__(self, model: "mujoco.MjModel", robot: RobotSpec) -> None:
        self.model = copy.copy(model)
        self.data: Any = None
        self.robot = robot
        self.sensing: dict[str, Any] = {}
        self.distractors = 0
        self.robot_base = int(self.model.body_rootid[self.model.site(robot.ee_site).bodyid[0]])
        self.base_z_m = float(
            self.model.body_pos[self.robot_base, 2]
        )  # as compiled; a user's model may stand on a foot
        self._originals = {name: array.copy() for name, array in model_arrays(self.model).items()}
        self.restore()

    def restore(self) -> None:
        """Every number of the model as compiled, bit for bit; sensing as without disturbances."""
        for name, array in model_arrays(self.model).items():
            array[...] = self._originals[name]
        self.sensing = {"joint_offset": np.zeros(self.robot.joints)}
        self.distractors = 0

    def changed(self) -> list[str]:
        """Names of the arrays that differ from the compiled ones."""
        now = model_arrays(self.model)
        return [name for name, before in self._originals.items() if not np.array_equal(now[name], before)]

    def material(self, texture: str) -> int:
        """Index of the material with that texture, -1 for `none`."""
        return -1 if texture == "none" else int(self.model.material(f"texture_{texture}").id)

    @cached_property
    def geoms(self) -> Mapping[str, int]:
        """Geoms; one without a name is called after its body, with a number."""
        found: dict[str, int] = {}
        for i in range(self.model.ngeom):
            body = int(self.model.geom_bodyid[i])
            number = i - int(self.model.body_geomadr[body])
            own = self.model.geom(i).name or f"{self.model.body(body).name}_{number}"
            found[self._role(body) + own] = i
        return found

    @cached_property
    def moving(self) -> Mapping[str, int]:
        """Bodies that can move and weigh something: the housing of a drawer is placed, and weighs nothing."""
        model = self.model
        bodies = (b for b in range(1, model.nbody) if model.body_weldid[b] != 0 and model.body_mass[b] > 0)
        return {self._role(b) + self.model.body(b).name: b for b in bodies}

    @cached_property
    def free(self) -> Mapping[str, int]:
        """Bodies that nothing holds -> where their velocity is in `qvel`."""
        import mujoco

        joints = (j for j in range(self.model.njnt) if self.model.jnt_type[j] == mujoco.mjtJoint.mjJNT_FREE)
        bodies = ((int(self.model.jnt_bodyid[j]), int(self.model.jnt_dofadr[j])) for j in joints)
        return {self._role(body) + self.model.body(body).name: dof for body, dof in bodies}

    @cached_property
    def blocks(self) -> Mapping[str, int]:
        """The coloured blocks -> their geoms."""
        return {name: i for name, i in self.geoms.items() if name.startswith("object/block_")}

    @cached_property
    def joints(self) -> Mapping[str, int]:
        """The robot's joints, fingers included -> their degree of freedom."""
        owned = (j for j in range(self.model.njnt) if self._role(int(self.model.jnt_bodyid[j])) == "robot/")
        return {f"robot/{self.model.joint(j).name}": int(self.model.jnt_dofadr[j]) for j in owned}

    @cached_property
    def encoders(self) -> Mapping[str, int]:
        """The arm's joints -> their place in q (J,)."""
        return {f"robot/{name}": i for i, name in enumerate(self.robot.joint_names)}

    @cached_property
    def actuators(self) -> Mapping[str, int]:
        return {f"robot/{self.model.actuator(i).name}": i for i in range(self.model.nu)}

    @cached_property
    def lights(self) -> Mapping[str, int]:
        return {self.model.light(i).name: i for i in range(self.model.nlight)}

    @cached_property
    def cameras(self) -> Mapping[str, int]:
        return {self.model.camera(i).name: i for i in range(self.model.ncam)}

    def _role(self, body: int) -> str:
        if body == 0:
            return ""
        if self.model.body_rootid[body] == self.robot_base:
            return "robot/"
        return "distractor/" if self.model.body(body).name.startswith("distractor_") else "object/"


def model_arrays(model: "mujoco.MjModel") -> dict[str, NDArray[Any]]:
    """Views of everything in a model that an axis, or MuJoCo as a consequence, may change; names as in
    `mujoco.batch.MODEL_FIELDS` where it has them."""
    from mujoco.batch import MODEL_FIELDS

    names = [name for name in MODEL_FIELDS if not name.startswith(("opt.", "name", "key_", "plugin"))]
    arrays = {name: getattr(model, name) for name in sorted(names)}
    found = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray) and array.size}
    headlight = model.vis.headlight
    return found | {
        "opt.gravity": model.opt.gravity,
        "vis.ambient": headlight.ambient,
        "vis.diffuse": headlight.diffuse,
    }
