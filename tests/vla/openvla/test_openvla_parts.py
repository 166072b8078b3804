"""Two small rules of OpenVLA's input: the empty token before the action, and the crop of the image."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from volar.vla.openvla.model import EMPTY, with_empty_token
from volar.vla.openvla.policy import center_crop


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
