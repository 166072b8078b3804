"""`--env.type=volar`: which tasks, on which robot, and what a policy sees of them."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end

from volar.robots.errors import Unknown, UsageError
from volar.robots.spec import load_robot, robot_name
from volar.sim.lerobot_plugin.environment import LeRobotEnv
from volar.sim.randomization import Randomization
from volar.sim.tasks import SUITES, TASKS


@EnvConfig.register_subclass("volar")
@dataclass
class VolarEnv(EnvConfig):  # type: ignore[misc]
    """Settings as of `volar.sim.env.TabletopEnv`.

    `task`: names of tasks or of suites, with commas between them; LeRobot reports each task as a group of its own.
    `fps`: actions a second, the robot's own rate by default. `episode_length`: in actions, the task's by default.
    `seed`: LeRobot's seeds number the episodes of `volar-evaluate seed=SEED`, so that `--seed=0` runs its first ones.
    `features` and `features_map` follow from the rest. Raises `Unknown` for a task, robot, camera or randomization.
    """

    task: str = "reach"
    fps: int | None = None
    robot: str = "fr3"
    cameras: list[str] = field(default_factory=lambda: ["front", "wrist"])
    image_size: int = 96
    episode_length: int | None = None
    randomization: str = "none"
    seed: int = 0
    asset: str | None = None

    def __post_init__(self) -> None:
        spec = load_robot(robot_name(self.robot, self.asset))
        self.tasks = _tasks(self.task)
        if not self.cameras:
            raise UsageError(f"cameras is empty; LeRobot films the first one, so name one of {list(spec.cameras)}")
        for camera in self.cameras:
            if camera not in spec.cameras:
                raise Unknown("camera", camera, spec.cameras)
        Randomization.of(self.randomization)
        self.fps = self.fps or round(spec.action.rate_hz)
        size = (self.image_size, self.image_size, 3)
        self.features = {
            **{f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, size) for name in self.cameras},
            "agent_pos": PolicyFeature(FeatureType.STATE, (len(spec.state_names),)),
            "action": PolicyFeature(FeatureType.ACTION, (spec.action.size,)),
        }
        self.features_map = {name: name for name in self.features} | {"agent_pos": "observation.state"}

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {
            "robot": self.robot,
            "cameras": tuple(self.cameras),
            "image_size": self.image_size,
            "max_steps": self.episode_length,
            "randomization": self.randomization,
            "world_seed": self.seed,
            "control_hz": self.fps,
            "asset": self.asset,
        }

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gymnasium.vector.VectorEnv[Any, Any, Any]]]:
        """{task: {0: `n_envs` of it}}; in processes of their own where there are several and LeRobot asks for that."""
        return {task: {0: self._vector(task, n_envs, use_async_envs)} for task in self.tasks}

    def _vector(self, task: str, n_envs: int, use_async_envs: bool) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
        make = freeze_after_episode_end(partial(LeRobotEnv, task, self.seed, **self.gym_kwargs))
        if use_async_envs and n_envs > 1:
            return gymnasium.vector.AsyncVectorEnv([make] * n_envs, context="forkserver")
        return gymnasium.vector.SyncVectorEnv([make] * n_envs)


def _tasks(names: str) -> tuple[str, ...]:
    """`starter,stack` -> the tasks of suite starter, and stack."""
    found: list[str] = []
    for name in (word.strip() for word in names.split(",")):
        if name not in TASKS and name not in SUITES:
            raise Unknown("task", name, (*TASKS, *SUITES))
        found += SUITES.get(name, (name,))
    return tuple(dict.fromkeys(found))
