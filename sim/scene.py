"""The tabletop scene: a robot, four coloured blocks, two cameras and a task's props, built from primitives.

The table top is the plane z = 0 of the robot's base frame; +x points away from the robot, +y to its left. Tasks with
the same props use the same compiled model and only place its bodies differently. What is placed and what is observed
here is in table coordinates (`volar.sim.table`), which for a full-size arm are those of the base frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from volar.robots.spec import RobotSpec, load_robot
from volar.sim.colors import COLORS, RGBA
from volar.sim.props import PLATE_HALF_HEIGHT_M, PROPS
from volar.sim.table import Table, table_of

if TYPE_CHECKING:
    import mujoco

Vector = NDArray[np.float64]

TIMESTEP_S = 0.002  # 500 Hz
_TABLE_RGBA = (0.62, 0.57, 0.50, 1.0)
_FLOOR_RGBA = (0.30, 0.32, 0.35, 1.0)

BLOCK_HALF_M = 0.02
BLOCK_MASS_KG = 0.05
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
_OUT_OF_SIGHT_M = np.array([-5.0, 0.0, -2.0])  # behind the robot, where props wait that a task does not place


@dataclass(frozen=True)
class Placement:
    """Where the bodies start. `blocks` (4, 3) centres in the order of `COLORS` [m], `yaw` (4,) [rad],
    `plate` (3,) centre [m], NaN without one. `props`: name -> (x, y, z, yaw) of the task's other things [m, rad]; one
    that is not named stays out of sight. `joints`: name -> position of their joints [m, rad], 0 where not named. All
    in table coordinates; `q` (J,) arm joints [rad] and the gripper's width [m] are the robot's own."""

    blocks: Vector
    yaw: Vector
    plate: Vector
    q: Vector
    gripper_width_m: float
    props: Mapping[str, Vector] = field(default_factory=dict)
    joints: Mapping[str, float] = field(default_factory=dict)

    def with_props(self, props: Mapping[str, Vector], joints: Mapping[str, float] | None = None) -> "Placement":
        """The same with these props, and these joints if any."""
        return replace(self, props=props, joints=joints or {})


@dataclass(frozen=True)
class SceneState:
    """What predicates and experts see, in table coordinates: `tcp` (3,) end-effector site [m], `blocks` (4, 3)
    centres in the order of `COLORS` [m], `plate` (3,) centre [m], NaN without one, gripper width [m]. `props`: name ->
    (3,) site of each of the task's other things [m]; `joints`: name -> positions of their joints [m, rad].
    `fingertips` (3,): the middle between the fingers' pads, at the height of `tcp`; only with a hand of which one jaw
    stands still is that another point, and where closed fingers push."""

    tcp: Vector
    blocks: Vector
    plate: Vector
    gripper_width_m: float
    props: Mapping[str, Vector] = field(default_factory=dict)
    joints: Mapping[str, float] = field(default_factory=dict)
    fingertips: Vector = field(default_factory=lambda: np.full(3, np.nan))

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
    table = table_of(robot)
    robot.add_to(spec)
    _add_surroundings(spec, table)
    for color in COLORS:
        _add_block(spec, color, table.scale)
    for prop in props:
        PROPS[prop](spec, table.scale)
    return spec


def place(model: "mujoco.MjModel", data: "mujoco.MjData", robot: RobotSpec, placement: Placement) -> None:
    """Resets `data` to a placement, at rest, and computes everything that depends on positions."""
    import mujoco

    table = table_of(robot)
    mujoco.mj_resetData(model, data)
    blocks = table.to_base(placement.blocks)
    for i, color in enumerate(COLORS):
        data.joint(f"block_{color}").qpos[:] = [*blocks[i], *_quaternion(placement.yaw[i])]
    if np.isfinite(placement.plate).all():
        data.joint("plate").qpos[:] = [*table.to_base(placement.plate), 1.0, 0.0, 0.0, 0.0]
    _place_props(model, data, table, placement)
    for name, value in zip(robot.joint_names, placement.q, strict=True):
        data.joint(name).qpos[0] = value
        data.actuator(name).ctrl[0] = value
    fingers = robot.finger_positions(placement.gripper_width_m)
    for name, value in zip(robot.gripper_joint_names, fingers, strict=True):
        data.joint(name).qpos[0] = value
    data.actuator("gripper").ctrl[0] = placement.gripper_width_m
    mujoco.mj_forward(model, data)


def _place_props(model: "mujoco.MjModel", data: "mujoco.MjData", table: Table, placement: Placement) -> None:
    import mujoco

    data.mocap_pos[:] = _OUT_OF_SIGHT_M + np.outer(np.arange(model.nmocap), [0.0, 1.0, 0.0])
    for name, (x, y, z, yaw) in placement.props.items():
        position, turn = table.to_base(np.array([x, y, z])), _quaternion(yaw)
        mocap = int(model.body(name).mocapid[0])
        if mocap < 0:
            data.joint(name).qpos[:] = [*position, *turn]
        else:
            data.mocap_pos[mocap], data.mocap_quat[mocap] = position, turn
    for name, value in placement.joints.items():
        slides = model.joint(name).type[0] == mujoco.mjtJoint.mjJNT_SLIDE
        data.joint(name).qpos[0] = value * (table.scale if slides else 1.0)


def _quaternion(yaw: float) -> tuple[float, float, float, float]:
    return float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))


class SceneReader:
    """Reads the state of one model's scenes in table coordinates; looks its names up once."""

    def __init__(self, model: "mujoco.MjModel", robot: RobotSpec) -> None:
        import mujoco

        self._table = table_of(robot)
        self._robot = robot
        self._tcp = model.site(robot.ee_site).id
        self._blocks = [model.body(f"block_{color}").id for color in COLORS]
        self._fingers = [model.joint(name).qposadr[0] for name in robot.gripper_joint_names]
        self._pads = [i for i in range(model.ngeom) if model.geom(i).name.endswith("_pad")]
        bodies = {model.body(i).name: i for i in range(model.nbody)}
        self._plate = bodies.get("plate")
        root_of = model.body_rootid[model.site_bodyid]
        sites = [i for i in range(model.nsite) if root_of[i] != root_of[self._tcp]]  # all but the robot's are props'
        self._sites, self._site_names = np.array(sites, int), [model.site(i).name for i in sites]
        joints = [model.joint(i) for i in range(model.njnt)]
        slide = mujoco.mjtJoint.mjJNT_SLIDE
        self._joints = {
            joint.name: (int(joint.qposadr[0]), 1 / self._table.scale if joint.type[0] == slide else 1.0)
            for joint in joints
            if joint.name in self._site_names and joint.type[0] != mujoco.mjtJoint.mjJNT_FREE
        }

    def read(self, data: "mujoco.MjData") -> SceneState:
        """The state of a scene whose positions have been computed."""
        to_table, qpos = self._table.to_table, data.qpos
        tcp = data.site_xpos[self._tcp].copy()
        middle = data.geom_xpos[self._pads].mean(axis=0) if self._pads else tcp
        return SceneState(
            tcp=to_table(tcp),
            blocks=to_table(data.xpos[self._blocks]),
            plate=np.full(3, np.nan) if self._plate is None else to_table(data.xpos[self._plate].copy()),
            gripper_width_m=self._robot.gripper_width(qpos[self._fingers]) / self._table.scale,
            props=dict(zip(self._site_names, to_table(data.site_xpos[self._sites]), strict=True)),
            joints={name: float(qpos[i]) * unit for name, (i, unit) in self._joints.items()},
            fingertips=to_table(np.array([middle[0], middle[1], tcp[2]])),
        )


def camera_view(model: "mujoco.MjModel", data: "mujoco.MjData", camera: str) -> CameraView:
    """Where a camera is now."""
    here = data.camera(camera)
    return CameraView(here.xpos.copy(), here.xmat.reshape(3, 3).copy(), float(model.camera(camera).fovy[0]))


def _add_surroundings(spec: "mujoco.MjSpec", table: Table) -> None:
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
    # conaffinity 3: touched by hand and objects (contype 1) and by the arm's links (contype 2), not by fixed props (0).
    spec.worldbody.add_geom(
        name="table",
        type=plane,
        pos=[0.35, 0, 0],
        size=[0.6, 0.65, 0.1],
        rgba=_TABLE_RGBA,
        contype=0,
        conaffinity=3,
        friction=[0.8, 0.005, 0.0001],
    )
    spec.worldbody.add_geom(
        name="floor", type=plane, pos=[0, 0, -0.7], size=[3, 3, 0.1], rgba=_FLOOR_RGBA, contype=0, conaffinity=0
    )
    position = table.to_base(np.array(FRONT_POSITION))
    back = position - table.to_base(np.array(FRONT_LOOKS_AT))
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    spec.worldbody.add_camera(name="front", pos=position, xyaxes=[*right, *np.cross(back, right)], fovy=FRONT_FOVY_DEG)


def _add_block(spec: "mujoco.MjSpec", color: str, s: float) -> None:
    import mujoco

    body = spec.worldbody.add_body(name=f"block_{color}", pos=[s * 0.5, 0, s * BLOCK_HALF_M])
    body.add_freejoint(name=f"block_{color}")
    body.add_geom(
        name=f"block_{color}",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[s * BLOCK_HALF_M] * 3,
        mass=BLOCK_MASS_KG * s**3,
        rgba=RGBA[color],
        conaffinity=3,
        condim=4,
        friction=[0.8, 0.005, 0.0001],
    )
