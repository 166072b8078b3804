"""Graphs of pretrained families whose export takes a way of its own: Qwen's vision towers."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from volar.robots.contract import PolicyContract
from volar.vla.backbone import Backbone, VlmConfig
from volar.vla.configuration_volar import VolarConfig
from volar.vla.export_graph import input_names, positional, write_graph
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import VolarModel
from volar.vla.processor_volar import TorchPolicy
from volar.vla.qwen_vision import _places

from .tiny_vlms import ARCHITECTURES, tiny_model, tiny_tokenizer

IMAGE, WINDOW = 64, 32  # pixels: 4 x 4 tokens of 16, four of them a window


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_the_graph_sees_as_the_tower_does(
    name: str, contract: PolicyContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places that the tower computes from an image's size are constants in a graph: windows, positions, sequences."""
    raw = ARCHITECTURES[name]
    windows = {"window_size": WINDOW} if "window_size" in raw["vision_config"] else {}
    monkeypatch.setitem(ARCHITECTURES, name, raw | {"vision_config": raw["vision_config"] | windows})
    whole = tiny_model(name)
    vlm = VlmConfig(name, {}, IMAGE, head=(11, 12), image_start=(13,), image_end=(14, 15), resize="antialiased")
    backbone = Backbone(whole, vlm)
    config = VolarConfig(backbone=vlm, camera_tokens=(4, 2), head_width=32, text_length=8)
    torch.manual_seed(0)
    model = VolarModel(config, contract, backbone).eval()
    policy = TorchPolicy(model, contract, InstructionTokenizer(tiny_tokenizer(name), 8))
    module, _ = positional(policy)
    write_graph(policy, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    if windows:
        order = _places(8, 2, 8, WINDOW, 0)["window_index"]
        assert (order != np.arange(len(order))).any()
    rng, decided = np.random.default_rng(0), 0
    for _ in range(5):
        images = [rng.integers(0, 255, (1, c.height, c.width, 3), np.uint8) for c in contract.cameras]
        state = rng.uniform(-0.3, 0.3, (1, len(contract.state_names))).astype(np.float32)
        ids = np.array([[20, 21, 22, 23, 24, -1, -1, -1]])
        inputs = [*images, state, ids]
        with torch.inference_mode():
            actions, points = (x.numpy() for x in module(*map(torch.from_numpy, inputs)))
            tensors = dict(zip([c.name for c in contract.cameras], map(torch.from_numpy, images), strict=True))
            margin = float(policy.graph.answer(tensors, torch.from_numpy(state), torch.from_numpy(ids))[2])
        found = session.run(["actions", "points"], dict(zip(input_names(policy), inputs, strict=True)))
        np.testing.assert_allclose(found[1], points, atol=1e-5)
        if margin > 1e-3:
            np.testing.assert_allclose(found[0], actions, atol=1e-5)
            decided += 1
    assert decided
