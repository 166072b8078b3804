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
}
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<end_of_utterance>", "<image>")
SPECIAL += ("<fake_token_around_image>", "<global-img>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


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
    (path / "tokenizer.json").write_text(json.dumps(tiny_tokenizer()))
    statistics = {"do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    (path / "preprocessor_config.json").write_text(json.dumps(statistics))
    return path


def tiny_tokenizer() -> dict[str, Any]:
    """The `tokenizer.json` of byte pairs, with the markers of every family."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 10,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["lift the red block", "put the blue block on the plate", "User: Assistant:"], trainer
    )
    raw: dict[str, Any] = json.loads(tokenizer.to_str())
    return raw
