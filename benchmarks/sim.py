"""Figures of the simulator: `python benchmarks/sim.py [speed|experts] [seeds]`.

`speed` (the default): environment steps, frames, physics steps, demonstrations and grounding scenes a second, in
one process. `experts`: success and length of every task's expert over 100 seeds (or as many as given).
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import mujoco
import numpy as np

from volar.sim.demonstration import Disturbances, rollout
from volar.sim.env import TabletopEnv
from volar.sim.grounding import render_scenes
from volar.sim.tasks import TASKS
from volar.sim.world import StepDriver, TaskWorld


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def environment_rate(cameras: tuple[str, ...], steps: int = 200) -> float:
    env = TabletopEnv("lift", cameras=cameras, max_steps=10**6)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = rng.uniform(env.world.spec.action.low, env.world.spec.action.high, (steps, 7)).astype(np.float32)

    def run() -> None:
        for action in actions:
            env.step(action)

    env.step(actions[0])
    rate = steps / seconds(run)
    env.close()
    return rate


def _demonstrations(driver: StepDriver, count: int) -> None:
    for seed in range(count):
        rollout(driver, seed)


def speed() -> None:
    world = TaskWorld("lift")
    world.reset(0)
    world.body.images()
    frames_s = seconds(lambda: [world.body.images() for _ in range(200)]) / 400
    steps_s = seconds(lambda: mujoco.mj_step(world.model, world.data, 20_000)) / 20_000
    print(f"environment, 2 cameras of 96 x 96   {environment_rate(('front', 'wrist')):8.0f} steps/s (10 Hz steps)")
    print(f"environment, state only             {environment_rate(()):8.0f} steps/s")
    print(f"rendering, 96 x 96                  {1e3 * frames_s:8.2f} ms a frame")
    print(f"physics, idle scene at 500 Hz       {1 / steps_s:8.0f} steps/s")
    for task in TASKS:
        driver = StepDriver(TaskWorld(task))
        rollout(driver, 0)
        taken_s = seconds(partial(_demonstrations, driver, 10))
        print(f"demonstrations, {task:<20}{600 / taken_s:8.0f} a minute")
    render_scenes(np.random.default_rng(0), 2)  # its arm poses are solved once a process
    taken_s = seconds(lambda: render_scenes(np.random.default_rng(0), 300))
    print(f"grounding scenes                    {300 / taken_s:8.0f} /s")


def experts(seeds: int) -> None:
    for name, task in TASKS.items():
        driver = StepDriver(TaskWorld(name, cameras=()))
        for noise in (0.0, 1.0):
            results = [rollout(driver, seed, Disturbances(scale=noise)) for seed in range(seeds)]
            lengths = [len(episode) - task.steps_after_success for episode in results if episode.success]
            failed = [episode.seed for episode in results if not episode.success]
            print(
                f"{name:<9} noise {noise:.0f}: {len(lengths)}/{seeds}, steps to success mean {np.mean(lengths):.1f}, "
                f"max {np.max(lengths)}; failed seeds {failed}",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["experts"]:
        experts(int(sys.argv[2]) if len(sys.argv) > 2 else 100)
    elif sys.argv[1:] in ([], ["speed"]):
        speed()
    else:
        sys.exit(__doc__)
