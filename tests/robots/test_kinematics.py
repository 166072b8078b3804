"""Forward, inverse and differential kinematics against each other, on each robot."""

import numpy as np
import pytest
from numpy.typing import NDArray

from volar.robots.kinematics import Arm, Pose, rotation_matrix, rotation_vector
from volar.robots.spec import load_robot

Matrix = NDArray[np.float64]


@pytest.fixture(scope="module", params=["fr3", "so101", "ur5e"])
def arm(request: pytest.FixtureRequest) -> Arm:
    return Arm(load_robot(request.param))


def test_inverse_undoes_forward(arm: Arm) -> None:
    rng = np.random.default_rng(1)
    spec, home = arm.spec, np.array(arm.spec.home)
    low, high = np.array(spec.position_min), np.array(spec.position_max)
    for _ in range(20):
        target = arm.forward(np.clip(home + rng.uniform(-0.25, 0.25, spec.joints), low, high))
        q = arm.solve(target, home)
        reached = arm.forward(q)
        np.testing.assert_allclose(reached.position, target.position, atol=1e-4)
        np.testing.assert_allclose(reached.rotation, target.rotation, atol=2e-3)
        assert (q >= low).all()
        assert (q <= high).all()


def test_unreachable_target_says_how_far(arm: Arm) -> None:
    with pytest.raises(ValueError, match="left after"):
        arm.solve(Pose(np.array([3.0, 0.0, 0.0]), np.eye(3)), np.array(arm.spec.home), steps=20)


def test_forward_has_no_memory(arm: Arm) -> None:
    q = np.array(arm.spec.home)
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
    state = arm.proprio(np.array(arm.spec.home), 0.03)
    assert state.dtype == np.float32
    assert len(state) == len(arm.spec.state_names) == len(arm.spec.state_units)
    named = dict(zip(arm.spec.state_names, state, strict=True))
    pose = arm.forward(np.array(arm.spec.home))
    assert named["gripper_width"] == pytest.approx(0.03)
    assert named["ee_z"] == pytest.approx(pose.position[2], abs=1e-6)
    assert named["ee_r31"] == pytest.approx(pose.rotation[2, 0], abs=1e-6)
    assert named["ee_r12"] == pytest.approx(pose.rotation[0, 1], abs=1e-6)
