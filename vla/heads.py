"""Heads on the language model's hidden states: where the named objects are, and which action tokens."""

import numpy as np
import torch
from torch import Tensor, nn

from volar.datasets.episode import HAND_ROW
from volar.datasets.normalizer import Normalizer
from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.vla.action_tokenizers.uniform_bins import BINS
from volar.vla.configuration_volar import VolarConfig

POINTS = HAND_ROW  # that an instruction names: target and destination, the rows before the hand's
HAND = ("ee_x", "ee_y", "ee_z")  # of the state: the end effector in the base frame [m]
COARSE_M, FINE_M = 0.1, 0.02  # over which distances to a pointed position tell apart far from near, and near from there


class Hand(nn.Module):
    """Where the end effector is, as the state tells that the contract's statistics have normalized.

    `wants`: the setting that needs it. Raises `VolarError` for a state that does not have it.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, contract: PolicyContract, wants: str) -> None:
        super().__init__()
        lacking = [name for name in HAND if name not in contract.state_names]
        if lacking:
            raise VolarError(f"{wants} needs {', '.join(HAND)} in the state, which lacks {', '.join(lacking)}")
        self._places = [contract.state_names.index(name) for name in HAND]
        normalizer = Normalizer.of_contract(contract, "observation.state")
        for name, values in (("offset", normalizer.offset), ("scale", normalizer.inverse_scale)):
            numbers = torch.tensor(np.asarray(values)[self._places], dtype=torch.float32)
            self.register_buffer(name, numbers, persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        """Normalized state (B, S) -> (B, 3), base frame [m]."""
        return state[:, self._places] * self.scale + self.offset


class PointHead(nn.Module):
    """Where the named objects are: attention over the first camera's tokens, then a regression.

    With `finds_hand` it also finds the robot's own hand in the image. The state says where that is: seen beside what is
    pointed at, it tells how the camera stands, which nothing else in the picture does.
    """

    centres: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: VolarConfig, width: int, contract: PolicyContract) -> None:
        super().__init__()
        side = config.camera_tokens[0]
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        inner = config.head_width
        self.hand = Hand(contract, "finds_hand=true") if config.finds_hand else None
        if self.hand:
            self.find_hand = nn.Sequential(nn.Linear(2 * width + 5, inner), nn.SiLU(), nn.Linear(inner, 2))
        of_hand = 5 if self.hand else 0  # numbers: where it is seen, and where it is
        self.regress = nn.Sequential(nn.Linear(2 * width + 2 + of_hand, inner), nn.SiLU(), nn.Linear(inner, 5))
        cells = (torch.arange(side) + 0.5) / side
        v, u = torch.meshgrid(cells, cells, indexing="ij")
        self.register_buffer("centres", torch.stack([u, v], -1).reshape(-1, 2), persistent=False)  # (P, 2)
        self.register_buffer("mean", torch.tensor(config.point_mean), persistent=False)
        self.register_buffer("std", torch.tensor(config.point_std), persistent=False)
        self._cell = 1.0 / side

    def forward(self, queries: Tensor, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """queries (B, Q, D), tokens (B, P, D), normalized state (B, S) -> patch logits (B, Q, P), uv (B, Q, 2), scaled
        xyz (B, 2, 3); Q is 2, or 3 with the hand."""
        logits = self.query(queries) @ self.key(tokens).mT / tokens.shape[-1] ** 0.5  # (B, Q, P)
        attention = logits.softmax(-1)
        seen, place = attention @ tokens, attention @ self.centres  # (B, Q, D), (B, Q, 2)
        told = torch.cat([queries, seen, 4 * (place - 0.5)], -1)
        if self.hand is None:
            out = self.regress(told)  # (B, 2, 5)
            return logits, place + self._cell * out[..., 3:], out[..., :3]
        where = ((self.hand(state) - self.mean) / self.std)[:, None]  # (B, 1, 3)
        hand_uv = place[:, POINTS:] + self._cell * self.find_hand(torch.cat([told[:, POINTS:], where], -1))  # (B, 1, 2)
        camera = torch.cat([4 * (hand_uv - 0.5), where], -1).expand(-1, POINTS, -1)
        out = self.regress(torch.cat([told[:, :POINTS], camera], -1))  # (B, 2, 5)
        return logits, torch.cat([place[:, :POINTS] + self._cell * out[..., 3:], hand_uv], 1), out[..., :3]

    def to_metres(self, scaled: Tensor) -> Tensor:
        return scaled * self.std + self.mean


class FromHand(nn.Module):
    """Pointed positions as seen from the fingertips: what an action is about, whatever the place on the table."""

    size = 2 * 3 * POINTS  # numbers it gives

    mean: Tensor
    std: Tensor

    def __init__(self, config: VolarConfig, contract: PolicyContract) -> None:
        super().__init__()
        self.hand = Hand(contract, "points=hand")
        for name, value in (("mean", config.point_mean), ("std", config.point_std)):
            self.register_buffer(name, torch.tensor(value), persistent=False)

    def forward(self, points: Tensor, state: Tensor) -> Tensor:
        """Scaled points (B, 2, 3), normalized state (B, S) -> (B, 12): coarse, in units of 0.1 m, and fine."""
        relative = (points * self.std + self.mean - self.hand(state)[:, None]).flatten(1)
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
