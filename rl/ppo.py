"""PPO (Schulman et al., 2017) over decisions, with a critic of the simulator's state or of what the policy sees."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from volar.rl.advantages import decision_advantages, normalized
from volar.rl.episodes import Trajectory
from volar.rl.learner import Learner, critic_inputs, joined
from volar.rl.token_policy import PRIVILEGED, TokenPolicy


def ppo_update(
    learner: Learner,
    trajectories: Sequence[Trajectory],
    rng: np.random.Generator,
    gamma: float,
    lam: float = 0.95,
    warm_up: bool = False,
) -> dict[str, float]:
    """One update on whole episodes; `warm_up`: of the critic alone. Returns what is reported of it.

    A task in which nothing was earned says nothing: its advantages would be the critic's errors alone.
    """
    values, last = predicted(learner.policy, trajectories)
    advantages, returns = [], []
    for trajectory, own, end in zip(trajectories, values, last, strict=True):
        end_value = 0.0 if trajectory.terminated else end
        a, r = decision_advantages(trajectory.rewards, trajectory.steps, own, end_value, gamma, lam)
        advantages.append(a)
        returns.append(r)
    raw, wanted = np.concatenate(advantages), np.concatenate(returns)
    tasks = [t.job.task for t in trajectories for _ in range(len(t))]
    earning = {t.job.task for t in trajectories if t.rewards.any()}
    scaled = normalized(raw, tasks) * np.isin(tasks, list(earning))
    batch = learner.decisions(trajectories, scaled.clip(-4, 4), wanted)
    notes = {"explained_variance": explained_variance(np.concatenate(values), wanted)}
    if not warm_up:
        notes |= learner.update(batch, rng)
    learner.fit_critic(batch, rng)
    return notes


@torch.no_grad()
def predicted(policy: TokenPolicy, trajectories: Sequence[Trajectory]) -> tuple[list[NDArray[np.float32]], list[float]]:
    """The critic's values of every decision of each episode, (N,) each, and of its end."""
    keys = [PRIVILEGED] if policy.critic_sees_state else list(trajectories[0].inputs)
    inputs = critic_inputs(policy, {key: joined(trajectories, key) for key in keys})  # (M, F)
    values = np.split(policy.values_of(inputs).numpy(), np.cumsum([len(t) for t in trajectories])[:-1])
    last = torch.from_numpy(np.stack([t.last for t in trajectories]))  # (episodes, F)
    return values, policy.values_of(last).tolist()


def explained_variance(values: NDArray[np.floating], returns: NDArray[np.floating]) -> float:
    """Share of the returns' variance that the critic knew; 1 is all, 0 is none, below 0 is worse than a constant."""
    spread = float(np.var(returns))
    return float("nan") if spread == 0 else 1.0 - float(np.var(returns - values)) / spread
