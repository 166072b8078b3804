"""OpenVLA's size, and two small rules of its input: the empty token before the action, and the crop of the image."""

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from torch.nn import functional as F
from transformers import LlamaConfig

from volar.vla.openvla.model import EMPTY, OpenVLAModel, with_empty_token
from volar.vla.openvla.policy import center_crop
from volar.vla.openvla.vision_tower import TowerShape

PUBLISHED_PARAMETERS, PUBLISHED_TENSORS = 7_541_237_184, 982  # of openvla/openvla-7b


def test_the_full_network_has_every_parameter_of_the_published_one() -> None:
    """Nothing is read: only its shape is built, and what is left out is added up."""
    dino = TowerShape(1024, 24, 16, 4096, 14, 16, class_token=True, registers=4, layer_scale=True)
    siglip = TowerShape(1152, 27, 16, 4304, 14, 16, class_token=False, registers=0, layer_scale=False)
    with init_empty_weights():
        model = OpenVLAModel((dino, siglip), LlamaConfig(vocab_size=32064, pad_token_id=32000))
    left_out = [value for tower in model.vision_backbone.values() for value in tower.blocks[-1].parameters()]
    w, h = siglip.width, siglip.hidden
    pooling = [w, w * w, w, 2 * w * w, 2 * w, w * w, w, w, w, h * w, h, w * h, w]  # latent, q, kv, proj, norm, fc1, fc2
    norms = [1024, 1024, w, w]
    sizes = [value.numel() for value in (*model.parameters(), *left_out)] + pooling + norms
    assert (sum(sizes), len(sizes)) == (PUBLISHED_PARAMETERS, PUBLISHED_TENSORS)


def test_the_empty_token_is_there_once() -> None:
    ids = torch.tensor([[1, 5]])
    assert with_empty_token(ids).tolist() == [[1, 5, EMPTY]]
    assert with_empty_token(with_empty_token(ids)).tolist() == [[1, 5, EMPTY]]


@pytest.mark.parametrize("area", [0.9, 0.5, 1.0])
def test_the_centre_crop_samples_as_torch_does(area: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (57, 57, 3), np.uint8)
    side = area**0.5
    grid = F.affine_grid(torch.tensor([[[side, 0, 0], [0, side, 0]]]).double(), [1, 3, 57, 57], align_corners=True)
    x = torch.tensor(image).permute(2, 0, 1)[None].double() / 255
    wanted = F.grid_sample(x, grid, mode="bilinear", align_corners=True)[0].permute(1, 2, 0).numpy()
    found = center_crop(image, area)
    assert (found == np.trunc(wanted * 255.5)).mean() > 0.999
    if area == 1.0:
        np.testing.assert_array_equal(found, image)
