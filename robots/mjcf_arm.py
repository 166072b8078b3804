"""A user's own MJCF arm in place of a robot's primitives: `asset=menagerie:PATH`.

The robot stays the same: its joint names, limits, actions and safety come from its `RobotSpec`. The user's model
gives bodies, shapes, masses, rotor inertias and dry friction, and its gripper if that has sliding fingers. Servos,
joint damping and ranges are the robot's, since they belong to its controller; so are the site `tcp` and, unless
the model has one, the camera `wrist`, placed on the flange as the robot's. A model whose kinematics are not the
robot's is refused (`mjcf_contract.py`).
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.kinematics import standalone
from volar.robots.primitives import LINK_CONTYPE, PAD, add_servo, add_width_servo, couple
from volar.robots.spec import RobotSpec

if TYPE_CHECKING:
    import mujoco

SCHEME: Final = "menagerie:"
CAMERA: Final = "wrist"
_PREFIX: Final = "asset_"  # before every name of the user's, so that none is one of the scene's
_DROPPED: Final = ("keys", "sensors", "actuators", "tendons", "equalities", "pairs", "lights")


@dataclass(frozen=True)
class UserArm:
    """What was found in a user's model. Names: of its joints in the robot's order, of its sliding fingers (none: it
    has no gripper), of the last link's body. `flange`: position [m] and quaternion in that body's frame. `base_yaw`
    [rad]: what turns its base into the robot's base frame.
    """

    file: Path
    joints: tuple[str, ...]
    fingers: tuple[str, ...]
    last_body: str
    flange: tuple[tuple[float, ...], tuple[float, ...]]
    base_yaw: float = 0.0


def with_asset(robot: RobotSpec, asset: str) -> RobotSpec:
    """The robot with the model that `asset` names: `menagerie:PATH`. Raises `UsageError`, and as `with_mjcf`."""
    if not asset.startswith(SCHEME) or asset == SCHEME:
        raise UsageError(f"asset is {asset!r}; write {SCHEME}PATH, an MJCF file or a folder with one")
    return with_mjcf(robot, Path(asset.removeprefix(SCHEME)))


def asset_fingerprint(robot: RobotSpec) -> str:
    """What tells a robot's model from others, meshes and all: 12 digits of the compiled model's hash."""
    import hashlib

    import mujoco

    model = standalone(robot)
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return hashlib.sha256(buffer.tobytes()).hexdigest()[:12]


def with_mjcf(robot: RobotSpec, path: Path) -> RobotSpec:
    """The robot with the user's model in place of its primitives; `path`: an MJCF file, or a folder with one.

    Joints are matched by name where all of the robot's names occur, else in the order of the chain. A base that is
    turned by a multiple of 90 deg about z is turned back. Raises `VolarError` for a file that is missing or no
    model, and one that lists every point in which the model is not this robot.
    """
    from volar.robots.mjcf_contract import inspected, require_same_arm

    arm = inspected(robot, mjcf_file(robot, path.expanduser().absolute()))
    built = replace(robot, add_to=partial(_add_to, robot, arm))
    require_same_arm(robot, built, arm)
    return built


def mjcf_file(robot: RobotSpec, path: Path) -> Path:
    """The model at that path. Of a folder: its only file that is no scene, else the one named as the robot.

    Raises `VolarError` when there is none, `Unknown` naming the choices when there are several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise VolarError(f"asset: there is no file or folder {path}")
    models = {file.name: file for file in sorted(path.glob("*.xml")) if "scene" not in file.stem}
    if not models:
        raise VolarError(f"asset: the folder {path} holds no MJCF file (*.xml) beside scenes")
    own = f"{robot.name}.xml"
    if len(models) > 1 and own not in models:
        raise Unknown(f"model in {path}", own, models)
    return models[own] if own in models else next(iter(models.values()))


def load(file: Path) -> Any:
    """The file as an `MjSpec` in which each body and joint has a name. Raises `VolarError` if it is none."""
    import mujoco

    try:
        model = mujoco.MjSpec.from_file(str(file))
    except ValueError as error:
        raise VolarError(f"asset: {file} is not an MJCF model: {error}") from error
    for kind, elements in (("body", model.bodies), ("joint", model.joints)):
        for i, element in enumerate(elements):
            element.name = element.name or f"unnamed_{kind}_{i}"
    return model


def _add_to(robot: RobotSpec, arm: UserArm, spec: "mujoco.MjSpec") -> Any:
    """`RobotSpec.add_to` of the robot with the user's model."""
    spec.compiler.degree = False
    ours, model = standalone(robot), load(arm.file)
    _strip(model)
    for option in (name for name in dir(spec.option) if not name.startswith("_")):
        setattr(model.option, option, getattr(spec.option, option))  # the scene's hold; MuJoCo warns where they differ
    _set_joints(robot, arm, model, ours)
    _set_bodies(arm, model)
    base = model.joint(arm.joints[0]).parent
    while base.parent.name != "world":
        base = base.parent
    name, half = _PREFIX + base.name, arm.base_yaw / 2
    frame = spec.worldbody.add_frame(quat=[np.cos(half), 0, 0, np.sin(half)])
    spec.attach(model, prefix=_PREFIX, frame=frame)
    for theirs, own in zip(arm.joints, robot.joint_names, strict=True):
        spec.joint(_PREFIX + theirs).name = own
        servo = ours.actuator(own)
        add_servo(spec, own, float(servo.gainprm[0]), -float(servo.biasprm[2]), float(servo.forcerange[1]))
    last = spec.body(_PREFIX + arm.last_body)
    position, quaternion = arm.flange
    last.add_site(name="flange", pos=position, quat=quaternion)
    tool = last.add_body(name=f"{robot.name}_tool", pos=position, quat=quaternion)
    if arm.fingers:
        _use_fingers(robot, arm, spec, tool, ours)
    else:
        robot.add_hand(spec, tool, (0.0, 0.0, 0.0))
    return spec.body(name)


def _strip(model: Any) -> None:
    """Deletes what drives the model, and what belongs to a scene."""
    for kind in _DROPPED:
        while elements := list(getattr(model, kind)):
            model.delete(elements[0])
    for element in (*model.worldbody.geoms, *model.worldbody.cameras, *model.worldbody.sites):
        model.delete(element)


def _set_joints(robot: RobotSpec, arm: UserArm, model: Any, ours: "mujoco.MjModel") -> None:
    """Ranges and damping of the robot's joints; ranges in the unit of the user's file."""
    per_rad = np.rad2deg(1.0) if model.compiler.degree else 1.0
    names = zip((*arm.joints, *arm.fingers), (*robot.joint_names, *robot.gripper_joint_names), strict=False)
    for theirs, own in names:
        joint = model.joint(theirs)
        joint.range = ours.joint(own).range * (per_rad if theirs in arm.joints else 1.0)
        joint.limited = True
        joint.damping = [float(np.ravel(ours.joint(own).damping)[0]), 0.0, 0.0]


def _set_bodies(arm: UserArm, model: Any) -> None:
    """Gravity compensated; contact as `primitives.py` says: links, and beyond the last one the hand."""
    tips = {model.joint(name).parent.name for name in arm.fingers}
    for body in model.bodies:
        if body.name == "world":
            continue
        body.gravcomp = 1.0
        above = _ancestors(body)
        hand, finger = arm.last_body in above, not tips.isdisjoint({body.name, *above})
        for geom in body.geoms:
            if not (geom.contype or geom.conaffinity):
                continue
            geom.contype, geom.conaffinity = (1, 1) if hand else (LINK_CONTYPE, 0)
            for field, value in PAD.items() if finger else ():
                setattr(geom, field, value)


def _ancestors(body: Any) -> set[str]:
    """Names of the bodies on which it stands, without the world."""
    names = set()
    while (body := body.parent).name != "world":
        names.add(body.name)
    return names


def _use_fingers(robot: RobotSpec, arm: UserArm, spec: "mujoco.MjSpec", tool: Any, ours: "mujoco.MjModel") -> None:
    """Drives the model's own fingers as the robot's; adds `tcp`, and `wrist` unless the model has it."""
    import mujoco

    data = mujoco.MjData(ours)
    mujoco.mj_forward(ours, data)
    for theirs, own in zip(arm.fingers, robot.gripper_joint_names, strict=True):
        spec.joint(_PREFIX + theirs).name = own
    flange = data.site("flange")
    tcp, camera = data.site(robot.ee_site), data.camera(CAMERA)
    position, quaternion = relative_pose(flange.xpos, flange.xmat, tcp.xpos, tcp.xmat)
    tool.add_site(name=robot.ee_site, pos=position, quat=quaternion, rgba=[0, 0, 0, 0])
    wrist = spec.camera(_PREFIX + CAMERA)
    if wrist is None:
        position, quaternion = relative_pose(flange.xpos, flange.xmat, camera.xpos, camera.xmat)
        fovy = float(ours.camera(CAMERA).fovy[0])
        tool.add_camera(name=CAMERA, pos=position, quat=quaternion, fovy=fovy)
    else:
        wrist.name = CAMERA
    couple(spec, robot.gripper_joint_names)
    force = float(ours.actuator("gripper").forcerange[1])
    coefficients = dict.fromkeys(robot.gripper_joint_names, robot.gripper_m_per_unit)
    add_width_servo(spec, coefficients, robot.gripper_width_max, force)


def relative_pose(
    from_position: Any, from_rotation: Any, to_position: Any, to_rotation: Any
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A pose in the frame of another, both given in one frame (rotations (9,)): position (3,), quaternion (4,)."""
    import mujoco

    rotation = np.reshape(from_rotation, (3, 3)).T
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, (rotation @ np.reshape(to_rotation, (3, 3))).ravel())
    position = rotation @ (np.asarray(to_position) - from_position)
    return tuple(map(float, position)), tuple(map(float, quaternion))
