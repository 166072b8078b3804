"""Stable-Baselines3's PPO and SAC for policies of state: their settings, and checkpoints that are read without pickle.

`model.zip` is Stable-Baselines3's own format, of which its `load` unpickles `data`. Here a model is made anew and given
the weights alone, which torch reads with `weights_only=True`.
"""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from volar.datasets.durable_file import write_durably
from volar.robots.errors import VolarError

Algorithm = Literal["ppo", "sac"]
MODEL, REPLAY = "model.zip", "replay.npz"
GAMMA = 0.95  # a horizon of 20 steps: reach takes about ten
_REPLAY_STEPS = 1_000_000  # kept at most, as Stable-Baselines3 does

# Its own defaults are for millions of steps: 2,048 a rollout make 49 updates of 100,000, with a deviation of 1, at
# which half of all actions are cut off at a bound or near it.
_PPO: dict[str, Any] = {
    "n_steps": 512,  # a dozen episodes or more of reach: enough for a mean, and an update every two seconds
    "batch_size": 64,  # so 8 a pass,
    "n_epochs": 10,  # and 80 steps of Adam a rollout, fixed: the ratio's clipping bounds how far they go
    "learning_rate": 1e-3,  # three times the default: 64 units a layer, and inputs of about one
    "policy_kwargs": {"log_std_init": -1.0},  # deviation 0.37: where a step leads is its mean's doing, not chance's
}
_SAC: dict[str, Any] = {"ent_coef": "auto_0.1"}  # from 1, entropy outweighs progress for some ten thousand steps


def make_learner(algorithm: Algorithm, env: Any, steps: int = 1, seed: int | None = None) -> Any:
    """A fresh `PPO` or `SAC` on the CPU, for `steps` of `env`; `seed`: of weights, actions and `env`, or none."""
    from stable_baselines3 import PPO, SAC

    common: dict[str, Any] = {"gamma": GAMMA, "seed": seed, "device": "cpu"}
    if algorithm == "sac":
        return SAC("MultiInputPolicy", env, buffer_size=min(steps, _REPLAY_STEPS), **_SAC, **common)
    whole_batches = -(-steps // _PPO["batch_size"]) * _PPO["batch_size"]  # a rollout no longer than asked for
    return PPO("MultiInputPolicy", env, **_PPO | {"n_steps": min(_PPO["n_steps"], whole_batches)}, **common)


def save_learner(model: Any, folder: Path) -> None:
    """Leaves `model.zip`, and of SAC what it has seen in `replay.npz`. Raises `DiskFull`."""
    file = io.BytesIO()
    model.save(file)
    write_durably(folder / MODEL, file.getvalue())
    if hasattr(model, "replay_buffer"):
        file = io.BytesIO()
        seen: dict[str, Any] = _seen(model.replay_buffer)
        np.savez(file, **seen)
        write_durably(folder / REPLAY, file.getvalue())


def load_learner(model: Any, folder: Path) -> None:
    """Gives a fresh model what `save_learner` left: weights, optimizers and replay. Raises `VolarError`."""
    load_weights(model, folder / MODEL)
    if not hasattr(model, "replay_buffer"):
        return
    try:
        with np.load(folder / REPLAY, allow_pickle=False) as arrays:
            _see(model.replay_buffer, dict(arrays))
    except (OSError, ValueError, LookupError) as error:
        raise VolarError(f"{folder / REPLAY} cannot be read: {error}; begin again in another output") from error


def load_weights(model: Any, path: Path) -> None:
    """Weights and optimizers from a `model.zip`, nothing else of it. Raises `VolarError`, also if they do not fit."""
    from stable_baselines3.common.save_util import load_from_zip_file

    try:
        _, parameters, variables = load_from_zip_file(path, load_data=False, device="cpu")
        model.set_parameters(parameters, device="cpu")
        if getattr(model, "log_ent_coef", None) is not None:
            model.log_ent_coef.data = (variables or {})["log_ent_coef"].data
    except Exception as error:  # what torch raises of a damaged or hostile file is its own matter
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise VolarError(f"{path} has no weights of this task, robot and algorithm: {reason}") from error


def _seen(buffer: Any) -> dict[str, NDArray[Any]]:
    """The filled part (N, 1, ...) of a `DictReplayBuffer`, oldest first."""
    count, oldest = buffer.size(), buffer.pos if buffer.full else 0
    return {name: np.roll(array[:count], -oldest, axis=0) for name, array in _arrays(buffer).items()}


def _see(buffer: Any, seen: dict[str, NDArray[Any]]) -> None:
    for name, array in _arrays(buffer).items():
        count = min(len(seen[name]), len(array))
        array[:count] = seen[name][-count:]
        buffer.pos, buffer.full = count % len(array), count == len(array)


def _arrays(buffer: Any) -> dict[str, NDArray[Any]]:
    flat = {name: getattr(buffer, name) for name in ("actions", "rewards", "dones", "timeouts")}
    for kind in ("observations", "next_observations"):
        flat |= {f"{kind}.{key}": array for key, array in getattr(buffer, kind).items()}
    return flat
