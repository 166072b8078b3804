"""Kinematics of the FR3 against a Denavit-Hartenberg table written here, and inverse against forward."""

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from volar.robots.fr3 import FR3
from volar.robots.kinematics import Arm, Pose, rotation_matrix, rotation_vector

Matrix = NDArray[np.float64]

# Franka Research 3, Craig's convention: a_{i-1}, alpha_{i-1}, d_i; flange 0.107 m beyond joint 7.
TABLE = [
    (0.0, 0.0, 0.333),
    (0.0, -np.pi / 2, 0.0),
    (0.0, np.pi / 2, 0.316),
    (0.0825, np.pi / 2, 0.0),
    (-0.0825, -np.pi / 2, 0.384),
    (0.0, np.pi / 2, 0.0),
    (0.088, np.pi / 2, 0.0),
]


def flange(q: Matrix) -> Matrix:
    """T_base_flange (4, 4)."""
    transform = np.eye(4)
    for (a, alpha, d), theta in zip([*TABLE, (0.0, 0.0, 0.107)], [*q, 0.0], strict=True):
        ct, st, ca, sa = np.cos(theta), np.sin(theta), np.cos(alpha), np.sin(alpha)
        transform = transform @ np.array(
            [[ct, -st, 0, a], [st * ca, ct * ca, -sa, -d * sa], [st * sa, ct * sa, ca, d * ca], [0, 0, 0, 1]]
        )
    return transform


def test_flange_equals_the_table(arm: Arm) -> None:
    data, site = mujoco.MjData(arm.model), arm.model.site("flange").id
    rng = np.random.default_rng(0)
    for q in rng.uniform(FR3.position_min, FR3.position_max, (200, 7)):
        data.qpos[:7] = q
        mujoco.mj_kinematics(arm.model, data)
        wanted = flange(q)
        np.testing.assert_allclose(data.site_xpos[site], wanted[:3, 3], atol=1e-9)
        np.testing.assert_allclose(data.site_xmat[site].reshape(3, 3), wanted[:3, :3], atol=1e-9)


def test_tool_centre_is_on_the_flange_axis_and_home_points_down(arm: Arm) -> None:
    home = np.array(FR3.home)
    pose, wanted = arm.forward(home), flange(home)
    np.testing.assert_allclose(pose.position, wanted[:3, 3] + 0.1034 * wanted[:3, 2], atol=1e-9)
    np.testing.assert_allclose(pose.rotation[:, 2], [0, 0, -1], atol=1e-6)
    np.testing.assert_array_less(FR3.workspace_low, pose.position)
    np.testing.assert_array_less(pose.position, FR3.workspace_high)


def test_inverse_undoes_forward(arm: Arm) -> None:
    rng = np.random.default_rng(1)
    home = np.array(FR3.home)
    start = arm.forward(home)
    for _ in range(20):
        target = start.moved(rng.uniform(-0.1, 0.1, 3), rng.uniform(-0.3, 0.3, 3))
        q = arm.solve(target, home)
        reached = arm.forward(q)
        np.testing.assert_allclose(reached.position, target.position, atol=1e-4)
        np.testing.assert_allclose(reached.rotation, target.rotation, atol=2e-3)
        assert (q >= FR3.position_min).all()
        assert (q <= FR3.position_max).all()


def test_unreachable_target_says_how_far(arm: Arm) -> None:
    with pytest.raises(ValueError, match="left after"):
        arm.solve(Pose(np.array([3.0, 0.0, 0.0]), np.eye(3)), np.array(FR3.home), steps=20)


def test_forward_has_no_memory(arm: Arm) -> None:
    q = np.array(FR3.home)
    before = arm.step_towards(q, arm.forward(q).moved(np.full(3, 0.01), np.zeros(3)), 0.01)
    arm.step_towards(q + 0.3, arm.forward(q), 0.01)
    after = arm.step_towards(q, arm.forward(q).moved(np.full(3, 0.01), np.zeros(3)), 0.01)
    np.testing.assert_array_equal(before, after)


def test_rotation_vector_inverts_rotation_matrix() -> None:
    rng = np.random.default_rng(2)
    for vector in rng.normal(size=(100, 3)) * rng.choice([1e-12, 1e-6, 0.1, 1.0], (100, 1)):
        rotation = rotation_matrix(vector)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(rotation_vector(rotation), vector, atol=1e-8)


def test_state_vector_is_what_its_names_say(arm: Arm) -> None:
    state = arm.proprio(np.array(FR3.home), 0.03)
    assert state.dtype == np.float32
    assert len(state) == len(FR3.state_names) == len(FR3.state_units)
    named = dict(zip(FR3.state_names, state, strict=True))
    pose = arm.forward(np.array(FR3.home))
    assert named["gripper_width"] == pytest.approx(0.03)
    assert named["ee_z"] == pytest.approx(pose.position[2], abs=1e-6)
    assert named["ee_r31"] == pytest.approx(pose.rotation[2, 0], abs=1e-6)
    assert named["ee_r12"] == pytest.approx(pose.rotation[0, 1], abs=1e-6)
