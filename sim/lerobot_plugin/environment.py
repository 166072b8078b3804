"""A task as LeRobot's programs address an environment."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from volar.sim.closed_loop import episode_seed
from volar.sim.env import ObservationDict, TabletopEnv

BODY_BYTES = 64  # of the observation's `body`: UTF-8, padded with zeros
Observed = dict[str, Any]


class LeRobotEnv(gymnasium.Wrapper[Observed, Any, ObservationDict, Any]):
    """`TabletopEnv` under LeRobot's names: `pixels` {camera: uint8 (H, W, 3)}, `agent_pos` float32 (S,), and
    `task_description`, which its loop hands to the policy as the instruction.

    `body` uint8 (64,) says `ROBOT RATE`, as in `fr3 10`: LeRobot shows a policy nothing but observations, and one with
    a contract compares. Others leave it alone.
    A seed of `reset` is the number of an episode of `volar-evaluate seed=SEED`, the same scene and instruction.
    """

    def __init__(self, task: str, seed: int, **settings: Any) -> None:
        self._tabletop = TabletopEnv(task, render_mode="rgb_array", **settings)
        super().__init__(self._tabletop)
        self._seed = seed
        spec = self._tabletop.world.spec
        text = f"{spec.name} {spec.action.rate_hz:g}".encode()
        self._body = np.frombuffer(text.ljust(BODY_BYTES, b"\0"), np.uint8)
        seen = self._tabletop.observation_space
        assert isinstance(seen, spaces.Dict)
        cameras = self._tabletop.world.body.cameras
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Dict({name: seen[name] for name in cameras}),
                "agent_pos": seen["state"],
                "body": spaces.Box(0, 255, (BODY_BYTES,), np.uint8),
            }
        )

    @property
    def task(self) -> str:
        return self._tabletop.world.task.name

    @property
    def task_description(self) -> str:
        return self._tabletop.world.instruction

    @property
    def _max_episode_steps(self) -> int:
        return self._tabletop.max_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observed, Any]:
        episode = None if seed is None else episode_seed(self._seed, self.task, seed)
        observation, info = self._tabletop.reset(seed=episode, options=options)
        return self._lerobot(observation), info

    def step(self, action: Any) -> tuple[Observed, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._tabletop.step(action)
        return self._lerobot(observation), reward, terminated, truncated, info

    def _lerobot(self, observation: ObservationDict) -> Observed:
        pixels = {name: observation[name] for name in self._tabletop.world.body.cameras}
        return {"pixels": pixels, "agent_pos": observation["state"], "body": self._body}
