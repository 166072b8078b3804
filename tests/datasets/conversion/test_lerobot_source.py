"""volar-convert source=lerobot: labels stay with their camera."""

from pathlib import Path

import numpy as np
import pytest

from volar.datasets.convert import ConvertConfig, convert
from volar.datasets.lerobot_format import read_episodes


@pytest.mark.parametrize("cameras", [(), ("front",), ("wrist", "front"), ("wrist",)])
def test_places_in_an_image_stay_with_its_camera(dataset: Path, tmp_path: Path, cameras: tuple[str, ...]) -> None:
    config = ConvertConfig("lerobot", dataset, tmp_path / "out", cameras=cameras, episodes=2)
    convert(config)
    for before, after in zip(read_episodes(dataset), read_episodes(config.output), strict=False):
        np.testing.assert_array_equal(after.points[..., :3], before.points[..., :3])
        if cameras[:1] == ("wrist",):
            assert np.isnan(after.points[..., 3:]).all()
        else:
            np.testing.assert_array_equal(after.points[..., 3:], before.points[..., 3:])
