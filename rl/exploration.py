"""How actions are tried out: wide enough to matter, and the same way for long enough.

A cloned policy is sure of itself: the tokens that it would sample lie within a millimetre a step, independently of
each other, and cancel. Here the distribution of each arm dimension is widened by a Gaussian kernel over bins, and one
standard normal number a dimension decides the tokens of all steps of a decision (each step at the same quantile of its
own distribution). These numbers are correlated from one decision to the next, as the coloured noise of Eberhard et
al. ("Pink Noise Is All You Need", ICLR 2023), so that a whole approach ends a little to the left, say.

Each token's own distribution is what it says it is only marginally, over all draws of the noise. Given the tokens
before it, of its chunk or of the decision before, it is far from that; the loss takes all of them as independent given
the state all the same, and so credits each with what all that went the same way have earned (decision 16).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volar.vla.action_tokenizers.uniform_bins import BINS

_USED = BINS - 1  # bins that decode to a value of their own; the last one repeats its neighbour


@dataclass(frozen=True)
class Exploration:
    """`temperature`: the logits are divided by it; `kernel_bins`: standard deviation of the kernel; `correlation`: of
    the noise from one decision to the next, in [0, 1]. The kernel spares the gripper: between open and closed there is
    nothing to try. `Exploration(1.0, 0.0, 0.0)` are the policy's own tokens.
    """

    temperature: float = 0.3
    kernel_bins: float = 3.0
    correlation: float = 0.8

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, is {self.temperature}")
        if self.kernel_bins < 0:
            raise ValueError(f"kernel_bins must not be negative, is {self.kernel_bins}")
        if not 0 <= self.correlation <= 1:
            raise ValueError(f"correlation must be in [0, 1], is {self.correlation}")

    def kernel(self, width: float = 1.0) -> Tensor:
        """(256, 256): row b is the distribution of the token tried out when the policy says b; `width` scales it."""
        sigma = self.kernel_bins * width
        if sigma == 0:
            return torch.eye(BINS)
        bins = torch.arange(BINS, dtype=torch.float64)
        weights = torch.exp(-0.5 * ((bins[:, None] - bins) / sigma) ** 2)
        weights[:, _USED:] = 0.0
        return (weights / weights.sum(-1, keepdim=True)).float()


class Noise:
    """One episode's standard normal numbers, (A,) a decision: an autoregressive process."""

    def __init__(self, size: int, correlation: float, rng: np.random.Generator) -> None:
        self._rho, self._rng = correlation, rng
        self._value = rng.normal(size=size)

    def next(self) -> NDArray[np.float64]:
        """The numbers (A,) of this decision."""
        value = self._value
        fresh = self._rng.normal(size=len(value))
        self._value = self._rho * value + np.sqrt(1 - self._rho**2) * fresh
        return value


def tokens_at(probabilities: Tensor, noise: NDArray[np.float64]) -> Tensor:
    """The tokens at the quantiles that `noise` (A,) names: probabilities (H, A, 256) -> bins (H, A)."""
    quantile = torch.special.ndtr(torch.as_tensor(noise))[:, None]  # (A, 1)
    cumulative = probabilities.double().cumsum(-1)  # (H, A, 256)
    tokens: Tensor = (cumulative < quantile * cumulative[..., -1:]).sum(-1)
    return tokens.clamp(max=BINS - 1)
