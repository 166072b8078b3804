"""What differs between families of vision-language models: how pixels go in, and how a prompt is laid out.

One entry of `FAMILIES` for each `model_type` of `transformers`; everything else is shared (`backbone.py`). A family
whose images need no more than its own `get_image_features` is one line.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from volar.vla import qwen_vision
from volar.vla.qwen_vision import Features


@dataclass(frozen=True)
class Family:
    """How a family sees and reads; names of modules are attributes of its `...Model`.

    `encode(model, pixels (N, 3, S, S))`: image features. `side(config, S)`: tokens along one side of an image; raises
    `ValueError` for an S that the vision tower cannot take. `vision`, `connector`, `language`: what trains separately.
    `bidirectional`: the prefix attends to all of itself, as it was pretrained. `first_position`: of the first token.
    `mrope`: positions of image tokens are rows and columns (Qwen2-VL, Wang et al., 2024, section 2.1).
    `prompts`: the text before all images and after them, as models were instructed with; of several the first whose
    markers the vocabulary has. Each says its own start of a sequence (<bos>): what `tokenizer.json` would add is
    taken off when a processor saves it. `image_start`, `image_end`: around each image, where the vocabulary has their
    first marker; of what follows it, models spell what is no token. `words_first` puts the text before the images
    instead, where nothing was pretrained.
    `towers`: the vision towers, by `model_type`, of which `encode` is right; any where there are none.
    `prepare(config, S)`: computes what cannot be computed while a graph is exported.
    """

    encode: Callable[[Any, Tensor], Features]
    side: Callable[[Any, int], int]
    vision: str = "vision_tower"
    connector: tuple[str, ...] = ("multi_modal_projector",)
    language: str = "language_model"
    bidirectional: bool = False
    first_position: int = 0
    mrope: bool = False
    prompts: tuple[tuple[str, str], ...] = ()
    image_start: str = ""
    image_end: str = ""
    words_first: bool = False
    towers: tuple[str, ...] = ()
    prepare: Callable[[Any, int], None] | None = None


def _features(model: Any, pixels: Tensor) -> Features:
    found = model.get_image_features(pixel_values=pixels).pooler_output
    return [found if isinstance(found, Tensor) else torch.stack(list(found))]


def _idefics(model: Any, pixels: Tensor) -> Features:
    # Not `get_image_features`: it drops images that are all zero, and so cannot be exported.
    return [model.connector(model.vision_model(pixels).last_hidden_state)]


def _fixed_side(config: Any, size: int) -> int:
    vision = config.vision_config
    if size != vision.image_size:
        raise ValueError(f"image_size {size}: this vision tower takes {vision.image_size} only")
    return int(vision.image_size // vision.patch_size)


def _multiple_side(size: int, unit: int) -> int:
    if size % unit or size <= 0:
        raise ValueError(f"image_size {size} is not a multiple of {unit}, the side of an image token in pixels")
    return size // unit


def _idefics_side(config: Any, size: int) -> int:
    largest, patch = int(config.vision_config.image_size), int(config.vision_config.patch_size)
    if size > largest:
        raise ValueError(f"image_size {size} is above {largest}, what this vision tower has positions for")
    # A rest of less than a patch is not seen: SmolVLM's first version sees 27 patches of 14 pixels in 384.
    return _multiple_side(size // patch * patch, patch * config.scale_factor)


def _qwen_side(config: Any, size: int) -> int:
    return _multiple_side(size, config.vision_config.patch_size * config.vision_config.spatial_merge_size)


def _internvl_side(config: Any, size: int) -> int:
    patch = int(config.vision_config.patch_size[0])
    return _multiple_side(size, round(patch / config.downsample_ratio))


# Prompts: the chat templates that the models' authors publish beside them, for one turn of the user.
_CHATML = "{instruction}<|im_end|>\n<|im_start|>assistant\n"
_IDEFICS = Family(
    _idefics,
    _idefics_side,
    vision="vision_model",
    connector=("connector",),
    language="text_model",
    prompts=(  # SmolVLM's, and Idefics3's
        ("<|im_start|>User:", "{instruction}<end_of_utterance>\nAssistant:"),
        ("<|begin_of_text|>User:", "{instruction}<end_of_utterance>\nAssistant:"),
    ),
    # Not every vocabulary has <global-img> as a token, Idefics3's not: transformers' pull request 32473.
    image_start="<fake_token_around_image><global-img>",
    image_end="<fake_token_around_image>",
)
_QWEN3 = Family(
    qwen_vision.encode,
    _qwen_side,
    prepare=qwen_vision.prepare,
    vision="visual",
    connector=("visual.merger", "visual.deepstack_merger_list"),
    mrope=True,
    prompts=(("<|im_start|>user\n", _CHATML),),
    image_start="<|vision_start|>",
    image_end="<|vision_end|>",
)
_QWEN2_HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
_QWEN2 = replace(_QWEN3, connector=("visual.merger",), prompts=((_QWEN2_HEAD, _CHATML),))
_PALIGEMMA = Family(
    _features, _fixed_side, bidirectional=True, first_position=1, prompts=(("", "<bos>{instruction}\n"),)
)
_LLAVA = Family(
    _features,
    _fixed_side,
    prompts=(  # LLaVA-Interleave's (Qwen), that on Llama 3, and LLaVA-1.5's (Vicuna)
        ("<|im_start|>user ", "\n{instruction}<|im_end|><|im_start|>assistant"),
        (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
            "\n{instruction}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("<s>USER: ", "\n{instruction} ASSISTANT:"),
    ),
    towers=("clip_vision_model", "siglip_vision_model"),
)
_INTERNVL = Family(
    _features,
    _internvl_side,
    prompts=(("<|im_start|>user\n", _CHATML),),
    image_start="<img>",
    image_end="</img>\n",
    towers=("internvl_vision",),
)

FAMILIES: dict[str, Family] = {
    "tiny": Family(_features, _fixed_side, bidirectional=True, words_first=True),
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    "paligemma": _PALIGEMMA,
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3_vl": _QWEN3,
    "llava": _LLAVA,
    "internvl": _INTERNVL,
}
