"""Vision-language models of every family with tiny random weights, and a folder as `save_pretrained` leaves one."""

import json
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 400
IMAGE_ID = 5  # the placeholder of an image in `transformers`' own input
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "vision_use_head": False,
}
_IDEFICS = {
    "text_config": _TEXT | {"model_type": "llama"},
    "vision_config": {key: value for key, value in _SIGLIP.items() if key not in ("model_type", "vision_use_head")},
    "scale_factor": 2,
    "image_token_id": IMAGE_ID,
    "pad_token_id": 0,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_QWEN = {"image_token_id": IMAGE_ID, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
_QWEN_TEXT = _TEXT | {"rope_parameters": _ROPE}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    "paligemma": {
        "text_config": _TEXT | {"model_type": "gemma"},
        "vision_config": _SIGLIP | {"projection_dim": 32},
        "projection_dim": 32,
        "hidden_size": 32,
        "image_token_id": IMAGE_ID,
    },
    "paligemma2": {
        "model_type": "paligemma",
        "text_config": _TEXT | {"model_type": "gemma2", "query_pre_attn_scalar": 8},
        "vision_config": _SIGLIP | {"projection_dim": 32},
        "projection_dim": 32,
        "hidden_size": 32,
        "image_token_id": IMAGE_ID,
    },
    "qwen2_vl": _QWEN
    | {
        "text_config": _QWEN_TEXT,
        "vision_config": {
            "depth": 2,
            "embed_dim": 24,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
        },
    },
    "qwen2_5_vl": _QWEN
    | {
        "text_config": _QWEN_TEXT,
        "vision_config": {
            "depth": 2,
            "hidden_size": 24,
            "out_hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    },
    "qwen3_vl": _QWEN
    | {
        "text_config": _QWEN_TEXT,
        "vision_config": {
            "depth": 3,
            "hidden_size": 24,
            "out_hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
    },
    "llava": {
        "text_config": _TEXT | {"model_type": "llama"},
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        "image_token_index": IMAGE_ID,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "llava_interleave": {
        "model_type": "llava",
        "text_config": _TEXT | {"model_type": "qwen2"},
        "vision_config": _SIGLIP,
        "image_token_index": IMAGE_ID,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "internvl": {
        "text_config": _TEXT | {"model_type": "qwen2"},
        "vision_config": {
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [32, 32],
            "patch_size": [8, 8],
        },
        "image_token_id": IMAGE_ID,
        "image_seq_length": 4,
    },
}
# Of each family's tokenizer: the tokens it begins with, and those added after all words.
_CHAT = ("<|im_start|>", "<|im_end|>")
_FAKE = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
_QWEN_MARKERS = ("<|endoftext|>", *_CHAT, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_GEMMA_MARKERS = (("<pad>", "<eos>", "<bos>", "<unk>"), ("<image>",))
MARKERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "smolvlm": (("<|endoftext|>", *_CHAT), ("<global-img>", *_FAKE)),
    "idefics3": ((), ("<|begin_of_text|>", "<|end_of_text|>", *_FAKE)),  # <global-img> is no token
    "paligemma": _GEMMA_MARKERS,
    "paligemma2": _GEMMA_MARKERS,
    "qwen2_vl": ((), _QWEN_MARKERS),
    "qwen2_5_vl": ((), _QWEN_MARKERS),
    "qwen3_vl": ((), _QWEN_MARKERS),
    "llava": (("<unk>", "<s>", "</s>"), ("<image>", "<pad>")),
    "llava_interleave": ((), ("<|endoftext|>", *_CHAT, "<image>")),
    "internvl": ((), ("<|endoftext|>", *_CHAT, "<img>", "</img>", "<IMG_CONTEXT>", "<video>")),
}
_STARTS = {"idefics3": "<|begin_of_text|>", "llava": "<s>"}  # what the tokenizer itself puts before a text


def tiny_model(name: str, seed: int = 0) -> Any:
    """The whole model, in float32, with weights that make a difference."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    raw = ARCHITECTURES[name]
    config = AutoConfig.for_model(**({"model_type": name} | raw))
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model.tie_weights()
    return model.eval()


def tiny_folder(path: Path, name: str = "smolvlm") -> Path:
    """What `save_pretrained` of model, tokenizer and image processor leaves: enough to train from."""
    tiny_model(name).save_pretrained(path)
    (path / "tokenizer.json").write_text(json.dumps(tiny_tokenizer(name)))
    statistics = {"do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    (path / "preprocessor_config.json").write_text(json.dumps(statistics))
    return path


def tiny_tokenizer(name: str = "smolvlm") -> dict[str, Any]:
    """The `tokenizer.json` of byte pairs as a family has it: words, then markers; fewer ids than the model has rows.

    Gemma's and Llama's spell spaces in words and begin with the tokens of a sequence; PaliGemma's is as its processor
    saves it, without anything that adds <bos>.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    first, last = MARKERS[name]
    pieces = first[0] in ("<pad>", "<unk>") if first else False  # of SentencePiece, else of bytes
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True) if pieces else models.BPE())
    if name.startswith("paligemma"):
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif pieces:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    size = VOCABULARY - 20 - len(last)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*first, *(f"<0x{i:02X}>" for i in range(256))] if pieces else list(first),
        initial_alphabet=[] if pieces else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["lift the red block", "put the blue block on the plate", "User: Assistant: USER: ASSISTANT:"]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(last))
    if name in _STARTS:
        start = _STARTS[name]
        ids = [(start, tokenizer.token_to_id(start))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=ids)
    raw: dict[str, Any] = json.loads(tokenizer.to_str())
    if pieces:  # bytes are words to the model, and no markers
        raw["added_tokens"] = [token for token in raw["added_tokens"] if not token["content"].startswith("<0x")]
    return raw
