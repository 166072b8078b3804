"""Low-rank updates in coarse weights: what they are worth once they are merged."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from volar.robots.contract import PolicyContract
from volar.robots.errors import UsageError
from volar.vla.adapters import merge
from volar.vla.checkpoint_policy import load_parts
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.processor_volar import save_policy
from volar.vla.train import TrainConfig, train

from .tiny_networks import STEPS, inputs, network
from .tiny_vlms import tiny_folder, tiny_tokenizer

Settings = Callable[..., TrainConfig]
LAST = Path("run/checkpoints/last/pretrained_model")


def test_merged_in_bfloat16_is_the_same_network(contract: PolicyContract, tmp_path: Path) -> None:
    """Also where an update is a thousandth of a weight, which bfloat16 does not tell apart; and saved as it is."""
    short = replace(contract, chunk_length=STEPS, execute_steps=1)
    low_rank: dict[str, Any] = dict.fromkeys(("vision", "connector", "language"), "lora")
    made, words = network(short, "parallel", "smolvlm", torch.bfloat16, text_length=48, **low_rank), tiny_tokenizer()
    made.config = replace(made.config, backbone=replace(made.config.backbone, dtype="bfloat16"))  # type: ignore[type-var]
    save_policy(tmp_path / "coarse", made, short, InstructionTokenizer(words, 48))
    model, *_ = load_parts(tmp_path / "coarse")
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=1e-3, generator=torch.Generator().manual_seed(0))
        apart = deepcopy(model).float()(*inputs(model))
        merged = merge(model)
        found = merged(*inputs(model))
        save_policy(tmp_path / "merged", merged, short, InstructionTokenizer(words, 48))
        again = load_parts(tmp_path / "merged")[0](*inputs(model))
    assert merged.config.backbone.dtype == "float32"  # type: ignore[union-attr]
    torch.testing.assert_close(found.action_logits, apart.action_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.points_uv, apart.points_uv, atol=1e-5, rtol=1e-5)
    assert torch.equal(again.action_logits, found.action_logits)


def test_training_goes_on_with_all_that_was_learned_in_coarse_weights(settings: Settings, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    coarse: dict[str, Any] = {"vision": "frozen", "connector": "frozen", "steps": 1, "chunk_length": 2}
    of = coarse | {"backbone": str(folder), "backbone_dtype": "bfloat16"}
    train(settings(language="lora", output=tmp_path / "updated", **of))
    train(settings(language="frozen", output=tmp_path / "frozen", **of))
    train(settings(init=tmp_path / "updated", learning_rate=1e-9, **coarse))
    before, after = (load_parts(tmp_path / run / LAST.relative_to("run"))[0] for run in ("updated", "run"))
    assert (before.backbone.dtype, after.backbone.dtype) == (torch.bfloat16, torch.float32)
    merged, plain = merge(before).backbone.state_dict(), merge(after).backbone.state_dict()
    assert all(torch.allclose(merged[name], plain[name], atol=1e-6) for name in merged)
    train(settings(init=tmp_path / "updated", overwrite=True, **coarse | {"language": "full"}))  # in float32
    with pytest.raises(UsageError, match=r"frozen has .*bfloat16, which loses the small steps of language=full"):
        train(settings(init=tmp_path / "frozen", overwrite=True, **coarse | {"language": "full"}))
