"""Peers' environments on this machine: steps a second with two 128 x 128 cameras in one process.

`python benchmarks/sim.py` runs this file with the interpreter that the variable PEERS names, or its own, since peers
ask for other versions of MuJoCo and NumPy: `python -m venv P; P/bin/pip install robosuite gym-hil; PEERS=P/bin/python`.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl")
STEPS = 30


def rate(step: Callable[[], Any]) -> float:
    step()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    return STEPS / (time.perf_counter() - start)


def robosuite() -> float:
    import robosuite as suite

    env = suite.make(
        "Lift",
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=True,
        use_camera_obs=True,
        camera_names=["frontview", "robot0_eye_in_hand"],
        camera_heights=128,
        camera_widths=128,
        control_freq=20,
        horizon=10**6,
    )
    env.reset()
    low, high = env.action_spec
    return rate(lambda: env.step((low + high) / 2))


def gym_hil() -> float:
    import gym_hil as _  # noqa: F401  # registers its environments
    import gymnasium

    env = gymnasium.make("gym_hil/PandaPickCubeBase-v0", image_obs=True)
    env.reset(seed=0)
    still = 0 * env.action_space.sample()
    return rate(lambda: env.step(still))


if __name__ == "__main__":
    for name, rate_hz, measure in (("robosuite", "20 Hz", robosuite), ("gym_hil", "10 Hz", gym_hil)):
        if importlib.util.find_spec(name) is None:
            print(f"{name}: not installed for this interpreter")
        else:
            print(f"{f'{name}, 2 cameras 128 x 128, {rate_hz}, one process':<58}{measure():10.2f} steps/s", flush=True)
