"""A vision-language model of `transformers`, used token by token: images and words in, hidden states out.

Every family goes through the same calls; `families.py` says what differs. `tiny` is LLaVA's architecture (Liu et al.,
"Visual Instruction Tuning", 2023: vision transformer, projector, decoder-only language model) with small dimensions,
made from the same `transformers` classes a pretrained model is loaded into.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from volar.robots.errors import Unknown
from volar.vla.families import FAMILIES
from volar.vla.qwen_vision import Features


@dataclass(frozen=True)
class BackboneConfig:
    """Dimensions of a backbone built from scratch.

    `image_size`, `patch_size` [pixels]: (image_size / patch_size)^2 tokens an image before pooling. `resize`: how they
    come to that size, one of `RESIZES`; policies from before, which do not say it, take them bilinear.
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
    resize: str = "bilinear"

    def __post_init__(self) -> None:
        if self.name not in BACKBONES:
            raise Unknown("backbone", self.name, BACKBONES)
        if self.resize not in RESIZES:
            raise Unknown("way to resize images", self.resize, RESIZES)
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def grid(self) -> int:
        """Patches along one side of an image."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class VlmConfig:
    """A pretrained model's architecture, complete: a policy directory names nothing to download.

    `name`: its family. `architecture`: the `config.json` of `transformers`. `image_size` [pixels]: images are resized
    to that square, `resize` as for `BackboneConfig`. `image_mean`, `image_std`: of pixels in [0, 1]. `head`,
    `image_start`, `image_end`: ids before all images and around each; `template`: what the contract's instruction
    template becomes. `dtype`: of its weights. `words`: ids of its tokenizer before tokens added at the end, of which
    the last say actions; None: the last rows of the embedding do, where they were added for that, and in policies from
    before.
    """

    name: str
    architecture: dict[str, Any]
    image_size: int
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    head: tuple[int, ...] = ()
    image_start: tuple[int, ...] = ()
    image_end: tuple[int, ...] = ()
    template: str = "{instruction}"
    dtype: str = "float32"
    words: int | None = None
    resize: str = "bilinear"

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise Unknown("way to resize images", self.resize, RESIZES)
        if self.name not in FAMILIES:
            raise Unknown("family of vision-language models", self.name, FAMILIES)
        if self.dtype not in DTYPES:
            raise Unknown("dtype", self.dtype, DTYPES)


@dataclass(frozen=True)
class Piece:
    """A stretch of a sequence: n tokens of text, or of one image.

    `embeddings` (B, n, D). `present` bool (B, n): False for padding and for a camera that is not there. `side`: of an
    image's square of tokens, 0 for text. `deep`: features (B, n, D) that go to the next layers' outputs.
    """

    embeddings: Tensor
    present: Tensor
    side: int = 0
    deep: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Sequence:
    """Pieces in order: `embeddings` (B, L, D), `present` (B, L), `positions` (B, L) or, by row and column, (3, B, L),
    `next_position` (B,), and `deep`, each (B, L, D), zero where there is no image. Of positions that are alike in all
    rows there is one row."""

    embeddings: Tensor
    present: Tensor
    positions: Tensor
    next_position: Tensor
    deep: tuple[Tensor, ...] = ()

    @property
    def length(self) -> int:
        return self.embeddings.shape[1]


class Backbone(nn.Module):
    """One image-text-to-text model: embed images, embed words, run the language model, with or without a cache."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, config: BackboneConfig | VlmConfig) -> None:
        super().__init__()
        self.model = model
        self.family = FAMILIES[config.name]
        self.normalizes = isinstance(config, VlmConfig)
        self.words = config.words if isinstance(config, VlmConfig) else None
        if isinstance(config, VlmConfig):
            self.register_buffer("mean", torch.tensor(config.image_mean)[:, None, None], persistent=False)
            if self.family.prepare is not None:
                self.family.prepare(model.config, config.image_size)
            self.register_buffer("std", torch.tensor(config.image_std)[:, None, None], persistent=False)

    @property
    def width(self) -> int:
        """Hidden size of the language model."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding of words."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def action_end(self) -> int:
        """The id after the last that says actions. Behind a pretrained model's words, which `tiny` has none of, lie its
        prompt's markers and rows that were never trained."""
        return self.vocabulary_size if self.words is None else self.words

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        found: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return found

    @property
    def language_model(self) -> Any:
        return getattr(self.model.model, self.family.language)

    def embed_images(self, pixels: Tensor) -> Features:
        """(N, 3, H, W) in [-1, 1] -> [(N, tokens, width), ..]: vision encoder and connector; first the embeddings,
        then what the outputs of the first layers are added, where the family does so (Qwen3-VL's DeepStack)."""
        if self.normalizes:
            pixels = (((pixels + 1) / 2 - self.mean) / self.std).to(self.dtype)
        return self.family.encode(self.model.model, pixels)

    def embed_words(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, width). An id of -1, which is none, is embedded as 0 and masked elsewhere."""
        embedded: Tensor = self.model.get_input_embeddings()(input_ids.clamp(min=0))
        return embedded

    def word_scale(self) -> float:
        """Standard deviation of embedded words: that of a new embedding among them."""
        with torch.no_grad():
            return float(self.embed_words(torch.arange(min(256, self.vocabulary_size))[None]).float().std())

    def logits(self, hidden: Tensor, first_id: int, end: int | None = None) -> Tensor:
        """Last hidden states (..., width) -> scores (..., ids) of the ids from `first_id` to before `end`."""
        head = self.model.get_output_embeddings()
        bias = None if head.bias is None else head.bias[first_id:end]
        scores = nn.functional.linear(hidden, head.weight[first_id:end], bias)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def rotations(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, n, head size) by which queries and keys at text positions (B, n) are turned."""
        grid = positions.expand(3, *positions.shape) if self.family.mrope else positions
        like = torch.zeros(1, dtype=torch.float32, device=positions.device)
        cosine, sine = self.language_model.rotary_emb(like, grid)
        # Rows and columns of text are its position thrice: any of the three is right.
        return (cosine[0], sine[0]) if cosine.ndim == 4 else (cosine, sine)

    def present(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> bool (B, T): False for padding."""
        return input_ids > 0 if self.family.words_first else input_ids >= 0

    def without_padding(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, t): up to the longest text's end, where padding changes nothing but the time it takes."""
        if self.family.words_first:  # padding takes positions
            return input_ids
        return input_ids[:, : int(self.present(input_ids).sum(1).max())]

    def arrange(self, pieces: list[Piece], start: Tensor | None = None) -> Sequence:
        """The pieces one after another, from position `start` (B,); the family's first by default.

        What is not present takes no position, so that a prompt is what it would be without it; `tiny` counts all.
        """
        batch, device = pieces[0].embeddings.shape[0], pieces[0].embeddings.device
        if start is None:
            start = torch.full((batch,), self.family.first_position, device=device)
        counts_all = self.family.words_first  # then rows are alike
        positions, position = [], start[:1] if counts_all else start
        for piece in pieces:
            counted = torch.ones_like(piece.present[:1]) if counts_all else piece.present
            here = position[:, None] + (counted.cumsum(1) - 1).clamp(min=0)  # (B, n)
            grid, size = here.expand(3, -1, -1), counted.sum(1)
            if self.family.mrope and piece.side:
                cells = torch.arange(piece.side, device=device)
                row, column = (part.flatten() for part in torch.meshgrid(cells, cells, indexing="ij"))
                grid = position[None, :, None] + torch.stack([0 * row, row, column])[:, None]  # (3, B, n)
                size = piece.side * piece.present.any(1)
            positions.append(grid if self.family.mrope else here)
            position = position + size
        deep = tuple(
            torch.cat([p.deep[i] if p.deep else torch.zeros_like(p.embeddings) for p in pieces], 1)
            for i in range(max(len(piece.deep) for piece in pieces))
        )
        embeddings, present = (torch.cat([getattr(p, f) for p in pieces], 1) for f in ("embeddings", "present"))
        return Sequence(embeddings, present, torch.cat(positions, -1), position, deep)

    def hidden_states(
        self,
        embeddings: Tensor,
        attention: Tensor,
        positions: Tensor | None = None,
        deep: tuple[Tensor, ...] = (),
        cache: Any = None,
    ) -> Tensor:
        """Last hidden states (B, L, width) of embeddings (B, L, width) under a boolean mask, True = attends.

        The mask is (B, L, L), or (B, L, K + L) after the K tokens in `cache` (`new_cache()`), which keeps keys and
        values of this call, too. `positions`, `deep`: as in `Sequence`.
        """
        embeddings = embeddings.to(self.dtype)
        additive = torch.zeros_like(attention, dtype=embeddings.dtype)
        additive = additive.masked_fill(~attention, torch.finfo(embeddings.dtype).min)[:, None]  # (B, 1, L, L)
        extra: dict[str, Any] = {}
        if deep:
            # Not a mask of places, whose number a graph would not know, but rows: features are zero elsewhere.
            extra["visual_pos_masks"] = torch.arange(len(embeddings), device=embeddings.device)
            extra["deepstack_visual_embeds"] = list(deep)
        hidden: Tensor = self.language_model(
            inputs_embeds=embeddings,
            attention_mask=additive,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **extra,
        ).last_hidden_state
        return hidden

    def new_cache(self) -> Any:
        """An empty cache of keys and values, for `hidden_states`."""
        from transformers import DynamicCache

        return DynamicCache()


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
RESIZES = ("antialiased", "bilinear")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_backbone(config: BackboneConfig | VlmConfig, vocabulary_size: int) -> Backbone:
    """A randomly initialized backbone (from torch's generator); `vocabulary_size` of tiny counts action tokens too."""
    if isinstance(config, BackboneConfig):
        return Backbone(BACKBONES[config.name](config, vocabulary_size), config)
    from transformers import AutoConfig, AutoModelForImageTextToText

    make: Any = AutoModelForImageTextToText.from_config
    return Backbone(make(AutoConfig.for_model(**config.architecture), dtype=DTYPES[config.dtype]), config)
