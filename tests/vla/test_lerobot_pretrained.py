"""Pretrained backbones in LeRobot: begun by volar-train, and gone on with by `lerobot-train --policy.path`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.vla.checkpoint_policy import load_parts
from volar.vla.train import TrainConfig, train

from .lerobot_programs import Look, acts_the_same, lerobot_train, write_episodes
from .tiny_vlms import tiny_folder, tiny_model


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory, contract: PolicyContract) -> Path:
    return write_episodes(tmp_path_factory.mktemp("lerobot") / "episodes", contract)


def test_lerobot_goes_on_with_a_pretrained_backbone(
    settings: Callable[..., TrainConfig], episodes: Path, tmp_path: Path, look: Look
) -> None:
    """Its prompt, its tokenizer and what of it is frozen stay; the low-rank updates move."""
    model = tiny_folder(tmp_path / "model")
    begun = settings(backbone=str(model), vision="frozen", language="lora", steps=1, execute_steps=4)
    train(begun)
    ours = begun.output / "checkpoints" / "last" / "pretrained_model"
    lerobot_train(
        tmp_path,
        *(f"--policy.path={ours}", "--policy.device=cpu", "--policy.push_to_hub=false", "--dataset.repo_id=volar/test"),
        *(f"--dataset.root={episodes}", f"--output_dir={tmp_path / 'more'}", "--steps=2", "--batch_size=4"),
        *("--num_workers=0", "--env_eval_freq=0", "--wandb.enable=false"),
    )
    theirs = tmp_path / "more" / "checkpoints" / "last" / "pretrained_model"
    acts_the_same(theirs, look)
    (_, contract, words), (_, before, _) = load_parts(theirs), load_parts(ours)
    assert contract == before
    assert "Assistant:" in contract.instruction_template
    assert words.unknown_words("lift the zyx block") == ()
    a, b = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    moved = {name for name in a if not torch.equal(a[name], b[name])}
    assert a.keys() == b.keys()
    assert any("lora_A" in name for name in moved)
    assert not any("vision_model" in name or "base_layer" in name for name in moved)
    train(settings(init=theirs, steps=1, output=tmp_path / "again"))  # and volar-train with LeRobot's weights


def test_a_new_policy_of_a_pretrained_backbone_is_volar_train_s(episodes: Path) -> None:
    """A configuration alone has neither weights nor the tokenizer that its words go through."""
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

    from volar.vla.lerobot_plugin.configuration_volar import VolarConfig as LeRobotConfig
    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    data = LeRobotDatasetMetadata("volar/test", root=episodes)
    architecture = json.loads(tiny_model("smolvlm").config.to_json_string(use_diff=False))
    whole: dict[str, Any] = {"name": "smolvlm", "architecture": architecture, "image_size": 32}
    for backbone in (whole, {"name": "smolvlm"}):
        with pytest.raises(VolarError, match=r"volar-train .*backbone=DIR .*lerobot-train --policy\.path="):
            VolarPolicy(LeRobotConfig(device="cpu", backbone=backbone), data)
    for wrong, says in (({"widht": 64}, "widht"), ({"image_size": 90, "patch_size": 12}, "multiple of patch_size")):
        with pytest.raises(VolarError, match=rf"--policy\.backbone=.*{says}"):
            VolarPolicy(LeRobotConfig(device="cpu", backbone=wrong), data)
