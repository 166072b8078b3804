"""Images of another size than the network's: shrunk without aliasing, in the artifact as in training."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from volar.robots.contract import PolicyContract
from volar.robots.errors import Unknown
from volar.vla.backbone import BackboneConfig
from volar.vla.checkpoint_policy import load_parts
from volar.vla.configuration_volar import VolarConfig
from volar.vla.export_graph import positional, quantize, write_graph
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import VolarModel, pixels_from_images, resizing
from volar.vla.processor_volar import TorchPolicy, save_policy
from volar.vla.train import TrainConfig
from volar.vla.training_run import TrainingRun

Settings = Callable[..., TrainConfig]
SMALL = {"patch_size": 4, "vision_layers": 1, "layers": 1, "width": 16, "vision_width": 16}


def backbone(size: int, resize: str = "antialiased") -> BackboneConfig:
    return BackboneConfig(image_size=size, resize=resize, **SMALL)  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width", "size"), [(480, 640, 224), (48, 64, 28), (20, 30, 24), (10, 7, 16)])
def test_it_is_torchs_own_antialiased_resize(height: int, width: int, size: int) -> None:
    """Shrunk, magnified, and one of each."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, height, width, 3), np.uint8))
    found = pixels_from_images({"front": image}, replace(backbone(32), image_size=size, patch_size=1))[:, 0]
    own = image.permute(0, 3, 1, 2).float() / 127.5 - 1
    own = nn.functional.interpolate(own, (size, size), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(found, own, atol=2e-5, rtol=0)
    np.testing.assert_allclose(resizing(height, size).sum(1), 1, atol=1e-6)


def test_fine_stripes_become_grey() -> None:
    """Every fourth column is white: bilinear points hit all of the white columns, or none."""
    image = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    image[:, :, ::4] = 255
    fine, coarse = (pixels_from_images({"a": image}, backbone(16, how))[0, 0] for how in ("antialiased", "bilinear"))
    assert (fine[:, 1:-1, 1:-1] + 0.5).abs().max() < 0.1  # a quarter of the light
    assert (coarse + 0.5).abs().max() > 0.4
    with torch.autocast("cpu", torch.bfloat16):
        same = pixels_from_images({"a": image}, backbone(16))[0, 0]
    torch.testing.assert_close(same, fine, atol=0, rtol=0)


@pytest.mark.parametrize("resize", ["antialiased", "bilinear"])
def test_images_of_the_networks_size_stay_as_they_are(resize: str) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), np.uint8))
    found = pixels_from_images({"a": image}, backbone(32, resize))[:, 0]
    torch.testing.assert_close(found, image.permute(0, 3, 1, 2).float() / 127.5 - 1, atol=0, rtol=0)


def test_an_exported_graph_resizes_the_same(contract: PolicyContract, tmp_path: Path) -> None:
    """To rounding, and in floating point in an int8 artifact, too."""
    cameras = tuple(replace(camera, width=64, height=48) for camera in contract.cameras)
    contract = replace(contract, cameras=cameras)
    torch.manual_seed(0)
    model = VolarModel(VolarConfig(backbone(16), camera_tokens=(4, 2), head_width=32), contract).eval()
    policy = TorchPolicy(model, contract, InstructionTokenizer.load())
    module, example = positional(policy)
    write_graph(policy, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for _ in range(3):
        seen = [rng.integers(0, 255, (1, 48, 64, 3), np.uint8) for _ in cameras]
        inputs = [*map(torch.from_numpy, seen), *example[-2:]]
        with torch.inference_mode():
            _, points = module(*inputs)
        names = [value.name for value in session.get_inputs()]
        found = session.run(["points"], dict(zip(names, (x.numpy() for x in inputs), strict=True)))[0]
        np.testing.assert_allclose(found, points.numpy(), atol=1e-5)

    quantize(tmp_path / "policy.onnx")
    kept = onnx.load(tmp_path / "policy.onnx").graph.initializer
    floating = {tuple(each.dims) for each in kept if each.data_type == onnx.TensorProto.FLOAT}
    assert {(16, 48), (16, 64)} <= floating


def test_policies_from_before_see_as_they_did(contract: PolicyContract, tmp_path: Path) -> None:
    """Their config.json does not say how images are resized; a new network's does."""
    torch.manual_seed(0)
    model = VolarModel(VolarConfig(backbone(16, "bilinear"), camera_tokens=(4, 2), head_width=32), contract)
    save_policy(tmp_path, model, contract, InstructionTokenizer.load())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["backbone"].pop("resize") == "bilinear"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_parts(tmp_path)[0].config == model.config
    with pytest.raises(Unknown, match=r"resize.*nearest.*antialiased"):
        backbone(16, "nearest")


def test_a_new_network_shrinks_without_aliasing(settings: Settings) -> None:
    run = TrainingRun.start(settings(width=16, layers=1, image_size=16))
    assert run.bare.config.backbone.resize == "antialiased"
    assert run.contract.preprocessing["network.image"] == "16x16 antialiased"
