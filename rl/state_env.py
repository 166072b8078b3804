"""`volar/<Task>-v0` as seen by a policy of state, and how what such a policy does is executed."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from volar.rl.rewards import Told, make_reward, privileged_size, privileged_state
from volar.sim.env import TabletopEnv, environment_id
from volar.sim.tasks import load_task
from volar.sim.world import TaskWorld

Observation = dict[str, NDArray[np.float32]]
STEP_M = 0.035  # longest displacement along an axis in one step of 0.1 s: that of the scripted experts
_PROGRESS = 10.0  # of the potential, which changes by some hundredths a step


class StateEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """`gymnasium.make("volar.sim.gymnasium_ids:volar/<Task>-v0")` without cameras, for policies of state.

    Observation: `proprio` (S,), the robot's state, and `scene` (P,), see `observe`. Action (4,) in [-1, 1], see
    `whole_action`. Reward as in `volar.rl.rewards`; success terminates. Progress counts `_PROGRESS` times and is not
    discounted: with the learner's own discount every place is worth as much as every other until success has been met
    by chance, and beside SAC's entropy bonus a step was worth nothing. Raises `Unknown` for a task, robot, reward or
    randomization that does not exist.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # Gymnasium's own

    def __init__(
        self,
        task: str,
        reward: str = "dense",
        randomization: str = "none",
        robot: str = "fr3",
        step_m: float = STEP_M,
    ) -> None:
        name = environment_id(load_task(task).name)
        self._env: gymnasium.Env[Any, Any] = gymnasium.make(
            f"volar.sim.gymnasium_ids:{name}", robot=robot, cameras=(), randomization=randomization
        )
        self._kind, self._step_m = reward, step_m
        self.observation_space: spaces.Space[Any] = spaces.Dict(
            {
                "proprio": spaces.Box(-10.0, 10.0, (len(self.world.spec.state_names),), np.float32),
                "scene": spaces.Box(-5.0, 5.0, (privileged_size((task,)),), np.float32),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._steps = 0

    @property
    def world(self) -> TaskWorld:
        return self._tabletop.world

    @property
    def _tabletop(self) -> TabletopEnv:
        inner = self._env.unwrapped
        assert isinstance(inner, TabletopEnv)
        return inner

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        seen, info = self._env.reset(seed=chosen, options=options)
        told = Told(self.world.task, self.world.goal)
        self._reward = make_reward(self._kind, told, gamma=1.0, weight=_PROGRESS)
        self._reward.begin(self.world.state)
        self._steps = 0
        return self._observe(seen), info

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        seen, _, success, truncated, info = self._env.step(whole_action(action, self.world, self._step_m))
        self._steps += 1
        earned = self._reward.after_step(self.world.state, success)
        return self._observe(seen), earned, success, truncated, info

    def close(self) -> None:
        self._env.close()

    def _observe(self, seen: dict[str, Any]) -> Observation:
        return observe(self.world, seen["state"], 1.0 - self._steps / self._tabletop.max_steps)


def observe(world: TaskWorld, proprio: NDArray[np.float32], left: float) -> Observation:
    """What a policy of state sees now: `proprio` (S,), `scene` (P,), see `privileged_state`; `left`: share of the
    episode's steps that are still to come."""
    scene = privileged_state(Told(world.task, world.goal), world.state, left, (world.task.name,))
    return {"proprio": proprio, "scene": scene}


def whole_action(action: NDArray[np.float32], world: TaskWorld, step_m: float) -> NDArray[np.float32]:
    """The robot's action (7,): three displacements in units of `step_m` [m, table coordinates], no rotation, and the
    gripper, from (4,) in [-1, 1] where 1 is open."""
    action = np.clip(action, -1, 1)
    displacement = step_m * world.table.scale * action[:3]
    gripper = (action[3:] + 1) / 2
    whole: NDArray[np.float32] = np.concatenate([displacement, np.zeros(3), gripper]).astype(np.float32)
    return whole
