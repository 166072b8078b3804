"""GRPO: no critic; an episode is judged by the others that began in the same state."""

from collections.abc import Sequence

import numpy as np

from volar.rl.advantages import group_advantages, normalized
from volar.rl.episodes import Trajectory
from volar.rl.learner import Learner


def grpo_update(
    learner: Learner, trajectories: Sequence[Trajectory], rng: np.random.Generator, gamma: float
) -> dict[str, float]:
    """One update on whole episodes, several of each group. Groups without variance are skipped; where all are, what
    else the learner has (demonstrations, pointing) is learned alone."""
    outcomes = [discounted(trajectory, gamma) for trajectory in trajectories]
    keys = [f"{t.job.task}/{t.job.group}" for t in trajectories]
    advantages, useful = group_advantages(outcomes, np.unique(keys, return_inverse=True)[1].tolist())
    notes = {"useful_groups": float(useful.mean())}
    if not useful.any():
        if not learner.auxiliaries:
            return notes
        useful[:] = True  # of advantage 0
    kept = [t for t, keep in zip(trajectories, useful, strict=True) if keep]
    spread = normalized(advantages[useful], [t.job.task for t in kept])
    each = np.concatenate([np.full(len(t), a, np.float32) for t, a in zip(kept, spread, strict=True)])
    return notes | learner.update(learner.decisions(kept, each, np.zeros_like(each)), rng)


def discounted(trajectory: Trajectory, gamma: float) -> float:
    """The episode's return from its beginning: with `gamma` below 1, an early success is worth more."""
    before = np.concatenate([[0], np.cumsum(trajectory.steps)[:-1]])
    return float((trajectory.rewards * gamma**before).sum())
