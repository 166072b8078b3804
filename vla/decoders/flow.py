"""Continuous chunks by flow matching (Lipman et al., 2023), with an action expert as in pi0 (Black et al., 2024).

    x_t = (1 - t) noise + t actions          t = 0: noise, t = 1: a chunk
    v(x_t, t) ~ actions - noise              what the expert learns to predict
    x <- x + v(x, t) / n                     n Euler steps, from t = 0

The expert is a transformer of its own width with as many layers as the language model. In each, the noisy actions
attend to one another and to the keys and values that the language model's layer made of the prefix; those are computed
once for all steps. There are no tokens, and so no probabilities of them.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from volar.robots.errors import VolarError
from volar.vla.decoders.decoder import Decoded, Prefix

if TYPE_CHECKING:
    from volar.vla.modeling_volar import VolarModel

# Times are drawn so that noisy ones come more often: t is 0.999 (1 - Beta(1.5, 1)) (pi0, appendix B).
_BETA, _LAST = 1.5, 0.999
_PERIODS = (4e-3, 4.0)  # of the embedding of t in [0, 1], as in pi0

Cache = list[tuple[Tensor, Tensor]]  # of each layer: keys and values (B, heads, P, d)


class Flow(nn.Module):
    """The action expert: (x_t, t, prefix) -> velocity (B, H, A)."""

    def __init__(self, width: int, action_size: int, steps: int, text: Any) -> None:
        """`text`: the configuration of the language model whose cache it reads; `steps`: n."""
        super().__init__()
        self.steps = steps
        self.actions_in = nn.Linear(action_size, width)
        self.time = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(ExpertLayer(width, text) for _ in range(text.num_hidden_layers))
        self.norm = nn.RMSNorm(width)
        self.velocity_out = nn.Linear(width, action_size)
        self.width = width

    def loss(
        self, model: "VolarModel", prefix: Prefix, actions: Tensor, mask: Tensor, seed: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        late = torch.rand(len(actions), generator=generator) ** (1 / _BETA)  # a Beta(1.5, 1)
        t = (_LAST * (1 - late)).to(actions)  # (B,), from 0, where decoding begins
        hidden, context = self._read(model, prefix)
        x = torch.lerp(noise, actions, t[:, None, None])
        error = (self._velocity(x, t, *context) - (actions - noise)).square().mean(-1)  # (B, H)
        return (error * mask).sum() / mask.sum().clamp(min=1), hidden, None

    def decode(self, model: "VolarModel", prefix: Prefix, noise: Tensor | None = None) -> Decoded:
        """Raises `VolarError` without `noise`, which decides among the chunks that are possible."""
        if noise is None:
            raise VolarError("decoder flow needs noise: reset the policy with a seed before it predicts")
        hidden, context = self._read(model, prefix)
        x = noise
        for i in range(self.steps):
            t = torch.full((prefix.batch,), i / self.steps, device=x.device)
            x = x + self._velocity(x, t, *context) / self.steps
        return Decoded(x.clamp(-1, 1), hidden)

    def log_probabilities(self, model: "VolarModel", prefix: Prefix, tokens: Tensor) -> Tensor:
        raise VolarError(
            "decoder flow has no action tokens, and so no log-probabilities: parallel and autoregressive do"
        )

    def _read(self, model: "VolarModel", prefix: Prefix) -> tuple[Tensor, tuple[Cache, Tensor, tuple[Tensor, Tensor]]]:
        """The prefix's hidden states; then what the expert attends to: keys and values, who is there, rotations."""
        backbone, cache = model.backbone, model.backbone.new_cache()
        seen = backbone.arrange(prefix.pieces)
        mask = model.mask(seen.present, prefix, causal_suffix=True)
        hidden = backbone.hidden_states(seen.embeddings, mask, seen.positions, seen.deep, cache)
        steps = torch.arange(model.action_shape[0], device=hidden.device)
        places = (seen.next_position[:, None] + steps).expand(prefix.batch, -1)  # (B, H)
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        return hidden, (layers, seen.present, backbone.rotations(places))

    def _velocity(
        self, x: Tensor, t: Tensor, cache: Cache, present: Tensor, rotations: tuple[Tensor, Tensor]
    ) -> Tensor:
        """x (B, H, A), t (B,) -> (B, H, A)."""
        seen = nn.functional.pad(present, (0, x.shape[1]), value=True)[:, None, None]  # (B, 1, 1, P + H)
        moment = time_embedding(t, self.width)[:, None].expand(-1, x.shape[1], -1)
        inputs = self.actions_in(x)
        # In full precision from here on, as is what the layers add to.
        h = (inputs + self.time(torch.cat([inputs, moment.to(inputs.dtype)], -1))).float()  # (B, H, W)
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            h = layer(h, keys, values, seen, rotations)
        velocity: Tensor = self.velocity_out(self.norm(h)).float()
        return velocity


class ExpertLayer(nn.Module):
    """One layer: heads are those of the language model's layer, whose keys and values stand before its own."""

    def __init__(self, width: int, text: Any) -> None:
        super().__init__()
        self.heads, self.kv_heads = int(text.num_attention_heads), int(text.num_key_value_heads)
        self.size = int(getattr(text, "head_dim", None) or text.hidden_size // self.heads)
        self.before, self.after = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query = nn.Linear(width, self.heads * self.size, bias=False)
        self.key = nn.Linear(width, self.kv_heads * self.size, bias=False)
        self.value = nn.Linear(width, self.kv_heads * self.size, bias=False)
        self.out = nn.Linear(self.heads * self.size, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(
        self, h: Tensor, keys: Tensor, values: Tensor, seen: Tensor, rotations: tuple[Tensor, Tensor]
    ) -> Tensor:
        """h (B, H, W); keys, values (B, kv heads, P, d) of the prefix; seen bool (B, 1, 1, P + H)."""
        batch, length, _ = h.shape
        x = self.before(h)
        q, k, v = (
            part(x).reshape(batch, length, -1, self.size).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        q, k = rotate(q, *rotations), rotate(k, *rotations)
        groups = self.heads // self.kv_heads
        k, v = (
            torch.cat([theirs.to(own.dtype), own], 2).repeat_interleave(groups, 1)
            for theirs, own in ((keys, k), (values, v))
        )  # (B, heads, P + H, d)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        h = h + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        result: Tensor = h + self.mlp(self.after(h))
        return result


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021) of x (B, heads, H, d) by angles (B, H, d), halves as pairs."""
    first, second = x.chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return (x * cosine[:, None] + turned * sine[:, None]).to(x.dtype)


def time_embedding(t: Tensor, width: int) -> Tensor:
    """(B,) in [0, 1] -> (B, width): sines and cosines of periods from `_PERIODS`."""
    shortest, longest = _PERIODS
    share = torch.linspace(0, 1, width // 2, device=t.device)
    angles = 2 * math.pi * t[:, None] / (shortest * (longest / shortest) ** share)
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], -1), (0, width % 2))
