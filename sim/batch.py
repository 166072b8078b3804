"""Many state-only simulations of one task at once, stepped by MuJoCo's own threads (`mujoco.batch.Batch`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import UsageError
from volar.sim.colors import COLORS
from volar.sim.randomization import INTERVAL_DRAWS, Randomization
from volar.sim.scene_stage import model_arrays
from volar.sim.tasks.task import Goal
from volar.sim.world import TaskWorld

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class BatchState:
    """Of N simulations: arm joints `q` (N, J) [rad] and `dq` [rad/s], `gripper_width_m` (N,), end-effector site `tcp`
    (N, 3) [m], `blocks` (N, 4, 3) centres in the order of `COLORS` [m] and `plate` (N, 3) [m] in the table's frame
    (NaN in a scene without one)."""

    q: Vector
    dq: Vector
    gripper_width_m: Vector
    tcp: Vector
    blocks: Vector
    plate: Vector


class BatchEnv:
    """`simulations` episodes of one task side by side, without cameras, control loop or safety filter.

    An action is where each arm is to be at the end of the step: joint positions [rad] and gripper width [m],
    (N, J + 1); the servos follow it along a straight line, with its velocity fed forward as in `SimRobot`. Layouts
    are those of `TaskWorld` for the same seeds, and so are the draws of `randomization`, whose terms must all act on
    the physics (pushes during the episode included). Results do not depend on `threads` (0: one for each CPU). A
    simulation that diverges is flagged in `diverged` and rests until it is reset; the others go on.

    Raises `UsageError` for a randomization of anything else, `ValueError` for a `control_hz` that is no whole number
    of time steps, and what `TaskWorld` raises.
    """

    def __init__(
        self,
        task: str,
        simulations: int,
        robot: str = "fr3",
        randomization: str | Path | Randomization = "none",
        control_hz: float = 100.0,
        threads: int = 0,
    ) -> None:
        from mujoco.batch import Batch

        if simulations < 1:
            raise ValueError(f"simulations must be at least 1, is {simulations}")
        self._world = TaskWorld(task, robot, cameras=(), randomization=_physical(randomization))
        self._model, spec = self._world.model, self._world.spec
        substeps = 1.0 / (control_hz * self._model.opt.timestep) if control_hz > 0 else 0.0
        if round(substeps) < 1 or abs(substeps - round(substeps)) > 1e-6:
            raise ValueError(f"control_hz={control_hz} must divide {1 / self._model.opt.timestep:g} Hz")
        self.substeps, self._dt_s = round(substeps), 1.0 / control_hz
        self._batch = Batch(self._model, simulations, threads, persistent=True)
        self._qpos, self._qvel, self._ctrl = (self._batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self._mocap_pos, self._mocap_quat = self._batch.bind("mocap_pos"), self._batch.bind("mocap_quat")
        self._site, self._xpos = self._batch.bind("site_xpos"), self._batch.bind("xpos")
        model = self._model
        self._q = [int(model.joint(name).qposadr[0]) for name in spec.joint_names]
        self._dq = [int(model.joint(name).dofadr[0]) for name in spec.joint_names]
        self._fingers = [int(model.joint(name).qposadr[0]) for name in spec.gripper_joint_names]
        self._actuators = [model.actuator(name).id for name in (*spec.joint_names, "gripper")]
        servo = self._actuators[:-1]
        self._lag_s = -model.actuator_biasprm[servo, 2] / model.actuator_gainprm[servo, 0]
        self._tcp = model.site(spec.ee_site).id
        self._blocks = [model.body(f"block_{color}").id for color in COLORS]
        bodies = [model.body(i).name for i in range(model.nbody)]
        self._plate = bodies.index("plate") if "plate" in bodies else None
        self._shared = {name: array.copy() for name, array in model_arrays(model).items()}
        self._target = np.zeros((simulations, spec.joints + 1))
        self._steps = np.zeros(simulations, np.int64)  # since reset
        self._pushes = [term for term in self._world.randomization.terms if term.mode == "interval"]
        self.goals: list[Goal] = [Goal("", np.zeros(3))] * simulations
        self.draws: list[dict[str, Any]] = [{} for _ in range(simulations)]
        self.diverged = np.zeros(simulations, bool)

    @property
    def simulations(self) -> int:
        return len(self.goals)

    def reset(self, seeds: Sequence[int], which: Sequence[int] | None = None) -> BatchState:
        """Begins the episodes of `seeds` in the simulations `which`, all by default. Raises `NoLayout`."""
        places = range(self.simulations) if which is None else which
        if len(seeds) != len(places):
            raise ValueError(f"{len(seeds)} seeds for {len(places)} simulations")
        import mujoco

        ids = np.array(places, np.int32)
        self._batch.reset(ids, stage=int(mujoco.mjtStage.mjSTAGE_NONE))
        for i, seed in zip(places, seeds, strict=True):
            self._world.reset(seed)
            self._qpos[i], self._qvel[i] = self._world.data.qpos, self._world.data.qvel
            self._ctrl[i] = self._world.data.ctrl
            self._mocap_pos[i], self._mocap_quat[i] = self._world.data.mocap_pos, self._world.data.mocap_quat
            self._copy_model(i)
            self.goals[i], self.draws[i] = self._world.goal, dict(self._world.draws)
        self._batch.forward(ids)
        self.diverged[ids], self._steps[ids] = False, 0
        self._target[ids] = np.hstack([self._qpos[ids][:, self._q], self._width(ids)[:, None]])
        return self.state

    def step(self, action: Vector) -> BatchState:
        """Runs one step of `1 / control_hz` [s]; `action` (N, J + 1). Raises `ValueError` on another shape or NaN."""
        action = np.asarray(action, np.float64)
        if action.shape != self._target.shape or not np.isfinite(action).all():
            raise ValueError(f"actions must be finite and {self._target.shape}, are {action.shape}")
        alive = np.flatnonzero(~self.diverged).astype(np.int32)
        if len(alive):
            self._push(alive)
            self._advance(alive, action[alive])
            self._steps[alive] += 1
        return self.state

    @property
    def state(self) -> BatchState:
        """Now; positions in space are those at the beginning of the last time step, as in `TaskWorld`."""
        everything = np.arange(self.simulations)
        plate = np.full((self.simulations, 3), np.nan) if self._plate is None else self._xpos[:, self._plate].copy()
        return BatchState(
            q=self._qpos[:, self._q],
            dq=self._qvel[:, self._dq],
            gripper_width_m=self._width(everything),
            tcp=self._site[:, self._tcp].copy(),
            blocks=self._xpos[:, self._blocks],
            plate=plate,
        )

    def success(self) -> NDArray[np.bool_]:
        """Whether each simulation's task is done (N,); never where it diverged."""
        import mujoco

        data = self._world.data
        found = np.zeros(self.simulations, bool)
        for i in np.flatnonzero(~self.diverged):
            if (places := self._batch.expanded("body_pos")) is not None:  # of the robot's base, by `table_height`
                self._model.body_pos[:] = places[i]
            data.qpos[:] = self._qpos[i]
            data.mocap_pos[:], data.mocap_quat[:] = self._mocap_pos[i], self._mocap_quat[i]
            mujoco.mj_kinematics(self._model, data)
            found[i] = self._world.task.success(self._world.state, self.goals[i])
        return found

    def _push(self, alive: NDArray[np.int32]) -> None:
        """Gives objects the velocities that are due, as `Randomizer.tick` does."""
        for term in self._pushes:
            every = term.interval_s / self._dt_s  # steps
            times = np.floor(self._steps[alive] / every + 1e-9).astype(int)
            due = times > np.floor((self._steps[alive] - 1) / every + 1e-9)
            for i, count in zip(alive[due & (times > 0)], times[due & (times > 0)], strict=True):
                drawn = self.draws[i][term.key][(count - 1) % INTERVAL_DRAWS]
                assert self._world.randomizer is not None
                for name, dof in self._world.randomizer.elements(term).items():
                    self._qvel[i, dof : dof + 3] += drawn[name] if isinstance(drawn, dict) else drawn

    def _advance(self, alive: NDArray[np.int32], target: Vector) -> None:
        import mujoco

        start = self._target[alive]
        share = np.arange(1, self.substeps + 1)[:, None] / self.substeps
        path = start[:, None] + share * (target - start)[:, None]  # (n, substeps, J + 1)
        path[..., :-1] += self._lag_s * ((target - start) / self._dt_s)[:, None, :-1]
        control = np.empty((len(alive), self.substeps, self._model.nu))
        control[..., self._actuators] = path
        before = self._batch.warning[alive].copy()
        self._batch.rollout(
            self.substeps, control, control_spec=int(mujoco.mjtState.mjSTATE_CTRL), record=(), ids=alive
        )
        bad = (self._batch.warning[alive] > before).any(axis=tuple(range(1, before.ndim)))
        self._target[alive] = target
        self.diverged[alive] = bad | ~np.isfinite(self._qpos[alive]).all(axis=1)

    def _width(self, ids: NDArray[Any]) -> Vector:
        spec = self._world.spec
        return np.asarray(self._qpos[ids][:, self._fingers].sum(axis=1) * spec.gripper_m_per_unit)

    def _copy_model(self, i: int) -> None:
        """Gives simulation `i` the model that the world has drawn, where it differs or differed."""
        from mujoco.batch import MODEL_FIELDS

        for name, now in model_arrays(self._model).items():
            if name not in MODEL_FIELDS:  # light: nothing that moves
                continue
            if self._batch.expanded(name) is not None or not np.array_equal(now, self._shared[name]):
                self._batch.expand(name)[i] = now


def _physical(randomization: str | Path | Randomization) -> Randomization:
    found = Randomization.of(randomization)
    others = [term.key for term in found.terms if term.axis.part != "physics"]
    if others:
        raise UsageError(
            f"randomization {found.name}: {', '.join(others)} cannot act in a batch, which has neither cameras nor "
            "a control loop; give terms of the physics only, such as dynamics"
        )
    return found
