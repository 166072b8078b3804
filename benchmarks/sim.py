"""Figures of the simulator: `python benchmarks/sim.py [speed | randomization | experts ...]`.

`speed` (the default): steps of environments, of batches and of the physics, frames, demonstrations and scenes a
second. `randomization`: what each part of it adds to a step, and to a reset. `experts [SEEDS [RANDOMIZATION [ROBOTS
[NOISE]]]]`: success and length of every task's expert with every robot, over 100 seeds or as many as given.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from mujoco.batch import Batch

from volar.sim.batch import BatchEnv
from volar.sim.demonstration import Disturbances, rollout
from volar.sim.env import TabletopEnv
from volar.sim.grounding import render_scenes
from volar.sim.randomization import Randomization, Term
from volar.sim.tasks import TASKS
from volar.sim.world import StepDriver, TaskWorld

ROUNDS = 7  # of interleaved measurements; the fastest counts, what else the machine did does not


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def line(name: str, value: float, unit: str) -> None:
    print(f"{name:<58}{value:10.2f} {unit}" if value < 100 else f"{name:<58}{value:10.0f} {unit}", flush=True)


def actions(env: Any, steps: int) -> np.ndarray:
    space = env.single_action_space if isinstance(env, gymnasium.vector.VectorEnv) else env.action_space
    count = (env.num_envs,) if isinstance(env, gymnasium.vector.VectorEnv) else ()
    return np.random.default_rng(0).uniform(space.low, space.high, (steps, *count, 7)).astype(np.float32)


def environment_rate(cameras: tuple[str, ...], image_size: int, control_hz: float, steps: int = 100) -> float:
    """Steps a second in this process."""
    env = TabletopEnv("lift", cameras=cameras, image_size=image_size, control_hz=control_hz, max_steps=10**6)
    env.reset(seed=0)
    plan = actions(env, steps)
    env.step(plan[0])
    taken_s = min(seconds(lambda: [env.step(action) for action in plan]) for _ in range(ROUNDS))
    env.close()
    return steps / taken_s


def parallel_rate(workers: int, image_size: int, control_hz: float, steps: int = 100) -> float:
    """Steps a second of Gymnasium's `AsyncVectorEnv`, one environment a process."""
    env = gymnasium.make_vec(
        "volar.sim.gymnasium_ids:volar/Lift-v0",
        num_envs=workers,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
        image_size=image_size,
        control_hz=control_hz,
        max_steps=10**6,
    )
    env.reset(seed=0)
    plan = actions(env, steps)
    env.step(plan[0])
    taken_s = min(seconds(lambda: [env.step(action) for action in plan]) for _ in range(ROUNDS))
    env.close()
    return workers * steps / taken_s


def batch_rate(control_hz: float, success: bool, simulations: int = 64, steps: int = 40) -> float:
    """Steps a second of `BatchEnv` on all cores, the arms moving."""
    env = BatchEnv("lift", simulations, control_hz=control_hz)
    state = env.reset(range(simulations))
    home = np.hstack([state.q, state.gripper_width_m[:, None]])
    phase = np.linspace(0, 2 * np.pi, simulations)[:, None]

    def run() -> None:
        for k in range(steps):
            env.step(home + 0.1 * np.sin(phase + 2 * k / control_hz) * (np.arange(home.shape[1]) < 7))
            if success:
                env.success()

    run()
    return simulations * steps / min(seconds(run) for _ in range(ROUNDS))


def physics(simulations: int = 32, substeps: int = 50) -> dict[str, float]:
    """Time steps a second of the same scenes: `mj_step` in a plain loop and `Batch`, interleaved."""
    world = TaskWorld("lift", cameras=())
    model, scenes = world.model, []
    for seed in range(simulations):
        world.reset(seed)
        data = mujoco.MjData(model)
        data.qpos[:], data.ctrl[:] = world.data.qpos, world.data.ctrl
        mujoco.mj_forward(model, data)
        scenes.append(data)

    def loop(part: list[Any]) -> None:
        for data in part:
            mujoco.mj_step(model, data, substeps)

    def batch(threads: int) -> Callable[[], object]:
        found = Batch(model, simulations, threads, persistent=True)
        for i, data in enumerate(scenes):
            found.bind("qpos")[i], found.bind("ctrl")[i] = data.qpos, data.ctrl
        return lambda: found.step(nstep=substeps)

    with ThreadPoolExecutor(2) as pool:
        work = {
            "mj_step in a loop, 1 thread": lambda: loop(scenes),
            "Batch, 1 thread": batch(1),
            "mj_step in loops, 2 threads": lambda: list(pool.map(loop, (scenes[::2], scenes[1::2]))),
            "Batch, 2 threads": batch(2),
        }
        taken_s = {name: min(times) for name, times in interleaved(work, 3 * ROUNDS, time.perf_counter).items()}
    return {name: simulations * substeps / best for name, best in taken_s.items()}


def interleaved(
    work: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Times of each, taken in turns after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for k in range(rounds + 1):
        for name, run in work.items():
            start = clock()
            run()
            if k:
                times[name].append(clock() - start)
    return times


def speed() -> None:
    both = ("front", "wrist")
    line("environment, 2 cameras 128 x 128, 20 Hz, two processes", parallel_rate(2, 128, 20.0), "steps/s")
    line("environment, 2 cameras 128 x 128, 20 Hz, one process", environment_rate(both, 128, 20.0), "steps/s")
    line("environment, 2 cameras 96 x 96, 10 Hz, one process", environment_rate(both, 96, 10.0), "steps/s")
    line("environment, state only, 10 Hz, one process", environment_rate((), 96, 10.0), "steps/s")
    for rate_hz in (100.0, 50.0, 20.0):
        substeps = round(500 / rate_hz)
        line(f"BatchEnv, {rate_hz:.0f} Hz = {substeps} time steps", batch_rate(rate_hz, False), "steps/s")
    line("BatchEnv, 100 Hz, success asked each step", batch_rate(100.0, True), "steps/s")
    rates = physics()
    for name, rate in rates.items():
        line(f"physics at 500 Hz, {name}", rate, "time steps/s")
    for threads, loop in ((1, "mj_step in a loop, 1 thread"), (2, "mj_step in loops, 2 threads")):
        batch = rates[f"Batch, {threads} thread{'s' if threads > 1 else ''}"]
        line(f"overhead of Batch, {threads} thread(s)", 100 * (rates[loop] / batch - 1), "%")
    for size in (96, 128):
        world = TaskWorld("lift", image_size=size)
        world.reset(0)
        world.body.images()
        frames_s = min(seconds(lambda: [world.body.images() for _ in range(100)]) for _ in range(ROUNDS)) / 200  # noqa: B023
        line(f"rendering, {size} x {size}", 1e3 * frames_s, "ms a frame")
        world.close()
    for task in TASKS:
        driver = StepDriver(TaskWorld(task))
        rollout(driver, 0)
        taken_s = seconds(partial(_demonstrations, driver, 10))
        line(f"demonstrations, {task}", 600 / taken_s, "a minute")
    render_scenes(np.random.default_rng(0), 2)  # its arm poses are solved once a process
    line("grounding scenes", 300 / seconds(lambda: render_scenes(np.random.default_rng(0), 300)), "/s")
    _others()


def _demonstrations(driver: StepDriver, count: int) -> None:
    for seed in range(count):
        rollout(driver, seed)


def _others() -> None:
    """Peers' environments in the same run, by the interpreter that has them (see peers.py)."""
    subprocess.run([os.environ.get("PEERS", sys.executable), Path(__file__).with_name("peers.py")], check=False)


def randomization(steps: int = 8) -> None:
    """Processor time of environment steps with parts of `full`, against those without, in turns."""
    full = Randomization.of("full").terms
    slower = ("lamp", "shadow", "texture", "distractors")  # more to draw, and not the cost of applying terms
    groups: dict[str, tuple[Term, ...]] = {
        "none": (),
        "look, without what adds to the scene": tuple(t for t in full if t.axis.part == "look" and not t.axis.needs),
        "physics": tuple(t for t in full if t.axis.part == "physics"),
        "sensing": tuple(t for t in full if t.axis.part == "sensing"),
        "all of these": tuple(t for t in full if not t.axis.needs),
        **{f"scene with {need}": tuple(t for t in full if t.axis.needs == need) for need in slower},
        "full": full,
    }
    envs = {
        name: TabletopEnv("lift", max_steps=10**6, randomization=Randomization(name, t)) for name, t in groups.items()
    }
    plan = actions(envs["none"], steps)
    times: dict[str, list[float]] = {name: [] for name in envs}
    resets: dict[str, list[float]] = {name: [] for name in envs}
    for seed in range(12):
        for name, taken_s in interleaved(
            {name: partial(env.reset, seed=seed) for name, env in envs.items()}, 1, time.process_time
        ).items():
            resets[name] += taken_s
        for name, taken_s in interleaved(
            {n: partial(_play, e, plan) for n, e in envs.items()}, 5, time.process_time
        ).items():
            times[name].append(min(taken_s))
    print(f"{'':<40}{'ms a step':>10}{'ratio':>8}{'ms a reset':>12}")
    for name in envs:
        ratio = np.median(np.array(times[name]) / times["none"])
        print(
            f"{name:<40}{1e3 * np.median(times[name]) / steps:10.2f}{ratio:8.3f}{1e3 * np.median(resets[name]):12.1f}",
            flush=True,
        )


def _play(env: TabletopEnv, plan: np.ndarray) -> None:
    for action in plan:
        env.step(action)


def experts(seeds: int = 100, preset: str = "none", robots: str = "fr3,ur5e,so101", noise: float = 0.0) -> None:
    for robot in robots.split(","):
        for name, task in TASKS.items():
            driver = StepDriver(TaskWorld(name, robot, cameras=(), randomization=preset))
            results = [rollout(driver, seed, Disturbances(scale=noise)) for seed in range(seeds)]
            lengths = [len(episode) - task.steps_after_success for episode in results if episode.success]
            failed = [episode.seed for episode in results if not episode.success]
            print(
                f"{robot:<6} {name:<14} {preset}, noise {noise:g}: {len(lengths)}/{seeds}, steps to success mean "
                f"{np.mean(lengths):.1f}, max {np.max(lengths)} of {task.max_steps}; failed seeds {failed}",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["experts"]:
        given = dict(zip(("seeds", "preset", "robots", "noise"), sys.argv[2:], strict=False))
        kinds = {"seeds": int, "preset": str, "robots": str, "noise": float}
        experts(**{name: kinds[name](text) for name, text in given.items()})
    elif sys.argv[1:] == ["randomization"]:
        randomization()
    elif sys.argv[1:] in ([], ["speed"]):
        speed()
    else:
        sys.exit(__doc__)
