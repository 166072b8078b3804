"""Losses of imitation: soft action bins, and pointing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from volar.vla.action_tokenizers.uniform_bins import BINS, CENTRES
from volar.vla.modeling_volar import Imitated, Outputs, Pointing

# Standard deviation of the target over bins, in normalized action units; three bins wide. A neighbouring bin
# is nearly right, and a hard target would not say so.
SOFT_SIGMA = 0.024


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch: `total` is minimized; the others are reported."""

    total: Tensor
    action: Tensor
    patch: Tensor
    place: Tensor

    def named(self) -> dict[str, float]:
        return {name: float(getattr(self, name).detach()) for name in ("total", "action", "patch", "place")}


def action_loss(logits: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy with Gaussian targets. logits (B, H, A, 256), normalized actions (B, H, A), mask (B, H)."""
    centres = torch.as_tensor(CENTRES, dtype=logits.dtype, device=logits.device)
    distance = (actions.clamp(-1, 1)[..., None] - centres) / SOFT_SIGMA  # (B, H, A, 255)
    target = torch.nn.functional.pad(torch.softmax(-0.5 * distance**2, -1), (0, BINS - len(CENTRES)))
    losses = -(target * logits.log_softmax(-1)).sum(-1).mean(-1)  # (B, H)
    return (losses * mask).sum() / mask.sum().clamp(min=1)


def point_losses(outputs: Outputs | Pointing, points: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Pointing: which patch (cross-entropy) and where (L1 of xyz in units of `std`, and of uv).

    points (B, 2, 5): x y z [m], u v; NaN where there is nothing to point at, which then carries no loss.
    """
    xyz, uv = points[..., :3], points[..., 3:]
    known = torch.isfinite(points).all(-1)  # (B, 2)
    visible = known & ((uv >= 0) & (uv < 1)).all(-1)
    side = int(outputs.patch_logits.shape[-1] ** 0.5)
    cell = (torch.nan_to_num(uv).clamp(0, 0.999) * side).long()
    label = cell[..., 1] * side + cell[..., 0]  # (B, 2), row-major
    log_probability = outputs.patch_logits.log_softmax(-1).gather(-1, label[..., None])[..., 0]
    patch = -(log_probability * visible).sum() / visible.sum().clamp(min=1)
    where = (torch.nan_to_num(xyz - outputs.points).abs() / std).sum(-1) * known
    place = where.sum() / known.sum().clamp(min=1)
    in_image = torch.nan_to_num(uv - outputs.points_uv).abs().sum(-1) * visible
    return patch, place + in_image.sum() / visible.sum().clamp(min=1)


def imitation_loss(
    outputs: Outputs | Imitated, actions: Tensor, mask: Tensor, points: Tensor, std: Tensor
) -> Losses:
    """The loss of both stages; frames without actions or points carry only the other's share."""
    if isinstance(outputs, Imitated):
        action = outputs.action_loss
    else:
        action = action_loss(outputs.action_logits, actions, mask)
    patch, place = point_losses(outputs, points, std)
    return Losses(action + 0.5 * patch + 0.5 * place, action, patch, place)
