"""Pictures show the scene: every body's colour where the labels say, in both cameras."""

import os
import subprocess
import sys

import numpy as np
import pytest

from volar.robots.errors import Unknown
from volar.sim.colors import COLORS
from volar.sim.rendering import CameraRenderer, backend
from volar.sim.scene import compiled
from volar.sim.world import StepDriver, TaskWorld

# Which channels a colour has much of.
CHANNELS = {"red": (0,), "green": (1,), "blue": (2,), "yellow": (0, 1)}


def is_color(pixels: np.ndarray, color: str) -> np.ndarray:
    """Where pixels (..., 3) are of that colour: its channels clearly above the others."""
    much = list(CHANNELS[color])
    little = [c for c in range(3) if c not in much]
    values = pixels.astype(int)
    return values[..., much].min(-1) > 1.6 * values[..., little].max(-1)


@pytest.fixture(scope="module")
def world() -> TaskWorld:
    return TaskWorld("lift", image_size=96)


def test_front_image_shows_every_block_where_points_say(world: TaskWorld) -> None:
    for seed in range(5):
        world.reset(seed)
        front = world.body.images()["front"]
        u, v = world.points()[0, 3:]
        around = front[int(v * 96) - 3 : int(v * 96) + 4, int(u * 96) - 3 : int(u * 96) + 4]
        assert is_color(around, world.goal.color).sum() > 15
        for color in COLORS:
            assert is_color(front, color).sum() > 30


def test_the_hand_is_labelled_where_the_state_has_it(world: TaskWorld) -> None:
    driver = StepDriver(world)
    driver.reset(0)
    for _ in range(5):
        driver.step(np.array([0.03, -0.02, -0.02, 0, 0, 0, 1], np.float32))
        hand = world.points()[2]
        np.testing.assert_allclose(hand[:3], driver.proprio()[:3], atol=2e-3)  # of one time step ago
        np.testing.assert_allclose(hand[3:], world.view().camera.project(hand[:3].astype(float)), atol=1e-5)
    assert ((hand[3:] > 0) & (hand[3:] < 1)).all()


def test_wrist_image_is_not_blank_and_moves_with_the_hand(world: TaskWorld) -> None:
    world.reset(0)
    first = world.body.images()["wrist"]
    assert first.std() > 10
    world.reset(1)
    assert np.abs(world.body.images()["wrist"].astype(int) - first).mean() > 2


def test_images_are_reproduced_and_owned(world: TaskWorld) -> None:
    world.reset(3)
    a, b = world.body.images(), world.body.images()
    for name in a:
        assert a[name].shape == (96, 96, 3)
        np.testing.assert_array_equal(a[name], b[name])
        assert not np.shares_memory(a[name], b[name])


def test_cameras_may_differ_in_size() -> None:
    import mujoco

    model = compiled()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = CameraRenderer(model, {"front": (64, 48), "wrist": (200, 100)})
    assert {name: image.shape for name, image in renderer.render(data).items()} == {
        "front": (48, 64, 3),
        "wrist": (100, 200, 3),
    }
    renderer.close()
    renderer.close()
    with pytest.raises(RuntimeError, match="after close"):
        renderer.render(data)


def test_unknown_camera_is_refused() -> None:
    with pytest.raises(Unknown, match="did you mean wrist"):
        CameraRenderer(compiled(), {"wrsit": (32, 32)})


def test_a_display_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are the same over `ssh -X`, where a display is named that has no OpenGL."""
    monkeypatch.setenv("DISPLAY", "localhost:10.0")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert backend() == "egl"
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    assert backend() == "osmesa"


def test_without_a_driver_the_error_names_the_packages() -> None:
    """In a process of its own, with the EGL vendor list pointing nowhere: as on a machine without Mesa."""
    code = (
        "from volar.sim.scene import compiled\n"
        "from volar.sim.rendering import CameraRenderer, RenderingUnavailable\n"
        "try:\n"
        "    CameraRenderer(compiled(), {'front': (32, 32)})\n"
        "except RenderingUnavailable as error:\n"
        "    print(error)\n"
    )
    environment = os.environ | {"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_FILENAMES": "/nonexistent.json"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "libegl1 libopengl0 libgl1-mesa-dri" in result.stdout, result.stderr
