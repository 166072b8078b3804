"""Forward and differential inverse kinematics of an arm, on MuJoCo and mink."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from volar.robots.spec import RobotSpec

if TYPE_CHECKING:
    import mujoco

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Pose:
    """A pose in the base frame: `position` (3,) [m], `rotation` (3, 3)."""

    position: Vector
    rotation: Matrix

    def moved(self, translation: Vector, rotation_vector: Vector) -> "Pose":
        """The pose displaced in the base frame: translation (3,) [m], rotation vector (3,) [rad]."""
        if not rotation_vector.any():
            return Pose(self.position + translation, self.rotation)
        return Pose(self.position + translation, rotation_matrix(rotation_vector) @ self.rotation)


def rotation_matrix(rotation_vector: Vector) -> Matrix:
    """Rodrigues' formula: (3,) [rad] -> (3, 3), orthonormal to rounding."""
    angle = float(np.linalg.norm(rotation_vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = rotation_vector / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def rotation_vector(rotation: Matrix) -> Vector:
    """Inverse of `rotation_matrix` for angles below pi: (3, 3) -> (3,) [rad]."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = float(np.linalg.norm(axis)) / 2, (float(np.trace(rotation)) - 1) / 2
    if sine < 1e-9:
        return axis / 2
    return np.asarray(axis / (2 * sine) * np.arctan2(sine, cosine))


def standalone(robot: RobotSpec) -> "mujoco.MjModel":
    """The robot without a scene, compiled."""
    import mujoco

    spec = mujoco.MjSpec()
    robot.add_to(spec)
    return spec.compile()


def ancestors(model: "mujoco.MjModel", body: int) -> list[int]:
    """The body itself and what carries it, outwards in, without the world."""
    above = []
    while body:
        above.append(body)
        body = int(model.body_parentid[body])
    return above


def indices(addresses: list[int]) -> "slice | list[int]":
    """The same indices, as a slice where they are consecutive: NumPy assigns it six times as fast."""
    first, count = addresses[0], len(addresses)
    return slice(first, first + count) if addresses == list(range(first, first + count)) else addresses


class Arm:
    """Kinematics of one robot: its own MuJoCo model without a scene; not thread-safe."""

    # Weights of mink's tasks beside the position's, 1; orientation has `RobotSpec.orientation_m`, and the posture
    # only decides the redundant joint.
    _POSTURE_COST = 1e-3
    _DAMPING = 1e-6

    def __init__(self, spec: RobotSpec) -> None:
        import mink
        import mujoco

        self.spec = spec
        self.model = standalone(spec)
        self._joints = indices([int(self.model.joint(name).qposadr[0]) for name in spec.joint_names])
        self._configuration = mink.Configuration(self.model)
        self._site = self.model.site(spec.ee_site).id
        self._task = mink.FrameTask(spec.ee_site, "site", position_cost=1.0, orientation_cost=spec.orientation_m)
        self._posture = mink.PostureTask(self.model, cost=self._POSTURE_COST)
        self._posture.set_target(self._qpos(np.array(spec.home)))
        self._limits = [mink.ConfigurationLimit(self.model)]
        # For `forward`, called several times a control period: of what mink's configuration updates, the frames alone.
        self._data, self._kinematics = mujoco.MjData(self.model), mujoco.mj_kinematics
        self._data.qpos[:] = 0.0
        self._at = self._data.qpos  # views: looking them up costs as much as the kinematics
        self._xpos, self._xmat = self._data.site_xpos[self._site], self._data.site_xmat[self._site].reshape(3, 3)

    @property
    def reach_m(self) -> float:
        """Upper bound of how far the end-effector site moves for one radian of any joint [m]."""
        reach = float(np.linalg.norm(self.model.site_pos[self._site]))
        for body in ancestors(self.model, int(self.model.site_bodyid[self._site])):
            reach += float(np.linalg.norm(self.model.body_pos[body]))
        return reach

    def forward(self, q: Vector) -> Pose:
        """q (J,) [rad] -> pose of the end-effector site in the base frame."""
        self._at[self._joints] = q
        self._kinematics(self.model, self._data)
        return Pose(self._xpos.copy(), self._xmat.copy())

    def position(self, q: Vector | list[float]) -> list[float]:
        """q (J,) [rad] -> position (3,) [m] of the end-effector site in the base frame: what `forward` says."""
        self._at[self._joints] = q
        self._kinematics(self.model, self._data)
        x: list[float] = self._xpos.tolist()
        return x

    def step_towards(self, q: Vector, target: Pose, dt_s: float) -> Vector:
        """One step of differential IK: joint positions (J,) that bring the site to `target` within `dt_s`.

        To first order: call it each control period with the previous result. Inside the joint
        position limits by construction (mink's `ConfigurationLimit`); velocity is the safety filter's.
        Raises `mink.NoSolutionFound` when the quadratic program is infeasible.
        """
        import mink

        self._configuration.update(self._qpos(q))
        self._task.set_target(
            mink.SE3.from_rotation_and_translation(mink.SO3.from_matrix(target.rotation), target.position)
        )
        velocity = mink.solve_ik(
            self._configuration, [self._task, self._posture], dt_s, "daqp", damping=self._DAMPING, limits=self._limits
        )
        return np.asarray(q + velocity[self._joints] * dt_s)

    def solve(self, target: Pose, q: Vector, tolerance_m: float = 1e-4, steps: int = 100) -> Vector:
        """Joint positions (J,) that reach `target`, iterating from `q`; for set-up, not for control.

        Raises `ValueError` with the remaining error when `steps` do not suffice.
        """
        for _ in range(steps):
            here = self.forward(q)
            error = np.linalg.norm(here.position - target.position)
            if error < tolerance_m and np.linalg.norm(rotation_vector(target.rotation @ here.rotation.T)) < 1e-3:
                return q
            q = self.step_towards(q, target, 1.0)
        raise ValueError(f"no joint position reaches {target.position} m: {error:.4f} m left after {steps} steps")

    def proprio(self, q: Vector, gripper_width_m: float) -> NDArray[np.float32]:
        """The state vector (S,) of `RobotSpec.state_names`: position, first two columns of the rotation, width."""
        pose = self.forward(q)
        return np.concatenate([pose.position, pose.rotation[:, 0], pose.rotation[:, 1], [gripper_width_m]]).astype(
            np.float32
        )

    def state(self, names: tuple[str, ...], q: Vector, gripper_width_m: float) -> NDArray[np.float32]:
        """The state vector (S,) that a contract asks for: `proprio`, or joint positions [rad] and the width [m].

        Raises `ValueError` for other names; `contract.require` has refused them before.
        """
        if names == self.spec.joint_state_names:
            return np.append(q, gripper_width_m).astype(np.float32)
        if names != self.spec.state_names:
            raise ValueError(f"{self.spec.name} has no state {names}")
        return self.proprio(q, gripper_width_m)

    def _qpos(self, q: Vector) -> Vector:
        qpos = np.zeros(self.model.nq)
        qpos[self._joints] = q
        return qpos
