"""What PPO and GRPO share: a batch of decisions, and clipped steps on it that stay near the cloned policy.

Each token is clipped by its own ratio, as in RL of language models: a chunk is tens of tokens, whose product would
leave any clipping range at once. The divergence from the cloned reference is exact, over all 256 bins.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volar.rl.episodes import Trajectory
from volar.rl.token_policy import TokenPolicy


@dataclass(frozen=True)
class UpdateConfig:
    """`clip`: of a token's probability ratio; `target_kl`: of tokens from those the batch was drawn with, at which the
    epochs end; `reference_weight`: of the divergence from the cloned policy; `value_epochs`: of the critic, which
    trains apart. `learning_rate`: of the VLA's own parameters."""

    learning_rate: float = 1e-4
    value_learning_rate: float = 1e-3
    epochs: int = 4
    value_epochs: int = 10
    minibatch: int = 512
    clip: float = 0.2
    target_kl: float = 0.02
    reference_weight: float = 0.01
    imitation_weight: float = 0.0
    gradient_norm: float = 1.0


@dataclass
class Decisions:
    """M decisions of many episodes. `inputs`: name -> (M, ...); `tokens` (M, E, A); `mask` (M, E): executed steps;
    `advantages` (M,); `returns` (M,), what the critic is to say; `old`: log-probabilities of the tokens when drawn."""

    inputs: dict[str, Tensor]
    tokens: Tensor
    mask: Tensor
    advantages: Tensor
    returns: Tensor
    old: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, index: NDArray[np.int64]) -> "Decisions":
        rows = torch.as_tensor(index)
        inputs = {key: value[rows] for key, value in self.inputs.items()}
        tensors = (self.tokens, self.mask, self.advantages, self.returns, self.old)
        return Decisions(inputs, *(tensor[rows] for tensor in tensors))


def joined(trajectories: Sequence[Trajectory], key: str) -> Tensor:
    """An input of all decisions, in order."""
    return torch.from_numpy(np.concatenate([t.inputs[key] for t in trajectories]))


@torch.no_grad()
def decisions(
    policy: TokenPolicy,
    trajectories: Sequence[Trajectory],
    advantages: NDArray[np.float32],
    returns: NDArray[np.float32],
) -> Decisions:
    """Everything that an update needs, with the log-probabilities under the policy as it is now."""
    inputs = {key: joined(trajectories, key) for key in trajectories[0].inputs}
    tokens = torch.from_numpy(np.concatenate([t.tokens for t in trajectories])).long()
    steps = torch.from_numpy(np.concatenate([t.steps for t in trajectories]))
    mask = (torch.arange(tokens.shape[1]) < steps[:, None]).float()  # (M, E)
    found = Decisions(inputs, tokens, mask, torch.from_numpy(advantages), torch.from_numpy(returns), torch.empty(0))
    found.old = torch.cat(
        [chosen(policy.log_probabilities(_rows(inputs, rows)), tokens[rows]) for rows in _chunks(len(tokens), 512)]
    )
    return found


def chosen(log_probabilities: Tensor, tokens: Tensor) -> Tensor:
    """(B, E, A, 256) and (B, E, A) -> the tokens' log-probabilities (B, E, A)."""
    return log_probabilities.gather(-1, tokens[..., None])[..., 0]


class Learner:
    """A policy with its reference and optimizers; `update` takes one batch."""

    def __init__(self, policy: TokenPolicy, config: UpdateConfig) -> None:
        self.policy, self.config = policy, config
        self.reference = copy.deepcopy(policy.vla.action_head).requires_grad_(False)
        self.actor = torch.optim.Adam(policy.actor_parameters, lr=config.learning_rate, eps=1e-5)
        self.critic = torch.optim.Adam(policy.critic.parameters(), lr=config.value_learning_rate, eps=1e-5)

    def update(self, batch: Decisions, rng: np.random.Generator) -> dict[str, float]:
        """Epochs over the batch until `target_kl`; returns what happened, averaged over the last one."""
        notes: dict[str, float] = {}
        for epoch in range(self.config.epochs):
            found = [self._step(batch.part(rows)) for rows in minibatches(len(batch), self.config.minibatch, rng)]
            notes = {key: float(np.mean([item[key] for item in found])) for key in found[0]} | {"epochs": epoch + 1.0}
            if notes["kl_step"] > self.config.target_kl:
                break
        return notes

    def fit_critic(self, batch: Decisions, rng: np.random.Generator) -> None:
        """Regression of the returns."""
        for _ in range(self.config.value_epochs):
            for rows in minibatches(len(batch), self.config.minibatch, rng):
                part = batch.part(rows)
                loss = (self.policy.values(part.inputs) - part.returns).square().mean()
                self.critic.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.critic.step()

    def _step(self, part: Decisions) -> dict[str, float]:
        config, policy = self.config, self.policy
        logp = policy.log_probabilities(part.inputs)  # (B, E, A, 256)
        weight = part.mask[..., None] * policy.free  # (B, E, A)
        count = weight.sum().clamp(min=1)
        log_ratio = chosen(logp, part.tokens) - part.old
        ratio, advantage = log_ratio.exp(), part.advantages[:, None, None]
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage)
        gain = (surrogate * weight).sum() / count
        reference = self._divergence(logp, part, weight)
        loss = -gain + config.reference_weight * reference
        self.actor.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.actor_parameters, config.gradient_norm)
        self.actor.step()
        with torch.no_grad():
            outside = ((ratio - 1).abs() > config.clip).float()
            kl = (((ratio - 1) - log_ratio) * weight).sum() / count  # Schulman's estimator, never negative
        return {
            "kl_step": float(kl),
            "kl_reference": float(reference.detach()),
            "clip_fraction": float((outside * weight).sum() / count),
            "entropy": float(-((logp.exp() * logp).sum(-1) * weight).sum().detach() / count),
        }

    def _divergence(self, logp: Tensor, part: Decisions, weight: Tensor) -> Tensor:
        """KL(policy, reference) a token, in nats."""
        with torch.no_grad():
            reference = self.policy.log_probabilities(part.inputs, self.reference)
        return ((logp.exp() * (logp - reference)).sum(-1) * weight).sum() / weight.sum().clamp(min=1)


def minibatches(count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Shuffled rows in parts of about `size`, each row once."""
    order = rng.permutation(count)
    yield from np.array_split(order, max(1, round(count / size)))


def _chunks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, start + size)


def _rows(inputs: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {key: value[rows] for key, value in inputs.items()}
