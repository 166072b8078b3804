"""A vision-language model of `transformers`, used token by token: images and words in, hidden states out.

`tiny` is LLaVA's architecture (Liu et al., "Visual Instruction Tuning", 2023: vision transformer, projector,
decoder-only language model) with small dimensions, made from the same `transformers` classes a pretrained
model is loaded into; so one code path serves both.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BackboneConfig:
    """Dimensions of a backbone built from scratch.

    `image_size`, `patch_size` [pixels]: (image_size / patch_size)^2 tokens an image before pooling.
    """

    name: str = "tiny"
    image_size: int = 96
    patch_size: int = 12
    vision_width: int = 128
    vision_layers: int = 3
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_ratio: float = 2.0

    def __post_init__(self) -> None:
        if self.name not in BACKBONES:
            from volar.robots.errors import Unknown

            raise Unknown("backbone", self.name, BACKBONES)
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def grid(self) -> int:
        """Patches along one side of an image."""
        return self.image_size // self.patch_size


class Backbone(nn.Module):
    """Three calls over one image-text-to-text model: embed images, embed words, run the language model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def width(self) -> int:
        """Hidden size of the language model."""
        return int(self.model.config.get_text_config().hidden_size)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, tokens, width): vision encoder and projector."""
        features = self.model.get_image_features(pixel_values=pixels).pooler_output
        return features if isinstance(features, Tensor) else torch.stack(list(features))

    def embed_words(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, width)."""
        embedded: Tensor = self.model.get_input_embeddings()(input_ids)
        return embedded

    def hidden_states(self, embeddings: Tensor, attention: Tensor) -> Tensor:
        """(B, L, width) and a boolean mask (B, L, L), True = attends -> last hidden states (B, L, width)."""
        additive = torch.zeros_like(attention, dtype=embeddings.dtype)
        additive = additive.masked_fill(~attention, torch.finfo(embeddings.dtype).min)[:, None]  # (B, 1, L, L)
        hidden: Tensor = self.model.model.language_model(
            inputs_embeds=embeddings, attention_mask=additive, use_cache=False
        ).last_hidden_state
        return hidden


def _tiny(config: BackboneConfig, vocabulary_size: int) -> Any:
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=config.vision_width,
        intermediate_size=int(config.mlp_ratio * config.vision_width),
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=config.width,
        intermediate_size=int(config.mlp_ratio * config.width),
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=1024,
        # Keeps activations at scale one at this width; the classes' default of 0.02 suits a width of 2,500.
        initializer_range=config.width**-0.5,
        tie_word_embeddings=True,
    )
    llava = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=0,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    # `eager`: on a CPU in bf16 its backward pass is three times faster than the fused one (docs/benchmarks.md)
    llava._attn_implementation = "eager"
    return LlavaForConditionalGeneration(llava)


BACKBONES = {"tiny": _tiny}


def build_backbone(config: BackboneConfig, vocabulary_size: int) -> Backbone:
    """A randomly initialized backbone (from torch's generator); `vocabulary_size` counts action tokens too."""
    return Backbone(BACKBONES[config.name](config, vocabulary_size))
