"""Stable-Baselines3's own PPO and SAC on the tasks, seeing the simulator's state: are they learnable?

    python -m volar.rl.state_baselines task=reach algorithm=sac steps=20000 output=runs/state-reach

A sanity check of tasks and rewards, and a teacher whose actions need no scripted expert. It knows neither images nor
words, and is no policy for an arm. Leaves model.zip (Stable-Baselines3's format) and results.json.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from volar.rl.rewards import REWARDS, Told, make_reward, privileged_size, privileged_state
from volar.robots.command_line import run
from volar.robots.errors import Unknown, UsageError
from volar.sim.closed_loop import episode_seed

EXAMPLES = (
    "python -m volar.rl.state_baselines task=reach algorithm=sac steps=20000 output=runs/state-reach",
    "python -m volar.rl.state_baselines task=push algorithm=ppo steps=200000 output=runs/state-push",
)
Observation = dict[str, NDArray[np.float32]]
_PROGRESS = 10.0  # of the potential, which changes by some hundredths a step


class StateEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """`volar/<Task>-v0` without cameras, for policies of state.

    Observation: `proprio` (S,), the robot's state, and `scene` (P,), see `privileged_state`. Action (4,) in [-1, 1]:
    displacement in units of `step_m`, and the gripper, 1 = open. Reward as in `volar.rl.rewards`; success terminates.
    Progress counts `_PROGRESS` times and is not discounted: with the learner's own discount every place is worth as
    much as every other until success has been met by chance, and beside SAC's entropy bonus a step was worth nothing.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # Gymnasium's own

    def __init__(
        self,
        task: str,
        reward: str = "dense",
        randomization: str = "none",
        robot: str = "fr3",
        step_m: float = 0.035,
    ) -> None:
        from volar.sim.env import TabletopEnv

        self._env = TabletopEnv(task, robot, cameras=(), randomization=randomization)
        self._kind, self._step_m = reward, step_m
        states = len(self._env.world.spec.state_names)
        self.observation_space: spaces.Space[Any] = spaces.Dict(
            {
                "proprio": spaces.Box(-10.0, 10.0, (states,), np.float32),
                "scene": spaces.Box(-5.0, 5.0, (privileged_size((task,)),), np.float32),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._left = 1.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        seen, info = self._env.reset(seed=chosen, options=options)
        world = self._env.world
        self._told = Told(world.task, world.goal)
        self._reward = make_reward(self._kind, self._told, gamma=1.0, weight=_PROGRESS)
        self._reward.begin(world.state)
        self._left = 1.0
        return self._observe(seen), info

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        displacement = self._step_m * np.clip(action[:3], -1, 1)
        gripper = (np.clip(action[3:], -1, 1) + 1) / 2
        whole = np.concatenate([displacement, np.zeros(3), gripper]).astype(np.float32)
        seen, _, success, truncated, info = self._env.step(whole)
        self._left -= 1.0 / self._env.max_steps
        earned = self._reward.after_step(self._env.world.state, success)
        return self._observe(seen), earned, success, truncated, info

    def close(self) -> None:
        self._env.close()

    def _observe(self, seen: dict[str, Any]) -> Observation:
        world = self._env.world
        scene = privileged_state(self._told, world.state, self._left, (world.task.name,))
        return {"proprio": seen["state"], "scene": scene}


@dataclass(frozen=True)
class BaselineConfig:
    """Settings of `python -m volar.rl.state_baselines`."""

    output: Path = field(metadata={"help": "folder for model.zip and results.json"})
    task: str = field(default="reach", metadata={"help": "what to learn"})
    algorithm: Literal["ppo", "sac"] = field(default="sac", metadata={"help": "Stable-Baselines3's"})
    steps: int = field(default=20_000, metadata={"help": "of the environment"})
    reward: str = field(default="dense", metadata={"help": "sparse: success; dense: also the way there"})
    randomization: str = field(default="none", metadata={"help": "a preset, or a .yaml"})
    seed: int = field(default=0, metadata={"help": "of weights, actions and scenes"})
    episodes: int = field(default=50, metadata={"help": "to evaluate on afterwards, the scenes of volar-evaluate"})

    def __post_init__(self) -> None:
        if self.steps < 1 or self.episodes < 1:
            raise UsageError(f"steps={self.steps} and episodes={self.episodes} must be at least 1")
        if self.reward not in REWARDS:
            raise Unknown("reward", self.reward, REWARDS)


def train_baseline(config: BaselineConfig) -> dict[str, Any]:
    """Trains and evaluates; returns what results.json says. Raises `Unknown` for a task that does not exist."""
    from stable_baselines3 import PPO, SAC
    from stable_baselines3.common.monitor import Monitor

    from volar.sim.wilson import wilson_interval

    env = Monitor(StateEnv(config.task, config.reward, config.randomization))
    model: PPO | SAC
    if config.algorithm == "ppo":
        rollout = min(2048, -(-config.steps // 64) * 64)  # no more than asked for, in whole batches
        model = PPO("MultiInputPolicy", env, n_steps=rollout, gamma=0.95, seed=config.seed, device="cpu")
    else:
        model = SAC("MultiInputPolicy", env, gamma=0.95, seed=config.seed, device="cpu")
    model.learn(config.steps, progress_bar=True)
    successes = sum(_succeeds(model, env, episode_seed(0, config.task, i)) for i in range(config.episodes))
    low, high = wilson_interval(successes, config.episodes)
    found = {
        "task": config.task,
        "algorithm": config.algorithm,
        "steps": config.steps,
        "reward": config.reward,
        "successes": successes,
        "episodes": config.episodes,
        "wilson95": [low, high],
    }
    config.output.mkdir(parents=True, exist_ok=True)
    model.save(config.output / "model.zip")
    (config.output / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{config.task}: {successes} of {config.episodes} ({100 * low:.1f} to {100 * high:.1f} %)")
    env.close()
    return found


def _succeeds(model: Any, env: Any, seed: int) -> bool:
    observation, _ = env.reset(seed=seed)
    while True:
        action, _ = model.predict(observation, deterministic=True)
        observation, _, success, truncated, _ = env.step(action)
        if success or truncated:
            return bool(success)


def _main(config: BaselineConfig) -> None:
    train_baseline(config)


def main() -> int:
    return run("python -m volar.rl.state_baselines", BaselineConfig, _main, doc=__doc__, examples=EXAMPLES)


if __name__ == "__main__":
    raise SystemExit(main())
