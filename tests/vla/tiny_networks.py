"""Small networks with random weights, tiny and of pretrained families, and what they see and are to do."""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volar.robots.contract import PolicyContract
from volar.vla.action_tokenizers.fast import Fast
from volar.vla.backbone import Backbone, BackboneConfig, VlmConfig
from volar.vla.configuration_volar import VolarConfig
from volar.vla.decoders.decoder import Prefix
from volar.vla.modeling_volar import VolarModel

from .tiny_vlms import tiny_model

STEPS = 2


def network(
    contract: PolicyContract,
    decoder: str,
    backbone: str = "tiny",
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> VolarModel:
    torch.manual_seed(0)
    tokenizer = None
    if changes.get("tokenizer") == "fast":
        chunks = np.random.default_rng(0).uniform(-1, 1, (60, contract.chunk_length, 7))
        chunks[::2] = 0.0
        tokenizer = Fast.train(chunks)
        changes["action_tokens"] = tokenizer.size
    if backbone == "tiny":
        small = BackboneConfig(image_size=32, patch_size=4, vision_layers=1, layers=2, width=32, vision_width=32)
        config = VolarConfig(backbone=small, head_width=32, decoder=decoder, expert_width=32, **changes)  # type: ignore[arg-type]
        return VolarModel(config, contract, tokenizer=tokenizer).eval()
    model = tiny_model(backbone).to(dtype)
    raw = json.loads(model.config.to_json_string(use_diff=False))
    vlm = VlmConfig(model.config.model_type, raw, 32, head=(11, 12), image_start=(13,), image_end=(14, 15))
    side = Backbone(model, vlm).family.side(model.config, 32)
    config = VolarConfig(
        backbone=vlm,
        camera_tokens=(side, side),
        head_width=32,
        decoder=decoder,  # type: ignore[arg-type]
        expert_width=32,
        **changes,
    )
    return VolarModel(config, contract, Backbone(model, vlm), tokenizer).eval()


def inputs(model: VolarModel, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, ids and state of different rows."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(batch, 2, 3, 32, 32, generator=generator) * 2 - 1
    padding = 0 if model.config.backbone.name == "tiny" else -1
    ids = torch.tensor([[20, 21, 22, padding], [30, 31, 32, 33]])[:batch]
    return pixels, ids, torch.rand(batch, 10, generator=generator) * 2 - 1


def seen(model: VolarModel, batch: int = 2, times: int = 1) -> Prefix:
    """A prefix of different rows, each so many times."""
    return model.prefix(*(part.repeat_interleave(times, 0) for part in inputs(model, batch)))


def actions(batch: int = 2, steps: int = STEPS) -> Tensor:
    return torch.rand(batch, steps, 7, generator=torch.Generator().manual_seed(2)) * 2 - 1
