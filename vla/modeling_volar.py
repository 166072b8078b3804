"""The policy network: one token sequence of words, images and proprioception; points and action tokens out.

    [<s> lift the red block <pad>..] [front image] [wrist image] [proprio] [point queries] [action queries]

The language model runs once over all of it (parallel decoding of the whole chunk, as in OpenVLA-OFT, Kim et
al. 2025). The prefix attends in both directions, as in PaliGemma; padding is masked. Hidden states of the two
point queries are matched with the first camera's tokens to say where the named objects are; those positions,
beside proprioception, enter the action head.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from volar.datasets.episode import POINT_NAMES
from volar.robots.contract import PolicyContract
from volar.vla.action_tokenizers.uniform_bins import BINS
from volar.vla.backbone import build_backbone
from volar.vla.configuration_volar import VolarConfig
from volar.vla.instruction_tokenizer import WORDS

VOCABULARY = WORDS + BINS
POINTS = len(POINT_NAMES)


@dataclass(frozen=True)
class Outputs:
    """What the network says about a batch of B observations.

    `action_logits` (B, H, A, 256): over bins in rising order. `patch_logits` (B, 2, P): which token of
    the first camera each point lies in. `points_uv` (B, 2, 2): place in that image, fractions.
    `points` (B, 2, 3): position in the base frame [m].
    """

    action_logits: Tensor
    patch_logits: Tensor
    points_uv: Tensor
    points: Tensor


@dataclass(frozen=True)
class Trunk:
    """What the action head sees of B observations, beside the state, and what pointing says.

    `queries` (B, H, D): hidden states of the action queries. `scaled_points` (B, 2, 3): in units of the config's
    `point_std`, from its `point_mean`. `patch_logits`, `points_uv` as in `Outputs`.
    """

    queries: Tensor
    patch_logits: Tensor
    points_uv: Tensor
    scaled_points: Tensor


class VolarModel(nn.Module):
    """The network of `VolarConfig` for a contract's cameras, state and actions."""

    def __init__(self, config: VolarConfig, contract: PolicyContract) -> None:
        super().__init__()
        if len(config.camera_tokens) != len(contract.cameras):
            raise ValueError(f"camera_tokens {config.camera_tokens} for {len(contract.cameras)} cameras")
        self.config = config
        self.action_shape = (contract.chunk_length, contract.action.size)  # (H, A)
        self.backbone = build_backbone(config.backbone, VOCABULARY)
        width = self.backbone.width
        self.camera_embedding = nn.Parameter(torch.randn(len(contract.cameras), 1, width) * 0.02)
        self.state_projection = nn.Sequential(
            nn.Linear(len(contract.state_names), width), nn.SiLU(), nn.Linear(width, width)
        )
        self.point_queries = nn.Parameter(torch.randn(POINTS, width) * 0.02)
        self.action_queries = nn.Parameter(torch.randn(contract.chunk_length, width) * 0.02)
        self.point_head = PointHead(config, width)
        self.action_head = ActionHead(config, width, len(contract.state_names), contract.action.size)

    def forward(self, pixels: Tensor, input_ids: Tensor, state: Tensor, camera_mask: Tensor | None = None) -> Outputs:
        """pixels (B, C, 3, h, w) in [-1, 1], input_ids (B, T), normalized state (B, S) -> `Outputs`.

        `camera_mask`: bool (B, C), False where nothing may attend to a camera's tokens; None where all are there.
        """
        seen = self.trunk(pixels, input_ids, state, camera_mask)
        with torch.autocast(seen.queries.device.type, enabled=False):
            logits = self.action_head(seen.queries, seen.scaled_points, state.float())
        return Outputs(logits, seen.patch_logits, seen.points_uv, self.point_head.to_metres(seen.scaled_points))

    def trunk(self, pixels: Tensor, input_ids: Tensor, state: Tensor, camera_mask: Tensor | None = None) -> Trunk:
        """Everything before the action head, inputs as for `forward`."""
        batch, cameras = pixels.shape[:2]
        images = self.backbone.embed_images(pixels.flatten(0, 1))  # (B * C, g*g, D)
        images = images.reshape(batch, cameras, *images.shape[1:])
        views = [
            pool_tokens(images[:, i], side) + self.camera_embedding[i]
            for i, side in enumerate(self.config.camera_tokens)
        ]
        words = self.backbone.embed_words(input_ids)  # (B, T, D)
        proprio = self.state_projection(state)[:, None]  # (B, 1, D)
        queries = torch.cat([self.point_queries, self.action_queries]).expand(batch, -1, -1)  # (B, 2 + H, D)
        sequence = torch.cat([words, *views, proprio, queries], dim=1)  # (B, L, D)
        mask = attention_mask(input_ids, sequence.shape[1])
        if camera_mask is not None:
            seen = [camera_mask[:, i, None].expand(-1, view.shape[1]) for i, view in enumerate(views)]
            before, after = words.shape[1], 1 + queries.shape[1]
            mask = mask & nn.functional.pad(torch.cat(seen, 1), (before, after), value=True)[:, None]
        hidden = self.backbone.hidden_states(sequence, mask)

        first_view = hidden[:, words.shape[1] : words.shape[1] + views[0].shape[1]]  # (B, P, D)
        chunk = self.action_shape[0]
        with torch.autocast(hidden.device.type, enabled=False):  # heads decide millimetres: full precision
            tail = hidden[:, -(POINTS + chunk) :].float()
            patch_logits, uv, points = self.point_head(tail[:, :POINTS], first_view.float())
        return Trunk(tail[:, POINTS:], patch_logits, uv, points)


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


class ActionHead(nn.Module):
    """Action tokens from the hidden states of the queries, the pointed positions and proprioception."""

    def __init__(self, config: VolarConfig, width: int, state_size: int, action_size: int) -> None:
        super().__init__()
        inner = config.head_width
        self.inputs = nn.Linear(width + 3 * POINTS + state_size, inner)
        self.block = nn.Sequential(nn.LayerNorm(inner), nn.Linear(inner, inner), nn.SiLU(), nn.Linear(inner, inner))
        self.norm = nn.LayerNorm(inner)
        self.bins = nn.Linear(inner, action_size * BINS)

    def forward(self, queries: Tensor, points: Tensor, state: Tensor) -> Tensor:
        """queries (B, H, D), scaled points (B, 2, 3), normalized state (B, S) -> logits (B, H, A, 256)."""
        context = torch.cat([points.flatten(1).detach(), state], -1)[:, None].expand(-1, queries.shape[1], -1)
        x = nn.functional.silu(self.inputs(torch.cat([queries, context], -1)))  # (B, H, inner)
        x = x + self.block(x)
        logits: Tensor = self.bins(self.norm(x))
        return logits.reshape(*logits.shape[:-1], -1, BINS)


def pool_tokens(tokens: Tensor, side: int) -> Tensor:
    """(B, g*g, D) -> (B, side*side, D): average over square neighbourhoods."""
    grid = int(tokens.shape[1] ** 0.5)
    if grid == side:
        return tokens
    square = tokens.mT.reshape(tokens.shape[0], tokens.shape[2], grid, grid)
    return nn.functional.avg_pool2d(square, grid // side).flatten(2).mT


def attention_mask(input_ids: Tensor, length: int) -> Tensor:
    """(B, T) -> (B, length, length): every token attends to every token that is not padding (id 0)."""
    keys = nn.functional.pad(input_ids != 0, (0, length - input_ids.shape[1]), value=True)  # (B, L)
    return keys[:, None, :].expand(-1, length, -1)


def pixels_from_images(images: Mapping[str, Tensor], size: int) -> Tensor:
    """{camera: uint8 (B, H, W, 3)} -> (B, C, 3, size, size) in [-1, 1], bilinear where sizes differ."""
    views = []
    for image in images.values():
        view = image.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        if view.shape[-2:] != (size, size):
            view = nn.functional.interpolate(view, (size, size), mode="bilinear", align_corners=False)
        views.append(view)
    return torch.stack(views, 1)
