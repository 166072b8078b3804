"""Whether a user's MJCF model is the robot that it is used for, and what of it is what."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import VolarError
from volar.robots.kinematics import ancestors, standalone
from volar.robots.mjcf_arm import UserArm, load, relative_pose
from volar.robots.spec import RobotSpec

if TYPE_CHECKING:
    import mujoco

Array = NDArray[np.float64]

FLANGE_SITES: Final = ("attachment_site", "flange")  # MuJoCo Menagerie's name, and ours
CONFIGURATIONS: Final = 20  # random joint positions, at which kinematics are compared
TOLERANCE_M: Final = 0.002  # models of one arm differ by rounding and by published corrections: 0.5 mm a link
TOLERANCE_DEG: Final = 0.5
RANGE_TOLERANCE: Final = 1e-3  # [rad] or [m]: Menagerie rounds pi to 3.1415


def inspected(robot: RobotSpec, file: Path) -> UserArm:
    """Finds joints, fingers, flange and the turn of the base. Raises `VolarError` if they are not the robot's."""
    try:
        model = load(file).compile()
    except ValueError as error:
        raise VolarError(f"asset: {file} does not compile: {error}") from error
    joints = _arm_joints(robot, model, file)
    last = int(model.joint(joints[-1]).bodyid[0])
    fingers = _finger_joints(robot, model, joints, last, file)
    arm = UserArm(file, joints, fingers, model.body(last).name, _flange(robot, model, last))
    return replace(arm, base_yaw=_base_yaw(robot, arm, model))


def require_same_arm(robot: RobotSpec, built: RobotSpec, arm: UserArm) -> None:
    """Compares the model, as it was found and as it is used, with the robot. Raises `VolarError` with each mismatch."""
    mismatches = [*_ranges(robot, arm), *_kinematics(robot, standalone(built), arm)]
    if mismatches:
        listed = "\n  ".join(mismatches)
        turned = f"\n  (compared after turning its base by {np.rad2deg(arm.base_yaw):.0f} deg about z)"
        raise VolarError(f"asset: {arm.file} is not a {robot.name}:\n  {listed}{turned if arm.base_yaw else ''}")


def _arm_joints(robot: RobotSpec, model: "mujoco.MjModel", file: Path) -> tuple[str, ...]:
    """Names of the joints that are the robot's, by name, else all hinges in order; one chain."""
    import mujoco

    hinges = [model.joint(i).name for i in np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)]
    if not hinges:
        raise VolarError(f"asset: {file} has no hinge joint; it must be an arm's MJCF, not a scene's or an object's")
    names = tuple(robot.joint_names if set(robot.joint_names) <= set(hinges) else hinges)
    extra = [name for name in hinges if name not in names]
    if len(names) != robot.joints or extra:
        hint = "; a gripper whose fingers turn cannot be used: give the arm without it" if extra else ""
        raise VolarError(
            f"asset: {file} is not a {robot.name}: {robot.joints} hinge joints expected, {len(hinges)} found "
            f"({', '.join(hinges)}){hint}"
        )
    bodies = [int(model.joint(name).bodyid[0]) for name in names]
    for (name, body), after in zip(zip(names, bodies, strict=True), bodies[1:], strict=False):
        if body not in ancestors(model, after):
            raise VolarError(f"asset: {file} is not one chain: joint {name!r} does not carry the one after it")
    return names


def _finger_joints(
    robot: RobotSpec, model: "mujoco.MjModel", joints: tuple[str, ...], last: int, file: Path
) -> tuple[str, ...]:
    """Names of the sliding fingers beyond the last link, or none."""
    import mujoco

    others = [i for i in range(model.njnt) if model.joint(i).name not in joints]
    wrong = [
        model.joint(i).name
        for i in others
        if model.jnt_type[i] != mujoco.mjtJoint.mjJNT_SLIDE or last not in ancestors(model, int(model.jnt_bodyid[i]))
    ]
    wanted = len(robot.gripper_joint_names) if robot.gripper_m_per_unit == 1.0 else 0
    if wrong or len(others) not in (0, wanted):
        fingers = f"no finger or {wanted}" if wanted else "no gripper"
        raise VolarError(
            f"asset: {file} is not a {robot.name}: beside the arm's joints, {fingers} that slides beyond the last link "
            f"expected, found: {', '.join(model.joint(i).name for i in others)}"
        )
    return tuple(model.joint(i).name for i in others)


def _flange(robot: RobotSpec, model: "mujoco.MjModel", last: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The flange in the last link's frame: a site of that name, else where the robot's own last link has it."""
    import mujoco

    named = [i for i in range(model.nsite) if model.site(i).name in FLANGE_SITES]
    carried = [i for i in named if last in ancestors(model, int(model.site_bodyid[i]))]
    if carried:
        site = carried[0]
    else:
        model = standalone(robot)
        last, site = int(model.joint(robot.joint_names[-1]).bodyid[0]), model.site("flange").id
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return relative_pose(data.xpos[last], data.xmat[last], data.site_xpos[site], data.site_xmat[site])


def _configurations(robot: RobotSpec) -> Array:
    """Joint positions (20, J) all over the robot's range [rad]; the same ones each time."""
    rng = np.random.default_rng(0)
    return rng.uniform(robot.position_min, robot.position_max, (CONFIGURATIONS, robot.joints))


def _poses(model: "mujoco.MjModel", names: tuple[str, ...], configurations: Array) -> Iterator[Any]:
    """The model's data at each configuration of those joints."""
    import mujoco

    data = mujoco.MjData(model)
    addresses = [int(model.joint(name).qposadr[0]) for name in names]
    for q in configurations:
        data.qpos[addresses] = q
        mujoco.mj_kinematics(model, data)
        yield data


def _base_yaw(robot: RobotSpec, arm: UserArm, model: "mujoco.MjModel") -> float:
    """The multiple of 90 deg about z that brings the user's flange nearest to the robot's [rad]."""
    configurations = _configurations(robot)
    last, offset = model.body(arm.last_body).id, np.array(arm.flange[0])
    theirs = np.array(
        [data.xpos[last] + data.xmat[last].reshape(3, 3) @ offset for data in _poses(model, arm.joints, configurations)]
    )
    own = standalone(robot)
    ours = np.array([data.site("flange").xpos.copy() for data in _poses(own, robot.joint_names, configurations)])

    def distance(yaw: float) -> float:
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        return float(np.linalg.norm(theirs @ turn.T - ours, axis=1).max())

    return min((0.0, np.pi / 2, np.pi, -np.pi / 2), key=distance)


def _ranges(robot: RobotSpec, arm: UserArm) -> Iterator[str]:
    """The user's ranges must contain the robot's."""
    own, model = standalone(robot), load(arm.file).compile()
    names = zip((*arm.joints, *arm.fingers), (*robot.joint_names, *robot.gripper_joint_names), strict=False)
    for theirs, name in names:
        low, high = own.joint(name).range
        joint = model.joint(theirs)
        found = joint.range if model.jnt_limited[joint.id] else (-np.inf, np.inf)
        if found[0] > low + RANGE_TOLERANCE or found[1] < high - RANGE_TOLERANCE:
            yield (
                f"joint {name} ({theirs} in the file): a range that contains {low:.4f} to {high:.4f} expected, "
                f"{found[0]:.4f} to {found[1]:.4f} found"
            )


def _kinematics(robot: RobotSpec, model: "mujoco.MjModel", arm: UserArm) -> Iterator[str]:
    """Axes of joints and fingers, and the flange, must be where the robot's are at each configuration."""
    names = (*robot.joint_names, *(robot.gripper_joint_names if arm.fingers else ()))
    configurations = _configurations(robot)
    away = np.zeros((len(names) + 1, 2))  # [m], [deg]; the last row is the flange
    ours = _poses(standalone(robot), robot.joint_names, configurations)
    for own, data in zip(ours, _poses(model, robot.joint_names, configurations), strict=True):
        rows = [_axes_away(own.joint(name), data.joint(name), name in robot.joint_names) for name in names]
        np.maximum(away, [*rows, _frames_away(own.site("flange"), data.site("flange"))], out=away)
    in_file = zip(names, (*arm.joints, *arm.fingers), strict=True)
    labels = [f"axis of joint {name} ({theirs} in the file)" for name, theirs in in_file]
    labels.append(f"flange (a site {' or '.join(FLANGE_SITES)}, else as the {robot.name}'s in the last link's frame)")
    for label, (metres, degrees) in zip(labels, away, strict=True):
        if metres > TOLERANCE_M or degrees > TOLERANCE_DEG:
            yield (
                f"{label}: at most {TOLERANCE_M * 1e3:.0f} mm and {TOLERANCE_DEG} deg off expected, "
                f"{metres * 1e3:.1f} mm and {degrees:.1f} deg found"
            )


def _axes_away(wanted: Any, found: Any, turns: bool) -> tuple[float, float]:
    """Between the axes of two joints: [m], [deg]. Where on its axis a hinge is means nothing, nor where a slide is."""
    metres = float(np.linalg.norm(np.cross(found.xanchor - wanted.xanchor, wanted.xaxis))) if turns else 0.0
    sine = np.linalg.norm(np.cross(wanted.xaxis, found.xaxis))
    return metres, float(np.rad2deg(np.arctan2(sine, wanted.xaxis @ found.xaxis)))


def _frames_away(wanted: Any, found: Any) -> tuple[float, float]:
    """Between two frames: [m], [deg]."""
    turn = wanted.xmat.reshape(3, 3) @ found.xmat.reshape(3, 3).T
    degrees = np.rad2deg(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1.0, 1.0)))
    return float(np.linalg.norm(wanted.xpos - found.xpos)), float(degrees)
