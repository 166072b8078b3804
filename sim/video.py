"""Short films of a scene, encoded for a browser (H.264 in MP4, through the FFmpeg that PyAV carries)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volar.sim.rendering import CameraRenderer, Image

if TYPE_CHECKING:
    import mujoco

SIZE = 256  # [pixels], a multiple of the encoder's 16


class Film:
    """Frames of some cameras side by side; its own renderer, so that the policy's images stay as they are."""

    def __init__(self, model: "mujoco.MjModel", cameras: Sequence[str] = ("front", "wrist"), size: int = SIZE) -> None:
        self._renderer = CameraRenderer(model, dict.fromkeys(cameras, (size, size)))
        self.frames: list[Image] = []

    def shoot(self, data: "mujoco.MjData") -> None:
        """Adds the scene as it is now."""
        self.frames.append(np.hstack(list(self._renderer.render(data).values())))

    def close(self) -> None:
        """Frees the renderer."""
        self._renderer.close()


def write_mp4(path: Path, frames: Sequence[Image], fps: float) -> None:
    """uint8 (H, W, 3) RGB frames, H and W multiples of 16, to `path`."""
    import imageio.v3 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(path, np.stack(frames), plugin="pyav", codec="libx264", fps=fps, in_pixel_format="rgb24")
