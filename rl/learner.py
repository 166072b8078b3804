"""What PPO and GRPO share: a batch of decisions, and clipped steps on it that stay near the cloned policy.

Each token is clipped by its own ratio, as in RL of language models: a chunk is tens of tokens, whose product would
leave any clipping range at once. The divergence from the cloned reference is exact, over all 256 bins, and of what is
tried out: both widened by `Exploration`, so that the same weights lie farther apart where that is narrower.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volar.rl.episodes import Trajectory
from volar.rl.token_policy import TokenPolicy

_ROWS = 256  # of a pass without gradients


@dataclass(frozen=True)
class UpdateConfig:
    """`clip`: of a token's probability ratio; `target_kl`: of tokens from those the batch was drawn with, at which the
    epochs end; `reference_weight`: of the divergence from the cloned policy; `reward_weight`: of what was earned, 0
    leaves reinforcement out; `value_epochs`: of the critic, which trains apart. `learning_rate`: of the VLA's own."""

    learning_rate: float = 1e-4
    value_learning_rate: float = 1e-3
    epochs: int = 4
    value_epochs: int = 10
    minibatch: int = 256
    clip: float = 0.2
    target_kl: float = 0.015
    reference_weight: float = 0.003
    reward_weight: float = 1.0
    gradient_norm: float = 1.0


class Auxiliary(Protocol):
    """A further loss, computed anew for each gradient step."""

    def loss(self, policy: TokenPolicy, rng: np.random.Generator) -> Tensor: ...


@dataclass
class Decisions:
    """M decisions of many episodes. `inputs`: name -> (M, ...); `tokens` (M, E, A); `mask` (M, E): executed steps;
    `advantages` (M,); `returns` (M,), what the critic is to say; `old` (M, E, A): log-probabilities of the tokens when
    drawn; `reference` (M, E, A, 256): the cloned policy's."""

    inputs: dict[str, Tensor]
    tokens: Tensor
    mask: Tensor
    advantages: Tensor
    returns: Tensor
    old: Tensor
    reference: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, index: NDArray[np.int64]) -> "Decisions":
        rows = torch.as_tensor(index)
        inputs = {key: value[rows] for key, value in self.inputs.items()}
        tensors = (self.tokens, self.mask, self.advantages, self.returns, self.old, self.reference)
        return Decisions(inputs, *(tensor[rows] for tensor in tensors))


class Learner:
    """A policy with its reference and optimizer; `update` takes one batch. `auxiliaries`: losses with their weights."""

    def __init__(
        self, policy: TokenPolicy, config: UpdateConfig, auxiliaries: Sequence[tuple[float, Auxiliary]] = ()
    ) -> None:
        self.policy, self.config, self.auxiliaries = policy, config, auxiliaries
        self.reference = copy.deepcopy(policy.vla).requires_grad_(False)
        # One optimizer of two groups: a parameter without a gradient is not stepped, so actor and critic step apart.
        groups = [
            {"params": policy.actor_parameters, "lr": config.learning_rate},
            {"params": list(policy.critic.parameters()), "lr": config.value_learning_rate},
        ]
        self.optimizer = torch.optim.Adam(groups, eps=1e-5)

    @torch.no_grad()
    def decisions(
        self, trajectories: Sequence[Trajectory], advantages: NDArray[np.float32], returns: NDArray[np.float32]
    ) -> Decisions:
        """Everything that an update needs, with the log-probabilities under the policy as it is now."""
        inputs = {key: joined(trajectories, key) for key in trajectories[0].inputs}
        tokens = torch.from_numpy(np.concatenate([t.tokens for t in trajectories])).long()
        steps = torch.from_numpy(np.concatenate([t.steps for t in trajectories]))
        mask = (torch.arange(tokens.shape[1]) < steps[:, None]).float()  # (M, E)
        old, reference = [], []
        for start in range(0, len(tokens), _ROWS):
            rows = slice(start, start + _ROWS)
            some = {key: value[rows] for key, value in inputs.items()}
            old.append(chosen(self.policy.log_probabilities(some), tokens[rows]))
            reference.append(self.policy.log_probabilities(some, self.reference))
        wanted = torch.from_numpy(advantages), torch.from_numpy(returns)
        return Decisions(inputs, tokens, mask, *wanted, torch.cat(old), torch.cat(reference))

    def update(self, batch: Decisions, rng: np.random.Generator) -> dict[str, float]:
        """Epochs over the batch until `target_kl`; returns what happened, averaged over the last one."""
        notes: dict[str, float] = {}
        for epoch in range(self.config.epochs):
            found = [self._step(batch.part(rows), rng) for rows in minibatches(len(batch), self.config.minibatch, rng)]
            notes = {key: float(np.mean([item[key] for item in found])) for key in found[0]} | {"epochs": epoch + 1.0}
            if notes["kl_step"] > self.config.target_kl:
                break
        return notes

    def fit_critic(self, batch: Decisions, rng: np.random.Generator) -> None:
        """Regression of the returns. What the critic sees is computed once: no step here changes it."""
        inputs = critic_inputs(self.policy, batch.inputs)  # (M, F)
        for _ in range(self.config.value_epochs):
            for rows in map(torch.as_tensor, minibatches(len(batch), self.config.minibatch, rng)):
                loss = (self.policy.values_of(inputs[rows]) - batch.returns[rows]).square().mean()
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()

    def _step(self, part: Decisions, rng: np.random.Generator) -> dict[str, float]:
        config, policy = self.config, self.policy
        logp = policy.log_probabilities(part.inputs)  # (B, E, A, 256)
        weight = part.mask[..., None] * policy.free  # (B, E, A)
        count = weight.sum().clamp(min=1)
        log_ratio = chosen(logp, part.tokens) - part.old
        ratio, advantage = log_ratio.exp(), part.advantages[:, None, None]
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        gain = (torch.minimum(ratio * advantage, clipped * advantage) * weight).sum() / count
        reference = ((logp.exp() * (logp - part.reference)).sum(-1) * weight).sum() / count
        loss = config.reference_weight * reference - config.reward_weight * gain
        for share, auxiliary in self.auxiliaries:
            loss = loss + share * auxiliary.loss(policy, rng)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.actor_parameters, config.gradient_norm)
        self.optimizer.step()
        with torch.no_grad():
            outside = ((ratio - 1).abs() > config.clip).float()
            kl = (((ratio - 1) - log_ratio) * weight).sum() / count  # Schulman's estimator, never negative
            entropy = -((logp.exp() * logp).sum(-1) * weight).sum() / count
        return {
            "kl_step": float(kl),
            "kl_reference": float(reference.detach()),
            "clip_fraction": float((outside * weight).sum() / count),
            "entropy": float(entropy),
        }


def critic_inputs(policy: TokenPolicy, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the critic sees of M decisions, (M, F), computed in parts."""
    count = len(next(iter(inputs.values())))
    parts = ({key: value[i : i + _ROWS] for key, value in inputs.items()} for i in range(0, count, _ROWS))
    return torch.cat([policy.critic_inputs(part) for part in parts])


def joined(trajectories: Sequence[Trajectory], key: str) -> Tensor:
    """An input of all decisions, in order."""
    return torch.from_numpy(np.concatenate([t.inputs[key] for t in trajectories]))


def chosen(log_probabilities: Tensor, tokens: Tensor) -> Tensor:
    """(B, E, A, 256) and (B, E, A) -> the tokens' log-probabilities (B, E, A)."""
    return log_probabilities.gather(-1, tokens[..., None])[..., 0]


def minibatches(count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Shuffled rows in parts of about `size`, each row once."""
    order = rng.permutation(count)
    yield from np.array_split(order, max(1, round(count / size)))
