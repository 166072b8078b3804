"""Each robot's model against tables written here, and what its hand can do in real physics."""

from functools import cache
from typing import Any

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from volar.robots.kinematics import Arm, Pose, rotation_matrix, rotation_vector
from volar.robots.spec import RobotSpec, load_robot

Matrix = NDArray[np.float64]
NAMES = ("fr3", "so101", "ur5e")
HOME_M = {"fr3": (0.45, 0.0, 0.22), "ur5e": (0.45, 0.0, 0.22), "so101": (0.20, 0.0, 0.085)}
DOWN = np.diag([1.0, -1.0, -1.0])
each_robot = pytest.mark.parametrize("name", NAMES)


@cache
def arm_of(name: str) -> Arm:
    return Arm(load_robot(name))


def transform(xyz: tuple[float, float, float], *turns: tuple[str, float]) -> Matrix:
    """Translation, then turns about the moved axes: (4, 4)."""
    result = np.eye(4)
    result[:3, 3] = xyz
    for axis, angle in turns:
        result[:3, :3] = result[:3, :3] @ rotation_matrix(angle * np.eye(3)["xyz".index(axis)])
    return result


def pads(model: Any) -> list[int]:
    """The geoms at the fingertips."""
    return [i for i in range(model.ngeom) if model.geom(i).name.endswith("_pad")]


def fr3_flange(q: Matrix) -> Matrix:
    """Franka's table, Craig's convention: a_{i-1}, alpha_{i-1}, d_i; the flange is 0.107 m beyond joint 7."""
    quarter, result = np.pi / 2, np.eye(4)
    a = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088, 0.0)
    alpha = (0.0, -quarter, quarter, quarter, -quarter, quarter, quarter, 0.0)
    d = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0, 0.107)
    for i, theta in enumerate([*q, 0.0]):
        result = result @ transform((a[i], 0, 0), ("x", alpha[i])) @ transform((0, 0, 0), ("z", theta))
        result = result @ transform((0, 0, d[i]))
    return result


def ur5e_flange(q: Matrix) -> Matrix:
    """UR's table, standard convention: d, a, alpha of each row; `base_link` is turned by pi from its first frame."""
    rows = [
        (0.1625, 0.0, np.pi / 2),
        (0.0, -0.425, 0.0),
        (0.0, -0.3922, 0.0),
        (0.1333, 0.0, np.pi / 2),
        (0.0997, 0.0, -np.pi / 2),
        (0.0996, 0.0, 0.0),
    ]
    result = transform((0, 0, 0), ("z", np.pi))
    for theta, (d, a, alpha) in zip(q, rows, strict=True):
        result = result @ transform((0, 0, d), ("z", theta)) @ transform((a, 0, 0), ("x", alpha))
    return result


ROLL_ZERO = np.array([0, 0, 0, 0, 0.0486795])


def so101_flange(q: Matrix) -> Matrix:
    """so101_new_calib.urdf: origins as (xyz, rpy). Its roll is zero 0.0486795 rad above the middle of the range."""
    origins = [
        ((0.0388353, 0.0, 0.0624), (np.pi, 0.0, -np.pi)),
        ((-0.0303992, -0.0182778, -0.0542), (-np.pi / 2, -np.pi / 2, 0.0)),
        ((-0.11257, -0.028, 0.0), (0.0, 0.0, np.pi / 2)),
        ((-0.1349, 0.0052, 0.0), (0.0, 0.0, -np.pi / 2)),
        ((0.0, -0.0611, 0.0181), (np.pi / 2, 0.0486795, np.pi)),
    ]
    result = np.eye(4)
    for theta, (xyz, (roll, pitch, yaw)) in zip(q + ROLL_ZERO, origins, strict=True):
        result = result @ transform(xyz, ("z", yaw), ("y", pitch), ("x", roll), ("z", theta))
    # Our flange: z along the fingers, which point along -z of the URDF's gripper_link, and y along its x.
    upright = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
    return np.asarray(result @ upright)


FLANGES = {"fr3": fr3_flange, "so101": so101_flange, "ur5e": ur5e_flange}
# The tool centre point in the flange's frame: on its axis, or for the SO-101 between jaws that end where the URDF's
# gripper_frame is, at y -0.0079 and z 0.0981.
TOOLS = {"fr3": (0.0, 0.0, 0.1034), "so101": (0.0, -0.0079 + 0.0145, 0.0981 - 0.006), "ur5e": (0.0, 0.0, 0.1538)}


@each_robot
def test_flange_equals_the_table(name: str) -> None:
    spec, arm = load_robot(name), arm_of(name)
    data, site = mujoco.MjData(arm.model), arm.model.site("flange").id
    rng = np.random.default_rng(0)
    for q in rng.uniform(spec.position_min, spec.position_max, (200, spec.joints)):
        for joint, value in zip(spec.joint_names, q, strict=True):
            data.joint(joint).qpos[0] = value
        mujoco.mj_kinematics(arm.model, data)
        wanted = FLANGES[name](q)
        np.testing.assert_allclose(data.site_xpos[site], wanted[:3, 3], atol=1e-9)
        np.testing.assert_allclose(data.site_xmat[site].reshape(3, 3), wanted[:3, :3], atol=1e-9)


@each_robot
def test_home_points_down_over_the_table(name: str) -> None:
    spec = load_robot(name)
    home = np.array(spec.home)
    pose, flange = arm_of(name).forward(home), FLANGES[name](home)
    np.testing.assert_allclose(pose.position, flange[:3, 3] + flange[:3, :3] @ TOOLS[name], atol=1e-9)
    np.testing.assert_allclose(pose.position, HOME_M[name], atol=2e-5)
    np.testing.assert_allclose(pose.rotation, DOWN, atol=2e-4)
    np.testing.assert_array_less(spec.workspace_low, pose.position)
    np.testing.assert_array_less(pose.position, spec.workspace_high)


@each_robot
def test_model_has_what_every_scene_needs(name: str) -> None:
    spec, model = load_robot(name), arm_of(name).model
    for i, joint in enumerate(spec.joint_names):
        np.testing.assert_allclose(model.joint(joint).range, [spec.position_min[i], spec.position_max[i]])
        np.testing.assert_allclose(model.actuator(joint).forcerange, [-spec.effort_max[i], spec.effort_max[i]])
        assert model.actuator(joint).trnid[0] == model.joint(joint).id
    np.testing.assert_allclose(model.actuator("gripper").ctrlrange, [0, spec.gripper_width_max])
    np.testing.assert_allclose(np.abs(model.actuator("gripper").forcerange), spec.gripper_force_max)
    moving = {int(body) for body in model.jnt_bodyid}
    assert (model.body_gravcomp[list(moving)] == 1).all()
    assert model.nu == spec.joints + 1
    low, high = spec.velocity_bounds(np.array(spec.home))
    np.testing.assert_array_less(low, 0)
    assert (high <= spec.velocity_max).all()
    # What may touch the table touches nothing of the arm itself.
    links = model.geom_contype == 2
    assert links.sum() == spec.joints + 1
    assert not model.geom_conaffinity[links].any()


# From a pad's centre to where the tool centre point is between the pads, along the finger [m], and the size of
# the block that the suite gives that robot.
TIPS = {"fr3": (0.009, 0.04), "so101": (0.0921 - (0.068 + 0.0981) / 2, 0.022), "ur5e": (0.009, 0.04)}


@each_robot
def test_width_is_the_way_between_the_fingers(name: str) -> None:
    """Exact where they hold a block; a jaw's arc differs from its chord by 2 % where it is wide open."""
    spec, model = load_robot(name), arm_of(name).model
    data = mujoco.MjData(model)
    along_m, block_m = TIPS[name]
    for width_m, tolerance in ((block_m, 1e-6), (spec.gripper_width_max, 0.02 if name == "so101" else 1e-6)):
        for joint, value in zip(spec.gripper_joint_names, spec.finger_positions(width_m), strict=True):
            data.joint(joint).qpos[0] = value
        mujoco.mj_kinematics(model, data)
        assert spec.gripper_width(spec.finger_positions(width_m)) == pytest.approx(width_m)
        tips = [data.geom_xpos[pad] + along_m * data.geom_xmat[pad].reshape(3, 3)[:, 2] for pad in pads(model)]
        thickness_m = sum(float(model.geom_size[pad, 1]) for pad in pads(model))
        apart_m = abs(float((tips[0] - tips[1]) @ data.site("tcp").xmat.reshape(3, 3)[:, 1])) - thickness_m
        assert apart_m == pytest.approx(width_m, rel=tolerance)


@each_robot
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_wrist_camera_sees_both_fingertips_below_its_middle(name: str, share: float) -> None:
    spec, model = load_robot(name), arm_of(name).model
    data = mujoco.MjData(model)
    for joint, value in zip(spec.joint_names, spec.home, strict=True):
        data.joint(joint).qpos[0] = value
    fingers = spec.finger_positions(share * spec.gripper_width_max)
    for joint, value in zip(spec.gripper_joint_names, fingers, strict=True):
        data.joint(joint).qpos[0] = value
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 128, 128) as renderer:
        renderer.enable_segmentation_rendering()
        renderer.update_scene(data, "wrist")
        seen = renderer.render()[..., 0]
    columns = []
    for pad in pads(model):
        rows, cols = np.nonzero(seen == pad)
        assert len(rows) > 50
        assert rows.min() > 64  # the tip is what is highest in the image
        columns.append(cols.mean())
    assert len(columns) == 2
    assert abs(columns[0] - columns[1]) > 20


def test_so101_reaches_its_table_with_fingers_down() -> None:
    arm, home = arm_of("so101"), np.array(load_robot("so101").home)
    for x in np.linspace(0.15, 0.26, 4):
        for y in np.linspace(-0.12, 0.12, 5):
            for z in (0.008, 0.03, 0.05):
                error_m, tilt_deg = _reached(arm, home, np.array([x, y, z]))
                assert error_m < 5e-4, (x, y, z)
                assert tilt_deg < 1.0, (x, y, z)


def test_so101_tilts_rather_than_stay_behind_above_its_reach() -> None:
    """Its wrist stops at 95 deg, so that no posture points the fingers down at 0.1 m."""
    arm, home = arm_of("so101"), np.array(load_robot("so101").home)
    error_m, tilt_deg = _reached(arm, home, np.array([0.2, 0.0, 0.11]))
    assert error_m < 2e-3
    assert 2.0 < tilt_deg < 8.0


def _reached(arm: Arm, start: Matrix, position: Matrix) -> tuple[float, float]:
    """How far from a position with fingers down inverse kinematics ends: [m], [deg]."""
    q = start
    for _ in range(60):
        q = arm.step_towards(q, Pose(position, DOWN), 1.0)
    spec: RobotSpec = arm.spec
    assert (q >= np.array(spec.position_min) - 1e-9).all()
    assert (q <= np.array(spec.position_max) + 1e-9).all()
    pose = arm.forward(q)
    turn = rotation_vector(pose.rotation @ DOWN.T)
    return float(np.linalg.norm(pose.position - position)), float(np.rad2deg(np.linalg.norm(turn)))
