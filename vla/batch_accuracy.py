"""How near the network comes to the actions of the batch it learns from, as it says them while it learns.

From logits that are there anyway, of decoder parallel. Of autoregressive the loss brings `token_accuracy` along
(`losses.py`), of each token after the true ones before it; flow has neither tokens nor a chunk while it learns. Not
what the policy does: dropout and augmentation are on, the weights are not averaged, and the actions have been seen.
`validation.py` measures that.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from volar.datasets.normalizer import Normalizer
from volar.robots.contract import PolicyContract
from volar.vla.action_tokenizers.uniform_bins import CENTRES, EDGES
from volar.vla.validation import groups_of

if TYPE_CHECKING:
    from volar.vla.training_run import TrainingRun


@dataclass(frozen=True)
class Said:
    """Of B samples: `logits` (B, H, A, 256), without gradients; normalized `actions` (B, H, A); `mask` (B, H)."""

    logits: Tensor
    actions: Tensor
    mask: Tensor


def batch_accuracy(training: "TrainingRun") -> dict[str, float]:
    """`token_accuracy`, `l1_m`, `l1_rad`, `l1_gripper` of the step that was done, over all processes in which this is
    called; nothing where no actions are learned, or by another decoder than parallel."""
    config, contract = training.config, training.contract
    if config.stage != "cloning" or training.bare.config.decoder != "parallel":
        return {}
    one = config.mix.statistics != "own"
    values = training.processes.sum(summed(training.said, contract, one)).tolist()
    rates = zip(names_of(contract, one), values, strict=True)
    return {name: round(total / count, 5) for name, (total, count) in rates if count}


def names_of(contract: PolicyContract, one_statistics: bool) -> list[str]:
    """What `summed` has, in that order."""
    groups = groups_of(contract.action) if one_statistics else {}
    return ["token_accuracy", *(f"l1_{group}" for group in groups)]


def summed(said: list[Said], contract: PolicyContract, one_statistics: bool) -> Tensor:
    """float64 (names, 2): sums, and over how many numbers, so that those of several processes add up.

    `token_accuracy`: how many bins are right. `l1_m`, `l1_rad`, `l1_gripper`: distance to the actions as normalization
    clips them, in physical units; only where there are `one_statistics` to say those.
    """
    names = names_of(contract, one_statistics)
    found = torch.zeros(len(names), 2, dtype=torch.float64)
    scale = torch.from_numpy(Normalizer.of_contract(contract, "action").inverse_scale)  # (A,)
    for part in said:
        bins, actions, mask = part.logits.argmax(-1).cpu(), part.actions.cpu().clamp(-1, 1), part.mask.cpu()
        edges, centres = (torch.tensor(x, dtype=actions.dtype) for x in (EDGES, CENTRES))
        last = len(CENTRES) - 1
        bins = bins.clamp(max=last)
        right = bins == (torch.bucketize(actions, edges, right=True) - 1).clamp(max=last)  # (B, H, A)
        error = (centres[bins] - actions).abs() * scale
        values = [right[mask]]
        if one_statistics:
            values += [error[mask][:, columns] for columns in groups_of(contract.action).values()]
        found += torch.tensor([[float(value.double().sum()), value.numel()] for value in values], dtype=torch.float64)
    return found
