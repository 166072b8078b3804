"""Sentences about generated scenes are true of them."""

import numpy as np
import pytest

from volar.sim.colors import COLORS
from volar.sim.grounding import PLATE, Scenes, grounding_samples, render_scenes
from volar.sim.scene import BLOCK_ON_TABLE_Z_M


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return render_scenes(np.random.default_rng(0), 120, image_size=32)


def test_shapes_and_reproduction(scenes: Scenes) -> None:
    assert scenes.images["front"].shape == scenes.images["wrist"].shape == (120, 32, 32, 3)
    assert scenes.state.shape == (120, 10)
    assert scenes.objects.shape == (120, PLATE + 1, 5)
    np.testing.assert_allclose(scenes.hand[:, :3], scenes.state[:, :3], atol=1e-5)
    again = render_scenes(np.random.default_rng(0), 5, image_size=32)
    np.testing.assert_array_equal(again.images["wrist"], scenes.images["wrist"][:5])
    np.testing.assert_array_equal(again.objects, scenes.objects[:5])


def test_scenes_are_varied_and_physical(scenes: Scenes) -> None:
    """Held blocks are at the fingers, the others lie; all are seen or nearly so by the front camera."""
    held = scenes.held >= 0
    assert 0.15 < held.mean() < 0.5
    for i in np.flatnonzero(held):
        assert np.linalg.norm(scenes.objects[i, scenes.held[i], :2] - scenes.state[i, :2]) < 0.02
    heights = scenes.objects[~held, :PLATE, 2]
    assert heights.min() >= BLOCK_ON_TABLE_Z_M - 1e-6
    assert heights.max() < BLOCK_ON_TABLE_Z_M + 0.02
    assert np.abs(scenes.objects[..., 3:] - 0.5).max() < 0.55
    assert len(np.unique(scenes.state[:, 9].round(3))) > 10  # gripper widths


def test_scenes_vary_as_they_are_told(scenes: Scenes) -> None:
    varied = render_scenes(np.random.default_rng(0), 60, image_size=32, randomization="full")
    again = render_scenes(np.random.default_rng(0), 5, image_size=32, randomization="full")
    np.testing.assert_array_equal(again.images["front"], varied.images["front"][:5])
    np.testing.assert_array_equal(again.objects, varied.objects[:5])
    for i, view in enumerate(varied.views):  # the hand is where the state has it, but for what the encoders say
        assert np.linalg.norm(varied.hand[i, :3] - varied.state[i, :3]) < 0.01
        np.testing.assert_allclose(view.label(view.places(varied.hand[i : i + 1])), varied.hand[i : i + 1], atol=1e-5)
    cameras = {tuple(view.camera.position.round(4)) for view in varied.views}
    assert len(cameras) > 30 > len({tuple(view.camera.position) for view in scenes.views}) == 1
    assert varied.images["front"].mean(axis=(1, 2, 3)).std() > 3 * scenes.images["front"].mean(axis=(1, 2, 3)).std()
    rng = np.random.default_rng(1)
    for i in range(len(varied)):  # a colour may vary, not what the label says: the scene's own place, by that camera
        for text, points in grounding_samples(varied, i, rng, 4):
            view = varied.views[i]
            if text.endswith(("the plate", "onto the plate")) and np.isfinite(points[1]).all():
                np.testing.assert_allclose(points[1, :2], varied.objects[i, PLATE, :2], atol=1e-6)
            np.testing.assert_allclose(view.label(view.places(points[:1])), points[:1], atol=1e-5)


def test_sentences_point_at_what_they_name(scenes: Scenes) -> None:
    rng = np.random.default_rng(1)
    named = 0
    for i in range(len(scenes)):
        for text, points in grounding_samples(scenes, i, rng, 4):
            words = text.split()
            colors = [color for color in COLORS if color in words]
            assert points.shape == (3, 5)
            assert np.isfinite(points[0]).all()
            assert (points[0] == scenes.objects[i]).all(axis=1).any()
            if len(colors) == 1 and " of the " not in text:
                np.testing.assert_array_equal(points[0], scenes.objects[i, COLORS.index(colors[0])])
                named += 1
            if text.endswith(("the plate", "onto the plate")) and colors:
                np.testing.assert_allclose(points[1, :2], scenes.objects[i, PLATE, :2], atol=1e-6)
    assert named > 200


def test_relations_are_true(scenes: Scenes) -> None:
    rng = np.random.default_rng(2)
    found = set()
    for i in range(len(scenes)):
        blocks = scenes.objects[i, :PLATE]
        for text, points in grounding_samples(scenes, i, rng, 6):
            if "leftmost" in text:
                assert points[0, 1] == blocks[:, 1].max()
                found.add("leftmost")
            if "closest to the robot" in text:
                assert points[0, 0] == blocks[:, 0].min()
                found.add("closest")
            if " left of the " in text:
                color = next(color for color in COLORS if color in text.split(" of the ")[1])
                assert points[0, 1] > blocks[COLORS.index(color), 1]
                found.add("left of")
    assert found == {"leftmost", "closest", "left of"}
