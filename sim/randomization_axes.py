"""The axes along which a scene can vary: what each means, reads and writes. A new one is one entry of `AXES`.

An axis reads the present value of an element and writes another; what is drawn, and how it combines with the present
value, is the term's business. Elements are named with their role: `robot/fr3_link3`, `object/block_red`,
`distractor/distractor_0`, and plainly `table`, `floor`, `sun`, `front`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from volar.sim.scene_stage import Stage

Vector = NDArray[np.float64]
Mode = Literal["startup", "reset", "interval"]
Operation = Literal["set", "add", "scale"]
# `look` changes images only, `physics` the motion, `sensing` what lies between the body and its controller.
Part = Literal["look", "physics", "sensing"]

TEXTURES = ("checker", "noise", "stripes", "wood", "dots", "waves")
MAX_DISTRACTORS = 4
_EVERY: tuple[Operation, ...] = ("set", "add", "scale")
_BEFORE: tuple[Mode, ...] = ("startup", "reset")
_ALWAYS: tuple[Mode, ...] = ("startup", "reset", "interval")


@dataclass(frozen=True)
class Axis:
    """One thing that can vary. `doc` says what a value is, `unit` its unit.

    `elements(stage)`: names and indices of what has such a value; None where there is only one of it.
    `size`: numbers in a value. `low`, `high`: the values that mean something. `choices`: the values where these are
    names; `boolean`: they are true or false. `needs`: the feature of `scene_variation` that a scene must have for
    it. `derived`: MuJoCo's constants follow from it (`mj_setConst`). `clips`: `write` clips to `low` and `high`.
    """

    part: Part
    doc: str
    read: "Callable[[Stage, Any], Any]"
    write: "Callable[[Stage, Any, Any], None]"
    elements: "Callable[[Stage], Mapping[str, Any]] | None" = None
    unit: str = ""
    size: int = 1
    operations: tuple[Operation, ...] = _EVERY
    modes: tuple[Mode, ...] = _BEFORE
    low: float = -np.inf
    high: float = np.inf
    choices: tuple[str, ...] = ()
    boolean: bool = False
    needs: str = ""
    derived: bool = False
    clips: bool = False


def _row(field: str, columns: slice = slice(None)) -> "dict[str, Any]":
    """Reads and writes columns of one row of an array of the model."""

    def read(stage: "Stage", i: Any) -> Vector:
        return np.array(getattr(stage.model, field)[i, columns], np.float64)

    def write(stage: "Stage", i: Any, value: Vector) -> None:
        getattr(stage.model, field)[i, columns] = value

    return {"read": read, "write": write}


def _sensed(name: str, doc: str, unit: str, high: float, low: float = 0.0, usual: float = 0.0) -> Axis:
    """A setting of `disturbed_robot.Disturbance`."""

    def write(stage: "Stage", i: Any, value: Vector) -> None:
        stage.sensing[name] = float(value[0])

    return Axis("sensing", doc, lambda stage, i: np.array([usual]), write, unit=unit, operations=("set",), low=low,
                high=high)  # fmt: skip


def _write_direction(stage: "Stage", i: int, value: Vector) -> None:
    stage.model.light_dir[i] = value / max(float(np.linalg.norm(value)), 1e-9)


def _write_intensity(stage: "Stage", i: int, value: Vector) -> None:
    diffuse = stage.model.light_diffuse[i]
    diffuse *= value[0] / max(float(diffuse.max()), 1e-9)


def _write_ambient(stage: "Stage", i: None, value: Vector) -> None:
    stage.model.vis.headlight.ambient[:] = np.clip(value, 0.0, 1.0)


def _write_shadow(stage: "Stage", i: int, value: bool) -> None:
    stage.model.light_castshadow[i] = value


def _write_texture(stage: "Stage", i: int, value: str) -> None:
    stage.model.geom_matid[i] = stage.material(value)


def _write_color(stage: "Stage", i: int, value: Vector) -> None:
    stage.model.geom_rgba[i, :3] = np.clip(value, 0.0, 1.0)


def _write_hue(stage: "Stage", i: int, value: Vector) -> None:
    import colorsys

    _, saturation, brightness = colorsys.rgb_to_hsv(*stage.model.geom_rgba[i, :3].tolist())
    stage.model.geom_rgba[i, :3] = colorsys.hsv_to_rgb(float(value[0]) / 360 % 1.0, saturation, brightness)


def _read_hue(stage: "Stage", i: int) -> Vector:
    import colorsys

    return np.array([360 * colorsys.rgb_to_hsv(*stage.model.geom_rgba[i, :3].tolist())[0]])


def _write_camera_rotation(stage: "Stage", i: int, value: Vector) -> None:
    import mujoco

    turn, turned = np.zeros(4), np.zeros(4)
    angle = float(np.linalg.norm(value))
    mujoco.mju_axisAngle2Quat(turn, value / max(angle, 1e-12), angle)
    mujoco.mju_mulQuat(turned, stage.model.cam_quat[i], turn)
    stage.model.cam_quat[i] = turned


def _write_distractors(stage: "Stage", i: None, value: Vector) -> None:
    stage.distractors = int(value[0])


def _write_table_height(stage: "Stage", i: None, value: Vector) -> None:
    stage.model.body_pos[stage.robot_base, 2] = stage.base_z_m - value[0]


def _write_mass(stage: "Stage", i: int, value: Vector) -> None:
    stage.model.body_inertia[i] *= value[0] / stage.model.body_mass[i]
    stage.model.body_mass[i] = value[0]


def _write_gain(stage: "Stage", i: int, value: Vector) -> None:
    stage.model.actuator_gainprm[i, 0], stage.model.actuator_biasprm[i, 1] = value[0], -value[0]


def _write_damping_gain(stage: "Stage", i: int, value: Vector) -> None:
    stage.model.actuator_biasprm[i, 2] = -value[0]


def _write_gravity_tilt(stage: "Stage", i: None, value: Vector) -> None:
    down = np.array([np.sin(value[1]), -np.sin(value[0]), -np.cos(value[0]) * np.cos(value[1])])
    stage.model.opt.gravity[:] = np.linalg.norm(stage.model.opt.gravity) * down / np.linalg.norm(down)


def _write_object_size(stage: "Stage", i: int, value: Vector) -> None:
    model, factor = stage.model, float(value[0] / stage.model.geom_size[i, 0])
    body = int(model.geom_bodyid[i])
    nodes = slice(model.body_bvhadr[body], model.body_bvhadr[body] + model.body_bvhnum[body])
    for extent in (model.geom_size[i], model.geom_aabb[i], model.bvh_aabb[nodes]):
        extent *= factor
    model.geom_rbound[i] *= factor
    model.body_inertia[body] *= factor**2  # its mass stays


def _write_joint_offset(stage: "Stage", i: int, value: Vector) -> None:
    stage.sensing["joint_offset"][i] = value[0]


def _push(stage: "Stage", i: int, value: Vector) -> None:
    stage.data.qvel[i : i + 3] += value


def _zero(stage: "Stage", i: Any) -> float:
    return 0.0


_LIGHTS: "dict[str, Any]" = {"elements": lambda stage: stage.lights}
_GEOMS: "dict[str, Any]" = {"elements": lambda stage: stage.geoms}
_CAMERAS: "dict[str, Any]" = {"elements": lambda stage: stage.cameras}
_ACTUATORS: "dict[str, Any]" = {"elements": lambda stage: stage.actuators}

AXES: dict[str, Axis] = {
    # How it looks
    "light_position": Axis("look", "position of a lamp", **_row("light_pos"), **_LIGHTS, unit="m", size=3,
                           needs="lamp"),
    "light_direction": Axis("look", "where a light points", _row("light_dir")["read"], _write_direction, **_LIGHTS,
                            size=3, operations=("set", "add")),
    "light_color": Axis("look", "diffuse red, green, blue", **_row("light_diffuse"), **_LIGHTS, size=3, low=0, high=2),
    "light_intensity": Axis("look", "largest of a light's diffuse red, green, blue",
                            lambda stage, i: stage.model.light_diffuse[i].max(keepdims=True), _write_intensity,
                            **_LIGHTS, modes=_ALWAYS, low=0, high=2),
    "ambient": Axis("look", "light from everywhere: red, green, blue",
                    lambda stage, i: stage.model.vis.headlight.ambient.astype(np.float64), _write_ambient,
                    size=3, modes=_ALWAYS, low=0, high=1, clips=True),
    "shadow": Axis("look", "whether a light casts shadows", lambda stage, i: bool(stage.model.light_castshadow[i]),
                   _write_shadow, **_LIGHTS, operations=("set",), boolean=True, needs="shadow"),
    "texture": Axis("look", "pattern on a surface", lambda stage, i: "none", _write_texture, **_GEOMS,
                    operations=("set",), choices=("none", *TEXTURES), needs="texture"),
    "color": Axis("look", "red, green, blue", **_row("geom_rgba", slice(0, 3)) | {"write": _write_color}, **_GEOMS,
                  size=3, low=0, high=1, clips=True),
    "hue": Axis("look", "hue of a colour", _read_hue, _write_hue, **_GEOMS, unit="degrees", operations=("set", "add")),
    "camera_position": Axis("look", "position in the frame of what carries the camera", **_row("cam_pos"), **_CAMERAS,
                            unit="m", size=3, operations=("set", "add")),
    "camera_rotation": Axis("look", "rotation vector in the camera's own frame", _zero, _write_camera_rotation,
                            **_CAMERAS, unit="rad", size=3, operations=("add",)),
    "camera_fov": Axis("look", "vertical field of view", lambda stage, i: stage.model.cam_fovy[[i]],
                       lambda stage, i, value: stage.model.cam_fovy.__setitem__(i, value[0]), **_CAMERAS,
                       unit="degrees", low=5, high=150),
    "distractor_count": Axis("look", "small things of other colours that stand about", _zero, _write_distractors,
                             operations=("set",), low=0, high=MAX_DISTRACTORS, needs="distractors"),
    # How it moves
    "table_height": Axis("physics", "the table top above where the robot's base frame has it: the base stands lower",
                         lambda stage, i: stage.base_z_m - stage.model.body_pos[stage.robot_base, [2]],
                         _write_table_height,
                         unit="m", operations=("set",), low=-0.1, high=0.1),
    "friction": Axis("physics", "coefficient of sliding friction", lambda stage, i: stage.model.geom_friction[i, [0]],
                     lambda stage, i, value: stage.model.geom_friction.__setitem__((i, 0), value[0]), **_GEOMS, low=0),
    "mass": Axis("physics", "mass of a body; its inertia goes with it", lambda stage, i: stage.model.body_mass[[i]],
                 _write_mass, elements=lambda stage: stage.moving, unit="kg", low=1e-4, derived=True),
    "joint_damping": Axis("physics", "damping of a robot's joint", lambda stage, i: stage.model.dof_damping[[i]],
                          lambda stage, i, value: stage.model.dof_damping.__setitem__(i, value[0]),
                          elements=lambda stage: stage.joints, unit="Nm s/rad", low=0),
    "armature": Axis("physics", "rotor inertia of a robot's joint", lambda stage, i: stage.model.dof_armature[[i]],
                     lambda stage, i, value: stage.model.dof_armature.__setitem__(i, value[0]),
                     elements=lambda stage: stage.joints, unit="kg m^2", low=0, derived=True),
    "actuator_gain": Axis("physics", "stiffness kp of a position servo",
                          lambda stage, i: stage.model.actuator_gainprm[i, [0]], _write_gain, **_ACTUATORS,
                          unit="Nm/rad", low=0),
    "actuator_bias": Axis("physics", "damping kv of a position servo",
                          lambda stage, i: -stage.model.actuator_biasprm[i, [2]], _write_damping_gain, **_ACTUATORS,
                          unit="Nm s/rad", low=0),
    "gravity_tilt": Axis("physics", "rotation of gravity about x and y", _zero, _write_gravity_tilt, unit="rad", size=2,
                         operations=("set",), low=-0.3, high=0.3),
    "object_size": Axis("physics", "half the edge of a block", lambda stage, i: stage.model.geom_size[i, [0]],
                        _write_object_size, elements=lambda stage: stage.blocks, unit="m", low=0.002, high=0.1,
                        derived=True),
    "push": Axis("physics", "velocity given to an object", _zero, _push, elements=lambda stage: stage.free, unit="m/s",
                 size=3, operations=("add",), modes=("interval",)),
    # What lies between the body and its controller
    "joint_offset": Axis("sensing", "encoder error: measured minus true", _zero, _write_joint_offset,
                         elements=lambda stage: stage.encoders, unit="rad", operations=("set",), low=-0.2, high=0.2),
    "action_delay": _sensed("action_delay", "from a command to its execution", "s", 0.2),
    "state_delay": _sensed("state_delay", "age of measured joint positions", "s", 0.09),
    "observation_delay": _sensed("observation_delay", "age of images", "s", 0.3),
    "frame_drop": _sensed("frame_drop", "probability that a camera repeats its last image", "", 0.9),
    "image_noise": _sensed("image_noise", "deviation of white noise", "levels of 255", 100.0),
    "image_blur": _sensed("image_blur", "deviation of a Gaussian blur", "pixels", 10.0),
    "image_brightness": _sensed("image_brightness", "added to every channel", "levels of 255", 255.0, -255.0),
    "image_contrast": _sensed("image_contrast", "factor about middle grey", "", 10.0, usual=1.0),
    "image_jpeg": _sensed("image_jpeg", "quality of JPEG compression", "", 100.0, 1.0, usual=100.0),
}  # fmt: skip
