"""All of a chunk at once: a query for each step, a head over bins (as in OpenVLA-OFT, Kim et al., 2025).

Its weights are `VolarModel.action_queries` and `action_head`.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from volar.vla.action_tokenizers.uniform_bins import BINS, CENTRES
from volar.vla.decoders.decoder import NOTHING, Decoded, Prefix, require_ids

if TYPE_CHECKING:
    from volar.vla.modeling_volar import VolarModel


class Parallel:
    """Tokens are independent given what is seen; the head's bins rise where ids fall."""

    def logits(self, model: "VolarModel", prefix: Prefix) -> tuple[Tensor, Tensor]:
        """(B, H, A, 256), bins rising, and the prefix's hidden states."""
        hidden = model.run_queries(prefix)
        _, _, points = model.point(prefix, hidden)
        with torch.autocast(hidden.device.type, enabled=False):  # heads decide millimetres: full precision
            queries = hidden[:, prefix.length :].float()
            logits: Tensor = model.action_head(queries, points, prefix.state.float())
        return logits, hidden[:, : prefix.length]

    def loss(
        self, model: "VolarModel", prefix: Prefix, actions: Tensor, mask: Tensor, seed: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        from volar.vla.losses import action_loss

        logits, hidden = self.logits(model, prefix)
        return action_loss(logits, actions, mask), hidden, None  # of its accuracy: batch_accuracy.py

    def decode(self, model: "VolarModel", prefix: Prefix, noise: Tensor | None = None) -> Decoded:
        logits, hidden = self.logits(model, prefix)
        bins = logits.argmax(-1)  # (B, H, A)
        centres = np.append(CENTRES, CENTRES[-1])  # the last bin is a point: 1 exactly
        actions = torch.tensor(centres, dtype=torch.float32, device=bins.device)[bins]
        tokens = (model.backbone.action_end - 1 - bins).flatten(1)
        top = logits.topk(2, -1).values
        log_probabilities = logits.log_softmax(-1).amax(-1).flatten(1)
        margin = (top[..., 0] - top[..., 1]).flatten(1).amin(1)
        return Decoded(actions, hidden, tokens, log_probabilities, margin)

    def log_probabilities(self, model: "VolarModel", prefix: Prefix, tokens: Tensor) -> Tensor:
        end = model.backbone.action_end
        require_ids(tokens, end - BINS, end)
        logits, _ = self.logits(model, prefix)
        said = tokens != NOTHING
        bins = (end - 1 - tokens).where(said, 0).reshape(logits.shape[:-1])
        chosen: Tensor = logits.log_softmax(-1).gather(-1, bins[..., None])[..., 0]
        return chosen.flatten(1) * said
