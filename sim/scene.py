"""The tabletop scene: a robot, four coloured blocks, a plate and two cameras, built from primitives.

The table top is the plane z = 0 of the robot's base frame; +x points away from the robot, +y to its left.
Every task uses the same bodies and only places them differently, so that one compiled model serves all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from volar.robots.spec import RobotSpec, load_robot

if TYPE_CHECKING:
    import mujoco

Vector = NDArray[np.float64]

TIMESTEP_S = 0.002  # 500 Hz
COLORS = ("red", "green", "blue", "yellow")
_RGBA = {
    "red": (0.86, 0.10, 0.10, 1.0),
    "green": (0.10, 0.62, 0.16, 1.0),
    "blue": (0.12, 0.25, 0.88, 1.0),
    "yellow": (0.96, 0.80, 0.08, 1.0),
}
_PLATE_RGBA = (0.62, 0.25, 0.70, 1.0)  # purple: none of the blocks' colours, and unlike the white arm
_TABLE_RGBA = (0.62, 0.57, 0.50, 1.0)
_FLOOR_RGBA = (0.30, 0.32, 0.35, 1.0)

BLOCK_HALF_M = 0.02
BLOCK_MASS_KG = 0.05
PLATE_RADIUS_M = 0.06
PLATE_HALF_HEIGHT_M = 0.004
PLATE_MASS_KG = 0.25
BLOCK_ON_TABLE_Z_M = BLOCK_HALF_M  # height of a resting block's centre
BLOCK_ON_PLATE_Z_M = 2 * PLATE_HALF_HEIGHT_M + BLOCK_HALF_M

# Where the front camera is, what it looks at (base frame [m]) and its field of view: the workspace with the
# hand above it fills the image.
LABELLED_CAMERA = "front"  # in whose image u, v of points are; it stands still
FRONT_POSITION = (1.25, 0.0, 0.82)
FRONT_LOOKS_AT = (0.46, 0.0, 0.07)
FRONT_FOVY_DEG = 31.0

# Frictional cone and a stiff tangential direction, so that a held block does not creep out of the fingers
# (MuJoCo documentation, "Preventing slip").
_IMPRATIO = 10.0


@dataclass(frozen=True)
class Placement:
    """Where the bodies start. `blocks` (4, 3) centres in the order of `COLORS` [m], `yaw` (4,) [rad],
    `plate` (3,) centre [m], all in the base frame; `q` (J,) arm joints [rad], gripper width [m].
    `props`: name -> (x, y, z, yaw) of the task's other things, [m] and [rad]; `joints`: name -> position of their
    joints [m, rad]. A prop that is not named stays out of sight."""

    blocks: Vector
    yaw: Vector
    plate: Vector
    q: Vector
    gripper_width_m: float
    props: Mapping[str, Vector] = field(default_factory=dict)
    joints: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SceneState:
    """What predicates and experts see, in the base frame: `tcp` (3,) end-effector site [m], `blocks` (4, 3)
    centres in the order of `COLORS` [m], `plate` (3,) centre [m], gripper width [m]. `props`: name -> (3,) where the
    task's other things are [m]; `joints`: name -> positions of their joints [m, rad]."""

    tcp: Vector
    blocks: Vector
    plate: Vector
    gripper_width_m: float
    props: Mapping[str, Vector] = field(default_factory=dict)
    joints: Mapping[str, float] = field(default_factory=dict)

    def block(self, color: str) -> Vector:
        """Centre (3,) of the block of that colour [m]."""
        return np.asarray(self.blocks[COLORS.index(color)])


@dataclass(frozen=True)
class CameraView:
    """Pose and optics of a camera with square images: `position` (3,) [m], `rotation` (3, 3) with columns
    right, up, backwards, both in the base frame; `fovy_deg` the whole vertical angle."""

    position: Vector
    rotation: Vector
    fovy_deg: float

    def project(self, points: Vector) -> Vector:
        """Where it sees points: (..., 3) base frame [m] -> (..., 2) fractions of the image's width and height from
        the top left corner; NaN for points behind the camera and for NaN points."""
        local = (points - self.position) @ self.rotation  # (..., 3)
        depth = np.where(local[..., 2] < 0, -local[..., 2], np.nan)
        size = 2 * np.tan(np.deg2rad(self.fovy_deg) / 2) * depth  # of the image, at that depth [m]
        return np.stack([0.5 + local[..., 0] / size, 0.5 - local[..., 1] / size], axis=-1)


@lru_cache(maxsize=32)
def compiled(robot: str = "fr3", props: tuple[str, ...] = ("plate",)) -> "mujoco.MjModel":
    """The compiled scene with that robot, one for each process. Treat it as read-only: it is shared."""
    return build(load_robot(robot), props).compile()


def build(robot: RobotSpec, props: tuple[str, ...] = ("plate",)) -> "mujoco.MjSpec":
    """The scene as an editable `MjSpec`: robot, table, blocks, and the named props."""
    import mujoco

    spec = mujoco.MjSpec()
    spec.modelname = f"tabletop_{robot.name}"
    spec.option.timestep = TIMESTEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = _IMPRATIO
    robot.add_to(spec)
    _add_surroundings(spec)
    for color in COLORS:
        _add_block(spec, color)
    _add_plate(spec)
    return spec


def place(model: "mujoco.MjModel", data: "mujoco.MjData", robot: RobotSpec, placement: Placement) -> None:
    """Resets `data` to a placement, at rest, and computes everything that depends on positions."""
    import mujoco

    mujoco.mj_resetData(model, data)
    for i, color in enumerate(COLORS):
        half = placement.yaw[i] / 2
        data.joint(f"block_{color}").qpos[:] = [*placement.blocks[i], np.cos(half), 0.0, 0.0, np.sin(half)]
    data.joint("plate").qpos[:] = [*placement.plate, 1.0, 0.0, 0.0, 0.0]
    for name, value in zip(robot.joint_names, placement.q, strict=True):
        data.joint(name).qpos[0] = value
        data.actuator(name).ctrl[0] = value
    fingers = robot.finger_positions(placement.gripper_width_m)
    for name, value in zip(robot.gripper_joint_names, fingers, strict=True):
        data.joint(name).qpos[0] = value
    data.actuator("gripper").ctrl[0] = placement.gripper_width_m
    mujoco.mj_forward(model, data)


def observe(data: "mujoco.MjData", robot: RobotSpec) -> SceneState:
    """The state of a scene whose positions have been computed."""
    return SceneState(
        tcp=data.site(robot.ee_site).xpos.copy(),
        blocks=np.stack([data.body(f"block_{color}").xpos for color in COLORS]),
        plate=data.body("plate").xpos.copy(),
        gripper_width_m=float(sum(data.joint(name).qpos[0] for name in robot.gripper_joint_names)),
    )


def camera_view(model: "mujoco.MjModel", data: "mujoco.MjData", camera: str) -> CameraView:
    """Where a camera is now."""
    here = data.camera(camera)
    return CameraView(here.xpos.copy(), here.xmat.reshape(3, 3).copy(), float(model.camera(camera).fovy[0]))


def _add_surroundings(spec: "mujoco.MjSpec") -> None:
    import mujoco

    spec.visual.map.znear = 0.01
    spec.visual.map.zfar = 20.0
    # One light without shadows: with them a frame takes about ten times as long in software rendering.
    spec.visual.quality.shadowsize = 0
    spec.visual.quality.offsamples = 0
    spec.visual.headlight.ambient = [0.35, 0.35, 0.35]
    spec.visual.headlight.diffuse = [0.15, 0.15, 0.15]
    spec.visual.headlight.specular = [0.0, 0.0, 0.0]
    spec.worldbody.add_light(
        name="sun",
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[0.4, 0.0, 2.0],
        dir=[-0.45, 0.3, -1.0],
        diffuse=[0.6, 0.6, 0.6],
        specular=[0.1, 0.1, 0.1],
        castshadow=False,
    )
    plane = mujoco.mjtGeom.mjGEOM_PLANE
    # conaffinity 3: touched by hand and objects (contype 1) and by the arm's links (contype 2).
    spec.worldbody.add_geom(
        name="table",
        type=plane,
        pos=[0.35, 0, 0],
        size=[0.6, 0.65, 0.1],
        rgba=_TABLE_RGBA,
        conaffinity=3,
        friction=[0.8, 0.005, 0.0001],
    )
    spec.worldbody.add_geom(
        name="floor", type=plane, pos=[0, 0, -0.7], size=[3, 3, 0.1], rgba=_FLOOR_RGBA, contype=0, conaffinity=0
    )
    back = np.array(FRONT_POSITION) - np.array(FRONT_LOOKS_AT)
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    spec.worldbody.add_camera(
        name="front", pos=FRONT_POSITION, xyaxes=[*right, *np.cross(back, right)], fovy=FRONT_FOVY_DEG
    )


def _add_block(spec: "mujoco.MjSpec", color: str) -> None:
    import mujoco

    body = spec.worldbody.add_body(name=f"block_{color}", pos=[0.5, 0, BLOCK_HALF_M])
    body.add_freejoint(name=f"block_{color}")
    body.add_geom(
        name=f"block_{color}",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[BLOCK_HALF_M] * 3,
        mass=BLOCK_MASS_KG,
        rgba=_RGBA[color],
        conaffinity=3,
        condim=4,
        friction=[0.8, 0.005, 0.0001],
    )


def _add_plate(spec: "mujoco.MjSpec") -> None:
    import mujoco

    body = spec.worldbody.add_body(name="plate", pos=[0.5, 0.2, PLATE_HALF_HEIGHT_M])
    body.add_freejoint(name="plate")
    body.add_geom(
        name="plate",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[PLATE_RADIUS_M, PLATE_HALF_HEIGHT_M, 0],
        mass=PLATE_MASS_KG,
        rgba=_PLATE_RGBA,
        conaffinity=3,
        friction=[1.0, 0.005, 0.0001],
    )
