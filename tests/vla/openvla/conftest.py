"""A tiny OpenVLA checkpoint with random weights, in the layout of the published ones, written file by file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

IMAGE, PATCH, TEXT_WIDTH = 56, 14, 32
VOCABULARY, PADDED = 32000, 32064
DINO, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"
NAMES = ("q01", "q99", "mean", "std", "min", "max")
FR3_LIKE = {
    "q01": [-0.02, -0.03, -0.02, -0.1, -0.1, -0.2, 0.0],
    "q99": [0.03, 0.02, 0.04, 0.1, 0.2, 0.1, 1.0],
    "mean": [0.0, 0.0, 0.001, 0.0, 0.0, 0.0, 0.6],
    "std": [0.01, 0.01, 0.01, 0.05, 0.05, 0.05, 0.45],
    "min": [-0.04, -0.05, -0.05, -0.2, -0.2, -0.25, 0.0],
    "max": [0.05, 0.05, 0.05, 0.2, 0.25, 0.2, 1.0],
}
MASK = [True] * 6 + [False]
NORM_STATS = {
    "bridge_orig": {"action": {**FR3_LIKE, "mask": MASK}, "num_transitions": 2135463, "num_trajectories": 60064},
    "mine": {"action": {k: [x / 2 for x in v] for k, v in FR3_LIKE.items()} | {"mask": MASK}, "num_transitions": 5000},
}
CONFIG = {
    "architectures": ["OpenVLAForActionPrediction"],
    "auto_map": {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"},
    "model_type": "openvla",
    "arch_specifier": "no-align+fused-gelu-mlp",
    "image_resize_strategy": "resize-naive",
    "image_sizes": [IMAGE, IMAGE],
    "llm_backbone_id": "llama2-7b-pure",
    "n_action_bins": 256,
    "norm_stats": NORM_STATS,
    "pad_to_multiple_of": PADDED - VOCABULARY,
    "pad_token_id": 32000,
    "text_config": {
        "model_type": "llama",
        "torch_dtype": "float32",
        "pad_token_id": 32000,
        "vocab_size": PADDED,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    },
    "timm_model_ids": [DINO, SIGLIP],
    "timm_override_act_layers": [None, None],
    "use_fused_vision_backbone": True,
    "vision_backbone_id": "dinosiglip-vit-so-224px",
}
PREPROCESSOR = {
    "input_sizes": [[3, IMAGE, IMAGE]] * 2,
    "interpolations": ["bicubic", "bicubic"],
    "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
    "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
    "tvf_normalize_params": [  # rounded to bfloat16, as in the published checkpoints
        {"mean": [0.484375, 0.455078125, 0.40625], "std": [0.228515625, 0.2236328125, 0.224609375], "inplace": False},
        {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "inplace": False},
    ],
    "use_fused_vision_backbone": True,
}


def tower(
    draw: Callable[..., torch.Tensor], width: int, hidden: int, depth: int, dino: bool
) -> dict[str, torch.Tensor]:
    """timm's names. Positions for patches only; the last block, norm and pooling are there, and of no use."""
    found = {
        "pos_embed": draw(1, (IMAGE // PATCH) ** 2, width),
        "patch_embed.proj.weight": draw(width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": draw(width),
        "norm.weight": draw(width),
        "norm.bias": draw(width),
    }
    found |= {"cls_token": draw(1, 1, width), "reg_token": draw(1, 4, width)} if dino else {}
    found |= {} if dino else {"attn_pool.latent": draw(1, 1, width), "attn_pool.q.weight": draw(width, width)}
    for i in range(depth):
        for name, out, into in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", hidden, width),
            ("mlp.fc2", width, hidden),
        ):
            found[f"blocks.{i}.{name}.weight"], found[f"blocks.{i}.{name}.bias"] = draw(out, into), draw(out)
        for name in ("norm1", "norm2"):
            found[f"blocks.{i}.{name}.weight"], found[f"blocks.{i}.{name}.bias"] = 1 + draw(width), draw(width)
        if dino:
            found |= {f"blocks.{i}.{name}.scale_factor": draw(width) for name in ("ls1", "ls2")}
    return found


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint. Only action tokens have an output, so that they are what is predicted."""
    from transformers import LlamaConfig, LlamaForCausalLM

    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * 0.3

    found = {f"vision_backbone.featurizer.{k}": v for k, v in tower(draw, 32, 128, 3, True).items()}
    found |= {f"vision_backbone.fused_featurizer.{k}": v for k, v in tower(draw, 48, 100, 4, False).items()}
    for name, out, into in (("fc1", 320, 80), ("fc2", TEXT_WIDTH, 320), ("fc3", TEXT_WIDTH, TEXT_WIDTH)):
        found[f"projector.{name}.weight"], found[f"projector.{name}.bias"] = draw(out, into), draw(out)
    text = {k: v for k, v in CONFIG["text_config"].items() if k not in ("model_type", "torch_dtype")}  # type: ignore[attr-defined]
    for name, value in LlamaForCausalLM(LlamaConfig(**text)).state_dict().items():
        found[f"language_model.{name}"] = 1 + draw(*value.shape) if "norm" in name else draw(*value.shape)
    head = found["language_model.lm_head.weight"]
    head[: VOCABULARY - 256] = 0
    head[VOCABULARY:] = 0
    return found


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def write_tokenizer(path: Path) -> None:
    """Bytes and a few merges, ids below the action tokens; a text begins with <s> (1), as with Llama's."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    special = ["<unk>", "<s>", "</s>"]
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    texts = ["In: What action should the robot take to lift the red block?\nOut:"] * 3
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(path))


@pytest.fixture(scope="session")
def tensors() -> dict[str, torch.Tensor]:
    return weights()


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.Tensor]) -> Path:
    """The checkpoint in two shards; not to be changed."""
    folder = tmp_path_factory.mktemp("openvla") / "checkpoint"
    folder.mkdir()
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    write_tokenizer(folder / "tokenizer.json")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:60], "model-00002-of-00002.safetensors": names[60:]}
    for file, part in shards.items():
        save_file({name: tensors[name].contiguous() for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    write_json(folder / "model.safetensors.index.json", index)
    return folder


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    return Path(shutil.copytree(pristine, tmp_path / "openvla"))


@pytest.fixture
def changed(checkpoint: Path) -> Callable[..., Path]:
    """`changed("config.json", key=value, ...)`: the checkpoint with other settings; None takes one away."""

    def change(name: str, **settings: Any) -> Path:
        raw = {**json.loads((checkpoint / name).read_text()), **settings}
        write_json(checkpoint / name, {key: value for key, value in raw.items() if value is not None})
        return checkpoint

    return change
