"""What worked before, imitated: self-imitation learning (Oh et al., ICML 2018) over the run's own successes.

An update of PPO sees each episode two or three times and forgets it. Episodes that ended with what was asked for are
kept here, and each gradient step also makes the tokens of some of their decisions more probable, the more a decision
earned beyond what the critic by now expects of its state. No label, no demonstration: only what the policy tried out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volar.rl.episodes import Trajectory
from volar.rl.token_policy import TokenPolicy
from volar.robots.errors import VolarError

_BATCH = 256
_BYTES = 2**28  # of what is kept; the oldest decisions give way
_FILE = "successes.safetensors"
_INPUT = "inputs."
Arrays = dict[str, NDArray[Any]]


class SelfImitation:
    """An `Auxiliary`. `gamma`: discount of one step; `critic`: whether there is one to say what was to be expected;
    without it every success counts by how soon it came.

    Floating-point inputs are kept in half precision, in memory as on disk, so that a resumed run goes on exactly.
    """

    def __init__(self, gamma: float, critic: bool) -> None:
        self._gamma, self._critic = gamma, critic
        self._kept: Arrays = {}  # name -> (N, ...), oldest first

    def __len__(self) -> int:
        return len(self._kept["earned"]) if self._kept else 0

    def look_at(self, trajectories: Sequence[Trajectory]) -> None:
        """Keeps the decisions of those that ended with what counts as success."""
        found = [decisions_of(t, self._gamma) for t in trajectories if t.terminated and t.rewards.sum() > 0]
        if self._kept:
            found.insert(0, self._kept)
        if found:
            joined = {name: np.concatenate([part[name] for part in found]) for name in found[-1]}
            most = max(1, _BYTES // sum(array[0].nbytes for array in joined.values()))
            self._kept = {name: array[-most:] for name, array in joined.items()}

    def loss(self, policy: TokenPolicy, rng: np.random.Generator) -> Tensor:
        """Of `_BATCH` decisions; zero before the first success."""
        if not self._kept:
            return torch.zeros(())
        rows = rng.integers(len(self), size=_BATCH)
        part = {name: torch.from_numpy(array[rows]) for name, array in self._kept.items()}
        inputs = {
            name.removeprefix(_INPUT): value.float() if value.dtype == torch.float16 else value
            for name, value in part.items()
            if name.startswith(_INPUT)
        }
        tokens = part["tokens"].long()  # (B, E, A)
        earned = part["earned"]
        with torch.no_grad():
            beyond = (earned - policy.values(inputs) if self._critic else earned).clamp(0, 1)  # (B,)
        logp = policy.log_probabilities(inputs).gather(-1, tokens[..., None])[..., 0]  # (B, E, A)
        executed = torch.arange(tokens.shape[1]) < part["steps"][:, None]  # (B, E)
        weight = executed[..., None] * policy.free  # (B, E, A)
        mean = (logp * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)  # (B,), of a token
        return -(beyond * mean).mean()

    def save(self, directory: Path) -> None:
        """Writes what is kept beside a training state."""
        from safetensors.numpy import save_file

        save_file(self._kept, directory / _FILE)

    def load(self, directory: Path) -> None:
        """Inverse of `save`, bit for bit. Raises `VolarError` when the file is missing or broken."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            self._kept = load_file(directory / _FILE)
        except (OSError, SafetensorError) as error:
            raise VolarError(f"{directory} cannot be resumed from: {error}") from error


def decisions_of(trajectory: Trajectory, gamma: float) -> Arrays:
    """One episode's decisions: inputs, `tokens`, `steps` and `earned` (N,), what followed, discounted to each."""
    earned, following = np.zeros(len(trajectory), np.float32), 0.0
    for i in reversed(range(len(trajectory))):
        following = float(trajectory.rewards[i]) + gamma ** int(trajectory.steps[i]) * following
        earned[i] = following
    inputs = {
        _INPUT + name: value.astype(np.float16) if np.issubdtype(value.dtype, np.floating) else value
        for name, value in trajectory.inputs.items()
    }
    return {**inputs, "tokens": trajectory.tokens, "steps": trajectory.steps, "earned": earned}
