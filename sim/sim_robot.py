"""A robot body inside a MuJoCo scene, on the scene's own clock."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from volar.robots.body import JointCommand, JointState
from volar.robots.errors import VolarError
from volar.robots.spec import RobotSpec
from volar.sim.rendering import CameraRenderer

if TYPE_CHECKING:
    import mujoco


class SimulationDiverged(VolarError):
    """The physics became non-finite or unstable; only the episode it happened in is lost."""


class SimRobot:
    """`volar.robots.body.Body` over a model and its data.

    `cameras`: name -> (width, height) [pixels]. The renderer is made at the first image, in the process
    that asks for it, so that a state-only simulation needs no OpenGL. Time is simulation time: an exact
    number of physics steps since `restart`.
    """

    def __init__(
        self,
        spec: RobotSpec,
        model: "mujoco.MjModel",
        data: "mujoco.MjData",
        cameras: Mapping[str, tuple[int, int]],
    ) -> None:
        self._spec, self._model, self._data = spec, model, data
        self._cameras = dict(cameras)
        self._renderer: CameraRenderer | None = None
        self._shown: mujoco.MjData | None = None  # an older state, for `images`
        self._steps = 0
        self._step_ns = round(model.opt.timestep * 1e9)
        self._q = [model.joint(name).qposadr[0] for name in spec.joint_names]
        self._dq = [model.joint(name).dofadr[0] for name in spec.joint_names]
        self._fingers = [model.joint(name).qposadr[0] for name in spec.gripper_joint_names]
        self._ctrl = [model.actuator(name).id for name in spec.joint_names]
        self._gripper = model.actuator("gripper").id
        # A position servo (force = kp (ctrl - q) - kv dq) lags by kv / kp, 0.1 s here; the real arm's controller
        # feeds the velocity forward and does not, so neither does this one.
        kp, kv = model.actuator_gainprm[self._ctrl, 0], -model.actuator_biasprm[self._ctrl, 2]
        self._lag_s = kv / kp

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """Camera name -> (width, height) [pixels]."""
        return dict(self._cameras)

    @property
    def now_ns(self) -> int:
        """Simulation time since `restart` [ns]."""
        return int(self._steps * self._step_ns)

    def restart(self) -> None:
        """Sets the clock to zero; the caller has placed the bodies."""
        self._steps = 0

    def joint_state(self, past: tuple[int, NDArray[np.float64], NDArray[np.float64]] | None = None) -> JointState:
        """Measured now; or then, given the time [ns] and a `snapshot`."""
        stamp_ns, qpos, qvel = past or (self.now_ns, self._data.qpos, self._data.qvel)
        width_m = self._spec.gripper_width(qpos[self._fingers])
        return JointState(qpos[self._q], qvel[self._dq], width_m, stamp_ns)

    def snapshot(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions (nq,) and velocities (nv,) of everything in the scene now, to measure or show them later."""
        return self._data.qpos.copy(), self._data.qvel.copy()

    def images(self, qpos: NDArray[np.float64] | None = None) -> dict[str, NDArray[np.uint8]]:
        """What the cameras see; of the scene as it was, given its `qpos`."""
        if not self._cameras:
            return {}
        if self._renderer is None:
            self._renderer = CameraRenderer(self._model, self._cameras)
        return self._renderer.render(self._data if qpos is None else self.as_it_was(qpos))

    def image_stamps(self) -> dict[str, int]:
        """When the cameras' newest images were taken [ns]: rendered when asked for, so now."""
        return dict.fromkeys(self._cameras, self.now_ns)

    def send(self, command: JointCommand) -> None:
        self.drive(command.q, command.dq, command.gripper_width_m)

    def drive(self, q: NDArray[np.float64], dq: NDArray[np.float64], gripper_width_m: float) -> None:
        """What a command does to the motors: q (J,) [rad], dq (J,) [rad/s]."""
        self._data.ctrl[self._ctrl] = q + self._lag_s * dq
        self._data.ctrl[self._gripper] = gripper_width_m

    def advance(self, dt_s: float) -> None:
        """Steps the physics. Raises `SimulationDiverged` when it becomes unstable or non-finite,
        `ValueError` when `dt_s` is not a multiple of the time step."""
        import mujoco

        steps = round(dt_s * 1e9) / self._step_ns
        if steps != int(steps):
            raise ValueError(f"dt_s {dt_s} is not a multiple of the time step {self._step_ns} ns")
        mujoco.mj_step(self._model, self._data, int(steps))
        self._steps += int(steps)
        # MuJoCo resets the state when it finds it bad, so the warning's counter is what tells.
        bad = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
        if any(self._data.warning[kind].number for kind in bad) or not np.isfinite(self._data.qpos).all():
            raise SimulationDiverged(f"the simulation became unstable after {self.now_ns / 1e9:.3f} s")

    def as_it_was(self, qpos: NDArray[np.float64]) -> "mujoco.MjData":
        """The scene at `qpos`, of a `snapshot`; the next call changes it."""
        import mujoco

        if self._shown is None:
            self._shown = mujoco.MjData(self._model)
        self._shown.qpos[:] = qpos
        self._shown.mocap_pos[:], self._shown.mocap_quat[:] = self._data.mocap_pos, self._data.mocap_quat
        mujoco.mj_kinematics(self._model, self._shown)
        mujoco.mj_comPos(self._model, self._shown)
        mujoco.mj_camlight(self._model, self._shown)
        return self._shown

    def close(self) -> None:
        """Frees the renderer; a later `images` makes a new one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
