"""Losses of imitation: soft action bins, pointing, and answers in words.

Each is a mean over what there is in a step: chunk steps, points, answers; of pointing, a mean over the points that
instructions name and one over the hands are added up. Where a step's samples come in several micro-batches, of several
processes, each of them divides by the `Counts` of the whole step, so that their sum is what one batch of all samples
would give (of decoder flow, with other noise).
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from volar.vla.action_tokenizers.uniform_bins import BINS, CENTRES
from volar.vla.heads import POINTS
from volar.vla.modeling_volar import Imitated, Outputs, Pointing

# Standard deviation of the target over bins, in normalized action units; three bins wide. A neighbouring bin
# is nearly right, and a hard target would not say so.
SOFT_SIGMA = 0.024


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch: `total` is minimized; the others are reported. `answer`: None without questions.
    `token_accuracy`: of decoder autoregressive, a mean as the losses are; no number where a step has no actions."""

    total: Tensor
    action: Tensor
    patch: Tensor
    place: Tensor
    answer: Tensor | None = None
    token_accuracy: Tensor | None = None

    def named(self) -> dict[str, float]:
        tensors = {item.name: getattr(self, item.name) for item in fields(self)}
        found = {name: float(value.detach()) for name, value in tensors.items() if value is not None}
        if math.isnan(found.get("token_accuracy", 0.0)):  # in every part of the step alike
            del found["token_accuracy"]
        return found


@dataclass(frozen=True)
class Counts:
    """What the losses are means over, scalars: steps of chunks; points that instructions name, and those of them that
    the first camera sees; hands that it sees; answers."""

    steps: Tensor
    points: Tensor
    seen: Tensor
    hands: Tensor
    answers: Tensor

    @staticmethod
    def of(mask: Tensor, points: Tensor, answers: Tensor | None = None) -> "Counts":
        """mask (B, H), points (B, 3, 5), answers (B,), -1 where there is none."""
        known, visible = _known(points)
        said = torch.zeros((), device=mask.device) if answers is None else (answers >= 0).sum()
        return Counts(mask.sum(), known[:, :POINTS].sum(), visible[:, :POINTS].sum(), visible[:, POINTS:].sum(), said)

    @staticmethod
    def from_vector(vector: Tensor) -> "Counts":
        return Counts(*vector.unbind())

    def to_vector(self) -> Tensor:
        """(5,) float32, to be added up."""
        return torch.stack([self.steps, self.points, self.seen, self.hands, self.answers]).float()


def action_loss(logits: Tensor, actions: Tensor, mask: Tensor, steps: Tensor | None = None) -> Tensor:
    """Cross-entropy with Gaussian targets. logits (B, H, A, 256), normalized actions (B, H, A), mask (B, H).

    `steps`: to divide by; those of `mask` when None.
    """
    centres = torch.as_tensor(CENTRES, dtype=logits.dtype, device=logits.device)
    distance = (actions.clamp(-1, 1)[..., None] - centres) / SOFT_SIGMA  # (B, H, A, 255)
    target = torch.nn.functional.pad(torch.softmax(-0.5 * distance**2, -1), (0, BINS - len(CENTRES)))
    losses = -(target * logits.log_softmax(-1)).sum(-1).mean(-1)  # (B, H)
    return (losses * mask).sum() / (mask.sum() if steps is None else steps).clamp(min=1)


def point_losses(
    outputs: Outputs | Pointing, points: Tensor, std: Tensor, counts: Counts | None = None
) -> tuple[Tensor, Tensor]:
    """Pointing: which patch (cross-entropy) and where (L1 of xyz in units of `std`, and of uv).

    points (B, 3, 5): x y z [m], u v; NaN where there is nothing to point at, which then carries no loss. The hand is
    looked for where `outputs` do; its position is known, so that its place in the image is all there is to learn.
    """
    count = outputs.points_uv.shape[1]
    uv, (known, visible) = points[:, :count, 3:], _known(points)
    no_steps = known.new_zeros(len(points), 0)
    counts = counts or Counts.of(no_steps, points)
    rows = [counts.seen] * POINTS + [counts.hands]
    divisors = torch.stack(rows[:count]).clamp(min=1)
    side = int(outputs.patch_logits.shape[-1] ** 0.5)
    cell = (torch.nan_to_num(uv).clamp(0, 0.999) * side).long()
    label = cell[..., 1] * side + cell[..., 0]  # (B, Q), row-major
    log_probability = outputs.patch_logits.log_softmax(-1).gather(-1, label[..., None])[..., 0]
    patch = -(log_probability * visible[:, :count] / divisors).sum()
    where = (torch.nan_to_num(points[:, :POINTS, :3] - outputs.points).abs() / std).sum(-1) * known[:, :POINTS]
    in_image = torch.nan_to_num(uv - outputs.points_uv).abs().sum(-1) * visible[:, :count]
    return patch, where.sum() / counts.points.clamp(min=1) + (in_image / divisors).sum()


def _known(points: Tensor) -> tuple[Tensor, Tensor]:
    """points (B, 3, 5) -> bool (B, 3): which there are, and which of them lie in the first camera's image."""
    uv, known = points[..., 3:], torch.isfinite(points).all(-1)
    return known, known & ((uv >= 0) & (uv < 1)).all(-1)


def answer_loss(logits: Tensor, answers: Tensor, count: Tensor) -> Tensor:
    """Cross-entropy of the one word of an answer. logits (B, ids), answers (B,): -1 where none, which carries none."""
    there = answers >= 0
    log_probability = logits.log_softmax(-1).gather(-1, answers.clamp(min=0)[:, None])[:, 0]
    return -(log_probability * there).sum() / count.clamp(min=1)


def imitation_loss(
    outputs: Outputs | Imitated,
    actions: Tensor,
    mask: Tensor,
    points: Tensor,
    std: Tensor,
    answers: Tensor | None = None,
    counts: Counts | None = None,
) -> Losses:
    """The loss of both stages; frames without actions, points or answers carry only the others' share.

    `counts`: of the whole step, when this batch is a part of it.
    """
    here = Counts.of(mask, points, answers)
    counts = counts or here
    accuracy = None
    if isinstance(outputs, Imitated):  # means over this batch
        action = outputs.action_loss * (here.steps / counts.steps.clamp(min=1))
        if outputs.token_accuracy is not None:
            accuracy = outputs.token_accuracy * here.steps / counts.steps
    else:
        action = action_loss(outputs.action_logits, actions, mask, counts.steps)
    patch, place = point_losses(outputs, points, std, counts)
    total = action + 0.5 * patch + 0.5 * place
    if answers is None or outputs.answer_logits is None:
        return Losses(total, action, patch, place, token_accuracy=accuracy)
    answer = answer_loss(outputs.answer_logits, answers, counts.answers)
    return Losses(total + answer, action, patch, place, answer, accuracy)
