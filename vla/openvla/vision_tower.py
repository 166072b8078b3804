"""A vision transformer with the parameter names and arithmetic of timm's, as far as OpenVLA uses it.

    x = patches (linear) + positions;  x = [class] [registers] x;  blocks;  patch tokens of the last but one block

The last block, the final norm and a pooling head are in a checkpoint too; nothing of them reaches the output, so they
are not built. Facts: timm `vision_transformer.py` (pre-norm, epsilon 1e-6, exact GELU, positions for patches only),
openvla/openvla `modeling_prismatic.py` (`get_intermediate_layers` of block depth - 2, layer scale as `scale_factor`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from volar.robots.errors import VolarError

EPSILON = 1e-6  # of the norms
# Attention heads, which no tensor's shape tells: the towers that OpenVLA was trained with.
HEADS = {"vit_large_patch14_reg4_dinov2.lvd142m": 16, "vit_so400m_patch14_siglip_224": 16}


@dataclass(frozen=True)
class TowerShape:
    """`patches`: along one side. `registers`: 0 where there are none. `depth`: with the block that is not built."""

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    patches: int
    class_token: bool
    registers: int
    layer_scale: bool

    @property
    def image_size(self) -> int:
        return self.patch * self.patches

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, ...]], heads: int) -> "TowerShape":
        """From a checkpoint's tensors below the tower's prefix. Raises `VolarError` naming what does not fit."""
        try:
            width, _, patch, _ = shapes["patch_embed.proj.weight"]
            places = shapes["pos_embed"][1]
            hidden = shapes["blocks.0.mlp.fc1.weight"][0]
        except KeyError as error:
            raise VolarError(
                f"the vision tower has no tensor {error}: it is not a vision transformer of timm"
            ) from error
        depth = len({int(found[1]) for key in shapes if (found := re.match(r"blocks\.(\d+)\.", key))})
        patches = round(places**0.5)
        if patches**2 != places:
            raise VolarError(
                f"{places} positions are no square of patches; OpenVLA's towers have positions for those only"
            )
        if width % heads or depth < 2:
            raise VolarError(f"a vision tower of width {width} and {depth} blocks does not go with {heads} heads")
        registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
        scaled = "blocks.0.ls1.scale_factor" in shapes
        return TowerShape(width, depth, heads, hidden, patch, patches, "cls_token" in shapes, registers, scaled)


class VisionTower(nn.Module):
    """Images (B, 3, S, S), normalized -> patch tokens (B, patches^2, width)."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, shape.patch, stride=shape.patch)})
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.patches**2, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if shape.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, shape.registers, width)) if shape.registers else None
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth - 1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed["proj"](images).flatten(2).mT + self.pos_embed  # (B, P, D)
        before = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*before, x], dim=1)
        for block in self.blocks:
            x = block(x)
        patches: Tensor = x[:, -(self.shape.patches**2) :]
        return patches


class Block(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        width = shape.width
        self.norm1, self.norm2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width, shape.heads)
        self.ls1, self.ls2 = (LayerScale(width) if shape.layer_scale else nn.Identity() for _ in range(2))
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, shape.hidden))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(shape.hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, L, d)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(seen.transpose(1, 2).reshape(batch, length, width))
        return out


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor
