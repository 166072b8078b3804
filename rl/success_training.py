"""Fits a classifier of success, chooses what counts as success, and measures it against the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from volar.rl.episodes import Trajectory
from volar.rl.success_episodes import LabelledEpisode
from volar.rl.success_network import Streak, SuccessNetwork
from volar.robots.errors import VolarError
from volar.sim.wilson import wilson_interval

_BATCH, _EPOCHS, _LEARNING_RATE, _WEIGHT_DECAY = 256, 40, 1e-3, 1e-3
_FLAT_STD = 1e-6  # a feature narrower than this says nothing
CANDIDATES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
Truths = NDArray[np.bool_]


@dataclass(frozen=True)
class Agreement:
    """How often what is said is true, and the other way round: counts of yes and no, said and true."""

    true_yes: int
    false_yes: int
    missed: int
    true_no: int

    @staticmethod
    def of(said: Sequence[bool] | Truths, true: Sequence[bool] | Truths) -> "Agreement":
        yes, fact = np.asarray(said, bool), np.asarray(true, bool)
        counts = (yes & fact, yes & ~fact, ~yes & fact, ~yes & ~fact)
        return Agreement(*(int(count.sum()) for count in counts))

    @property
    def precision(self) -> float:
        """The share of what was called success that was; NaN when nothing was."""
        return _ratio(self.true_yes, self.true_yes + self.false_yes)

    @property
    def recall(self) -> float:
        """The share of successes that were called so; NaN when there were none."""
        return _ratio(self.true_yes, self.true_yes + self.missed)

    def report(self) -> dict[str, Any]:
        """Counts and both rates, each with its 95 % Wilson interval; None where nothing was counted."""
        said, true = self.true_yes + self.false_yes, self.true_yes + self.missed
        found: dict[str, Any] = {"true_yes": self.true_yes, "false_yes": self.false_yes}
        found |= {"missed": self.missed, "true_no": self.true_no}
        for name, rate, trials in (("precision", self.precision, said), ("recall", self.recall, true)):
            found[name] = rate if trials else None
            found[f"{name}_wilson95"] = list(wilson_interval(self.true_yes, trials)) if trials else None
        return found


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def fit(
    network: SuccessNetwork, training: Sequence[LabelledEpisode], validation: Sequence[LabelledEpisode], seed: int
) -> dict[str, float]:
    """Trains the head on both orders of every step; keeps the epoch of the least loss on `validation`.

    Raises `VolarError` when there is no success, or nothing else, to learn from.
    """
    x, y = _rows(training)
    if len(y) == 0 or y.all() or not y.any():
        raise VolarError(f"{int(y.sum())} of {len(y)} steps are successes: nothing to tell apart; take more episodes=")
    std = x.std(0)
    network.mean.copy_(x.mean(0))
    network.std.copy_(torch.where(std > _FLAT_STD, std, torch.full_like(std, torch.inf)))  # nothing, if flat
    held_x, held_y = _rows(validation)
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.head.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    best, kept, chosen = float("inf"), _copied(network.head), 0
    for epoch in range(_EPOCHS):
        network.head.train()
        order = torch.randperm(len(y), generator=random)
        for first in range(0, len(y), _BATCH):
            rows = order[first : first + _BATCH]
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(network(x[rows]), y[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        network.head.eval()
        with torch.no_grad():
            found = float(nn.functional.binary_cross_entropy_with_logits(network(held_x), held_y))
        if found < best:
            best, kept, chosen = found, _copied(network.head), epoch + 1
    network.head.load_state_dict(kept)
    return {"steps": len(y), "successes": float(y.mean()), "validation_loss": best, "epochs": chosen}


def _copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _rows(episodes: Sequence[LabelledEpisode]) -> tuple[torch.Tensor, torch.Tensor]:
    x = np.concatenate([e.features.reshape(-1, e.features.shape[-1]) for e in episodes])
    y = np.concatenate([e.success.ravel() for e in episodes])
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.float32))


def reward_agreement(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Of practised episodes: what the classifier called a success (it ended them) against the truth."""
    found = Agreement.of([t.terminated for t in trajectories], [t.success for t in trajectories])
    return {
        "rewarded": float(np.mean([t.terminated for t in trajectories])),
        "reward_precision": found.precision,
        "reward_recall": found.recall,
    }


@dataclass(frozen=True)
class Judged:
    """One episode under one order: `probabilities` (T,), `success` (T,), and whether the arm followed that order."""

    task: str
    followed: bool
    probabilities: NDArray[np.float64]
    success: Truths

    def verdict(self, threshold: float, consecutive: int) -> tuple[bool, bool]:
        """Whether the classifier ends the episode, and whether it has truly succeeded by then (or by the clock)."""
        streak = Streak(threshold, consecutive)
        for i, probability in enumerate(self.probabilities):
            if streak.after_step(probability):
                return True, bool(self.success[: i + 1].any())
        return False, bool(self.success.any())


def judge_all(network: SuccessNetwork, episodes: Sequence[LabelledEpisode]) -> list[Judged]:
    """Two for each episode."""
    return [
        Judged(e.task, i == 0, network.probabilities(e.features[i]), e.success[i]) for e in episodes for i in range(2)
    ]


def agreement(judged: Sequence[Judged], threshold: float, consecutive: int) -> Agreement:
    """Of whole episodes."""
    pairs = [item.verdict(threshold, consecutive) for item in judged]
    return Agreement.of([said for said, _ in pairs], [true for _, true in pairs])


def choose_threshold(judged: Sequence[Judged], consecutive: int, precision: float) -> float:
    """The threshold with the best recall among those that reach `precision`, or else the most precise one.

    Over both orders of every episode; among equals, the strictest: what is too generous is exploited.
    """

    def worth(threshold: float) -> tuple[float, float, float]:
        found = agreement(judged, threshold, consecutive)
        reached = -1.0 if np.isnan(found.precision) else min(found.precision, precision)
        return reached, 0.0 if np.isnan(found.recall) else found.recall, threshold

    return max(CANDIDATES, key=worth)


def measure(judged: Sequence[Judged], thresholds: Mapping[str, float], consecutive: int) -> dict[str, Any]:
    """task -> `episodes` and `steps` of the order that was followed; `wrong_order`: of the other one, how many episodes
    were called a success that were none; `both_orders`: of all, where failures are as many as successes at least."""
    found: dict[str, Any] = {}
    for task, threshold in thresholds.items():
        own = [item for item in judged if item.task == task and item.followed]
        other = [item for item in judged if item.task == task and not item.followed]
        steps = np.concatenate([item.probabilities for item in own]) >= threshold
        false, count = agreement(other, threshold, consecutive).false_yes, len(other)
        found[task] = {
            "threshold": threshold,
            "episodes": agreement(own, threshold, consecutive).report(),
            "steps": Agreement.of(steps, np.concatenate([item.success for item in own])).report(),
            "both_orders": agreement([*own, *other], threshold, consecutive).report(),
            "wrong_order": {"false_yes": false, "episodes": count, "wilson95": list(wilson_interval(false, count))},
        }
    return found
