"""Rollouts with the policy in the loop against the same policy in Stable-Baselines3's own PPO, and where time goes.

    python -P benchmarks/rl.py                 reach, no randomization, one process
    python -P benchmarks/rl.py lift full 2     a task, a preset, and how many worker processes

Both loops act through the same control loop and filter, and are timed with their update; ours also without. The plain
one is SB3's with its defaults: one environment, a decision every step, every image rendered, and the whole network run
again in each of ten epochs. Ours decides every `execute_steps` steps, renders then, and keeps what a frozen trunk has
computed.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from volar.rl.episodes import Job, Setting
from volar.rl.exploration import Exploration
from volar.rl.learner import Learner, UpdateConfig
from volar.rl.ppo import ppo_update
from volar.rl.rewards import privileged_size
from volar.rl.rollouts import InProcessRollouts, ProcessRollouts, RolloutWorker, WorkerSetup
from volar.rl.token_policy import TokenPolicy, token_policy
from volar.rl.wire import encode_weights, trained_names
from volar.robots.policies import default_policy
from volar.sim.env import TabletopEnv
from volar.vla.checkpoint_policy import load_parts
from volar.vla.processor_volar import InferenceGraph, save_policy

EPISODES, PLAIN_STEPS, EXECUTED = 32, 512, 4


class PlainEnv(gymnasium.Env[dict[str, Any], Any]):
    """The task as SB3 would be given it: raw observations, one action of tokens a step."""

    def __init__(self, task: str, preset: str, folder: Path) -> None:
        model, self._contract, self._tokenizer = load_parts(folder)
        self._table = InferenceGraph(model, self._contract).table.numpy()
        size = self._contract.cameras[0].width
        self._env = TabletopEnv(task, image_size=size, randomization=preset)
        names = [camera.name for camera in self._contract.cameras]
        boxes: dict[str, spaces.Space[Any]] = {n: spaces.Box(0, 255, (1, size, size, 3), np.uint8) for n in names}
        boxes["state"] = spaces.Box(-10, 10, (len(self._contract.state_names),), np.float32)
        boxes["input_ids"] = spaces.Box(0, 2048, (model.config.text_length,), np.int64)
        self.observation_space = spaces.Dict(boxes)
        self.action_space = spaces.MultiDiscrete([256] * self._contract.action.size)

    def _seen(self, observation: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        found = {c.name: observation[c.name][None] for c in self._contract.cameras}
        ids = self._tokenizer.encode([info["instruction"]])[0]
        return found | {"state": observation["state"], "input_ids": ids}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        super().reset(seed=seed)
        observation, info = self._env.reset(seed=seed)
        return self._seen(observation, info), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        chosen = self._table[np.arange(len(action)), action]
        observation, reward, success, truncated, info = self._env.step(chosen)
        return self._seen(observation, info), reward, success, truncated, {}


def plain(task: str, preset: str, folder: Path) -> float:
    """Environment steps a second of SB3's PPO, its update included."""
    from stable_baselines3 import PPO

    model, contract, _ = load_parts(folder)
    kwargs = {"model": model, "contract": replace(contract, execute_steps=1), "exploration": Exploration(1.0, 0.0, 0.0)}
    ppo = PPO(TokenPolicy, PlainEnv(task, preset, folder), n_steps=PLAIN_STEPS, policy_kwargs=kwargs, device="cpu")
    started = time.perf_counter()
    ppo.learn(PLAIN_STEPS)
    return PLAIN_STEPS / (time.perf_counter() - started)


def ours(setup: WorkerSetup, jobs: list[Job], workers: int) -> tuple[float, float]:
    """Environment steps a second of the rollouts alone, and of the rollouts with PPO's update on them."""
    model, contract, _ = load_parts(setup.policy)
    seen = privileged_size(setup.setting.tasks)
    learner = Learner(token_policy(model, contract, privileged=seen, exploration=setup.exploration), UpdateConfig())
    with InProcessRollouts(setup) if workers == 1 else ProcessRollouts(setup, workers) as rollouts:
        rollouts.run(jobs[:workers])  # imports, compiles, opens the renderer
        started = time.perf_counter()
        rollouts.broadcast(encode_weights(learner.policy.vla, trained_names(learner.policy.vla)))
        trajectories = rollouts.run(jobs)
        collected_s = time.perf_counter() - started
        ppo_update(learner, trajectories, np.random.default_rng(0), setup.setting.gamma)
        whole_s = time.perf_counter() - started
    steps = sum(int(t.steps.sum()) for t in trajectories)
    return steps / collected_s, steps / whole_s


def timed(owner: Any, name: str, seconds: dict[str, float], key: str) -> None:
    """Counts the time that a method takes."""
    method: Callable[..., Any] = getattr(owner, name)

    def measured(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            seconds[key] += time.perf_counter() - started

    setattr(owner, name, measured)


def shares(worker: RolloutWorker, jobs: list[Job]) -> None:
    """Where the time of an update goes, in one process."""
    seconds: dict[str, float] = defaultdict(float)
    runner, started = worker.runner, time.perf_counter()
    timed(runner.policy, "predict", seconds, "inference")
    for task in runner.setting.tasks:
        world, loop = runner._world(task)
        timed(world.body, "images", seconds, "rendering")
        timed(world, "advance", seconds, "physics")
        timed(loop, "tick", seconds, "tick")
    trajectories = [runner.run(job) for job in jobs]
    whole = time.perf_counter() - started
    learner = Learner(worker.policy, UpdateConfig())
    started = time.perf_counter()
    ppo_update(learner, trajectories, np.random.default_rng(0), 0.99)
    seconds["update"] = time.perf_counter() - started
    seconds["control loop"] = seconds.pop("tick") - seconds["inference"] - seconds["rendering"]
    seconds["the rest"] = whole + seconds["update"] - sum(seconds.values())
    total = sum(seconds.values())
    print("share of time: " + ", ".join(f"{key} {100 * value / total:.1f} %" for key, value in seconds.items()))


def main(task: str = "reach", preset: str = "none", workers: int = 1) -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "policy"
        model, contract, tokenizer = load_parts(default_policy())
        save_policy(folder, model, replace(contract, execute_steps=EXECUTED), tokenizer)
        setting = Setting((task,), randomization=preset)
        setup = WorkerSetup(folder, EXECUTED, Exploration(0.3, 3.0, 0.8), "head", setting)
        jobs = [Job(task, 2**48 + i, noise_seed=i) for i in range(EPISODES)]
        collecting, learning = ours(setup, jobs, workers)
        print(f"{task}, {preset}, {workers} worker(s): {learning:.0f} environment steps/s, update included")
        print(f"the same rollouts without the update: {collecting:.0f} environment steps/s")
        own = plain(task, preset, folder)
        print(f"the same policy in SB3's own PPO loop, update included: {own:.0f} environment steps/s")
        worker = RolloutWorker(setup)
        shares(worker, jobs)
        worker.close()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
