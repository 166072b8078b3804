"""How images go into the vision tower of Qwen2.5-VL and Qwen3-VL: flattened patches, and where they lie.

The towers take images of any size, packed, and compute from their sizes which patch lies where. An exported graph has
one size, so there those numbers are constants; `prepare` computes them beforehand with the library's own functions.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Features = list[Tensor]  # (N, tokens, width): those of the first layer's input, then those added to later layers


def encode(model: Any, pixels: Tensor) -> Features:
    """Features of pixels (N, 3, S, S), and those of DeepStack (Meng et al., 2024) where the tower has them."""
    vision = model.config.vision_config
    side = pixels.shape[-1] // vision.patch_size
    patches = merge_ordered_patches(pixels, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    grid = torch.tensor([[1, side, side]] * len(pixels), device=pixels.device)
    if not torch.compiler.is_exporting():
        found = model.get_image_features(patches.flatten(0, 1), grid)
        deep = getattr(found, "deepstack_features", None) or []
        return [torch.stack(list(images)) for images in (found.pooler_output, *deep)]
    places = _repeated(_places(*_key(vision, side)), len(pixels), side**2, vision.spatial_merge_size**2)
    found = model.visual(patches.flatten(0, 1), grid_thw=grid, **places)
    deep = getattr(found, "deepstack_features", None) or []
    return [images.reshape(len(pixels), -1, images.shape[-1]) for images in (found.pooler_output, *deep)]


def nearest_size(vision: Any, size: int) -> int:
    """The whole number of image tokens next to `size` [pixels], in pixels, as Qwen's own processor rounds."""
    unit = int(vision.patch_size * vision.spatial_merge_size)
    return unit * max(1, round(size / unit))


def prepare(config: Any, size: int) -> None:
    """Computes what an export of images of `size` pixels needs, outside of it."""
    _places(*_key(config.vision_config, size // config.vision_config.patch_size))


def merge_ordered_patches(pixels: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """(N, 3, h, w) -> (N, patches, 3 * frames * patch^2), patches of one merged token next to each other.

    The order in which Qwen's image processor flattens an image; a still is `frames` equal frames.
    """
    n, channels, height, width = pixels.shape
    rows, columns = height // patch // merge, width // patch // merge
    cells = pixels.reshape(n, channels, rows, merge, patch, columns, merge, patch)
    cells = cells.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]  # (N, r, c, m, m, 3, 1, p, p)
    return cells.expand(*[-1] * 6, frames, -1, -1).reshape(n, rows * columns * merge**2, -1)


def _key(vision: Any, side: int) -> tuple[int, int, int, int, int]:
    table = getattr(vision, "num_position_embeddings", 0)
    return side, vision.spatial_merge_size, vision.patch_size, getattr(vision, "window_size", 0), table


@cache
def _places(side: int, merge: int, patch: int, window: int, table: int) -> dict[str, NDArray[Any]]:
    """Of one image of side x side patches, by the names under which the tower takes them."""
    from transformers import vision_utils

    grid = torch.tensor([[1, side, side]])
    found = {"position_ids": vision_utils.get_vision_position_ids(grid, merge)}
    if window:
        index, ends = vision_utils.get_vision_window_index(grid, merge, window, patch)
        found |= {"window_index": index, "cu_window_seqlens": ends}
    if table:
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grid, int(table**0.5), mode="bilinear", align_corners=True, spatial_merge_size=merge
        )
        found |= {"interp_indices": indices, "interp_weights": weights}
    return {name: value.numpy() for name, value in found.items()}


def _repeated(one: dict[str, NDArray[Any]], count: int, patches: int, merged: int) -> dict[str, Any]:
    """The places of `count` such images, packed. Ends of stretches stay NumPy's: lengths must be known to a graph."""
    result: dict[str, Any] = {"cu_seqlens": np.arange(count + 1) * patches}
    for name, value in one.items():
        if name == "cu_window_seqlens":
            ends = [value[1:] + i * patches for i in range(count)]
            result[name] = np.concatenate([[0], *ends])
            continue
        step = patches // merged if name == "window_index" else 0
        result[name] = torch.from_numpy(np.concatenate([value + i * step for i in range(count)]).astype(value.dtype))
    return result
