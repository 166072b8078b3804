"""Heads on the language model's hidden states: where the named objects are, and which action tokens."""

import numpy as np
import torch
from torch import Tensor, nn

from volar.datasets.episode import POINT_NAMES
from volar.datasets.normalizer import Normalizer
from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.vla.action_tokenizers.uniform_bins import BINS
from volar.vla.configuration_volar import VolarConfig

POINTS = len(POINT_NAMES)
HAND = ("ee_x", "ee_y", "ee_z")  # of the state: the fingertips in the base frame [m]
COARSE_M, FINE_M = 0.1, 0.02  # over which distances to a pointed position tell apart far from near, and near from there


class PointHead(nn.Module):
    """Where the named objects are: attention over the first camera's tokens, then a regression."""

    centres: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: VolarConfig, width: int) -> None:
        super().__init__()
        side = config.camera_tokens[0]
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        inner = config.head_width
        self.regress = nn.Sequential(nn.Linear(2 * width + 2, inner), nn.SiLU(), nn.Linear(inner, 5))
        cells = (torch.arange(side) + 0.5) / side
        v, u = torch.meshgrid(cells, cells, indexing="ij")
        self.register_buffer("centres", torch.stack([u, v], -1).reshape(-1, 2), persistent=False)  # (P, 2)
        self.register_buffer("mean", torch.tensor(config.point_mean), persistent=False)
        self.register_buffer("std", torch.tensor(config.point_std), persistent=False)
        self._cell = 1.0 / side

    def forward(self, queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """queries (B, 2, D), tokens (B, P, D) -> patch logits (B, 2, P), uv (B, 2, 2), scaled xyz (B, 2, 3)."""
        logits = self.query(queries) @ self.key(tokens).mT / tokens.shape[-1] ** 0.5  # (B, 2, P)
        attention = logits.softmax(-1)
        seen, place = attention @ tokens, attention @ self.centres  # (B, 2, D), (B, 2, 2)
        out = self.regress(torch.cat([queries, seen, 4 * (place - 0.5)], -1))  # (B, 2, 5)
        return logits, place + self._cell * out[..., 3:], out[..., :3]

    def to_metres(self, scaled: Tensor) -> Tensor:
        return scaled * self.std + self.mean


class FromHand(nn.Module):
    """Pointed positions as seen from the fingertips: what an action is about, whatever the place on the table."""

    size = 2 * 3 * POINTS  # numbers it gives

    offset: Tensor
    scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: VolarConfig, contract: PolicyContract) -> None:
        super().__init__()
        lacking = [name for name in HAND if name not in contract.state_names]
        if lacking:
            raise VolarError(f"points=hand needs {', '.join(HAND)} in the state, which lacks {', '.join(lacking)}")
        self._places = [contract.state_names.index(name) for name in HAND]
        normalizer = Normalizer.of_contract(contract, "observation.state")
        numbers = {"offset": normalizer.offset[self._places], "scale": normalizer.inverse_scale[self._places]}
        for name, value in (numbers | {"mean": config.point_mean, "std": config.point_std}).items():
            self.register_buffer(name, torch.tensor(np.asarray(value), dtype=torch.float32), persistent=False)

    def forward(self, points: Tensor, state: Tensor) -> Tensor:
        """Scaled points (B, 2, 3), normalized state (B, S) -> (B, 12): coarse, in units of 0.1 m, and fine."""
        hand = state[:, self._places] * self.scale + self.offset  # (B, 3) [m]
        relative = (points * self.std + self.mean - hand[:, None]).flatten(1)
        return torch.cat([(relative / COARSE_M).clamp(-3, 3), torch.tanh(relative / FINE_M)], -1)


class ActionHead(nn.Module):
    """Action tokens from the hidden states of the queries, the pointed positions and proprioception."""

    def __init__(self, config: VolarConfig, width: int, contract: PolicyContract) -> None:
        super().__init__()
        inner, action_size = config.head_width, contract.action.size
        self.from_hand = FromHand(config, contract) if config.points == "hand" else None
        extra = self.from_hand.size if self.from_hand else 0
        self.inputs = nn.Linear(width + 3 * POINTS + len(contract.state_names) + extra, inner)
        self.block = nn.Sequential(nn.LayerNorm(inner), nn.Linear(inner, inner), nn.SiLU(), nn.Linear(inner, inner))
        self.norm = nn.LayerNorm(inner)
        self.bins = nn.Linear(inner, action_size * BINS)

    def forward(self, queries: Tensor, points: Tensor, state: Tensor) -> Tensor:
        """queries (B, H, D), scaled points (B, 2, 3), normalized state (B, S) -> logits (B, H, A, 256)."""
        points = points.detach()
        told = [points.flatten(1), state, *([self.from_hand(points, state)] if self.from_hand else [])]
        context = torch.cat(told, -1)[:, None].expand(-1, queries.shape[1], -1)
        x = nn.functional.silu(self.inputs(torch.cat([queries, context], -1)))  # (B, H, inner)
        x = x + self.block(x)
        logits: Tensor = self.bins(self.norm(x))
        return logits.reshape(*logits.shape[:-1], -1, BINS)
