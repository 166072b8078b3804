"""How much better a decision was than expected, where one decision lasts several steps.

A decision t of k_t steps with reward R_t (discounted within the decision) is followed by state t + 1 after gamma^{k_t}
(options: Sutton, Precup and Singh, Artificial Intelligence 1999):

    delta_t = R_t + gamma^{k_t} V_{t+1} - V_t,    A_t = delta_t + gamma^{k_t} lambda A_{t+1}

(generalized advantage estimation, Schulman et al., ICLR 2016). After the last decision V is 0 where the episode
terminated, and the critic's estimate where the clock cut it off.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def decision_advantages(
    rewards: NDArray[np.floating],
    steps: NDArray[np.integer],
    values: NDArray[np.floating],
    last_value: float,
    gamma: float,
    lam: float,
) -> tuple[Array, Array]:
    """Advantages (N,) and returns (N,) of one episode's decisions: rewards, steps, values (N,) and V at its end."""
    following = np.append(values[1:], last_value)
    discount = gamma ** np.asarray(steps, np.float64)  # (N,)
    delta = rewards + discount * following - values
    advantages = np.zeros(len(delta))
    running = 0.0
    for t in reversed(range(len(delta))):
        running = delta[t] + discount[t] * lam * running
        advantages[t] = running
    return advantages.astype(np.float32), (advantages + values).astype(np.float32)


def group_advantages(outcomes: Sequence[float], groups: Sequence[int]) -> tuple[Array, NDArray[np.bool_]]:
    """Of whole episodes, relative to the others that began in the same state: (M,), and which groups say anything.

    Group-relative policy optimization (Shao et al., "DeepSeekMath", 2024) without the division by the group's
    spread, which would weigh hopeless and easy states most (Liu et al., "Understanding R1-Zero-like training", 2025).
    Groups whose episodes all ended alike carry no gradient and are left out.
    """
    values, index = np.asarray(outcomes, np.float64), np.asarray(groups)
    advantages, useful = np.zeros(len(values), np.float32), np.zeros(len(values), bool)
    for group in np.unique(index):
        own = index == group
        if np.ptp(values[own]) > 1e-9:
            advantages[own] = values[own] - values[own].mean()
            useful[own] = True
    return advantages, useful


def normalized(advantages: Array, tasks: Sequence[str]) -> Array:
    """Less each task's own mean, and divided by its own spread: a task of larger rewards or rarer successes weighs no
    more, and one that goes better than expected does not make all of another's decisions look bad."""
    found, names = advantages.copy(), np.asarray(tasks)
    for task in np.unique(names):
        own = names == task
        found[own] = (advantages[own] - advantages[own].mean()) / (advantages[own].std() + 1e-6)
    return found
