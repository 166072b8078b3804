"""Who sees whom in a sequence of prefix and suffix."""

import torch
from torch import Tensor


def attention_mask(
    present: Tensor, prefix: int, *, causal: bool, causal_suffix: bool = False, prefix_sees_suffix: bool = False
) -> Tensor:
    """bool (B, L) -> bool (B, L, L), True = attends. The first `prefix` tokens are the prefix, the rest the suffix.

    The prefix sees itself, up to each token itself where `causal`; the suffix sees the prefix and itself, up to each
    token itself where `causal_suffix`. Nothing sees what is not present.
    """
    length, device = present.shape[1], present.device
    query, key = torch.arange(length, device=device)[:, None], torch.arange(length, device=device)
    sees = key <= query if causal else torch.ones(length, length, dtype=torch.bool, device=device)
    if not prefix_sees_suffix:
        sees = sees & (key < prefix)
    own = key <= query if causal_suffix else key >= 0
    own = (key < prefix) | own
    inside = query < prefix  # no `where`: ONNX Runtime has none of booleans
    return ((inside & sees) | (~inside & own)) & present[:, None, :]
