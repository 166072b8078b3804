"""Camera images of a MuJoCo scene, by whatever OpenGL the machine has; in software about 1 ms a frame."""

import logging
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import Unknown, VolarError
from volar.robots.graphics import FIX, unused_gpu

if TYPE_CHECKING:
    import mujoco

Image = NDArray[np.uint8]

_log = logging.getLogger(__name__)
_MAX_GEOMS = 200  # the scene has about 30; MuJoCo's default of 10000 costs memory only
_logged_drivers: set[str] = set()


class RenderingUnavailable(VolarError):
    """No OpenGL on this machine; says which packages bring it."""


class CameraRenderer:
    """Renders the cameras of one model. Make it in the process and thread that uses it; `close` when done.

    `sizes`: camera name -> (width, height) [pixels]. Raises `Unknown` for a camera the model lacks and
    `RenderingUnavailable` without an OpenGL driver. Reflections, sky, haze and multisampling are off, shadows where
    the model has no shadow map: a policy does not need them and software rendering would take ten times as long.

    It does what `mujoco.Renderer` does, with one context for all sizes, and with the backend chosen when it is
    made instead of when MuJoCo is first imported, whoever imports it.
    """

    def __init__(self, model: "mujoco.MjModel", sizes: Mapping[str, tuple[int, int]]) -> None:
        import mujoco

        available = [model.camera(i).name for i in range(model.ncam)]
        for name in sizes:
            if name not in available:
                raise Unknown("camera", name, available)
        self.sizes = dict(sizes)
        self._model = model
        width, height = (max((size[i] for size in sizes.values()), default=1) for i in (0, 1))
        self._gl, self._context = _contexts(model, width, height)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model=model, maxgeom=_MAX_GEOMS)
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE"):
            wanted = flag == "SHADOW" and model.vis.quality.shadowsize > 0
            self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = wanted
        self._options = mujoco.MjvOption()
        self._cameras: dict[str, Any] = {}
        for name in sizes:
            camera = mujoco.MjvCamera()
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = model.camera(name).id
            self._cameras[name] = camera
        _log_once(self.driver)

    def render(self, data: "mujoco.MjData") -> dict[str, Image]:
        """One image (H, W, 3), uint8 RGB, for each camera; new arrays each time."""
        import mujoco

        if self._context is None:
            raise RuntimeError("render after close")
        self._gl.make_current()
        images: dict[str, Image] = {}
        for name, (width, height) in self.sizes.items():
            mujoco.mjv_updateScene(
                self._model, data, self._options, None, self._cameras[name], mujoco.mjtCatBit.mjCAT_ALL, self._scene
            )
            viewport = mujoco.MjrRect(0, 0, width, height)
            mujoco.mjr_render(viewport, self._scene, self._context)
            pixels = np.empty((height, width, 3), np.uint8)
            mujoco.mjr_readPixels(pixels, None, viewport, self._context)
            images[name] = np.ascontiguousarray(pixels[::-1])  # OpenGL's first row is the bottom one
        return images

    @property
    def driver(self) -> str:
        """GL_RENDERER, such as `llvmpipe (LLVM 19, 256 bits)`."""
        self._gl.make_current()
        try:
            from OpenGL import GL

            value = GL.glGetString(GL.GL_RENDERER)
        except Exception:  # only for the log; the errors of PyOpenGL depend on the backend
            return "unknown"
        return value.decode() if isinstance(value, bytes) else "unknown"

    def close(self) -> None:
        """Frees the context; once more does nothing."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._context = None


def backend() -> str:
    """`MUJOCO_GL` where the user chose; else EGL on Linux, which needs no display and ignores one."""
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen in ("egl", "osmesa", "glfw", "cgl"):
        return chosen
    if sys.platform == "darwin":
        return "cgl"
    return "egl" if sys.platform.startswith("linux") else "glfw"


def _contexts(model: "mujoco.MjModel", width: int, height: int) -> tuple[Any, Any]:
    """The backend's OpenGL context, current, and MuJoCo's with an offscreen buffer of that size."""
    import importlib

    import mujoco

    chosen = backend()
    # Mesa's software renderer draws in the calling thread: the processes are the parallelism, and a thread of its
    # own would only wait for a core. Small images gain nothing from more.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    try:
        gl = importlib.import_module(f"mujoco.{chosen}").GLContext(width, height)
        gl.make_current()
        context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_resizeOffscreen(width, height, context)
        return gl, context
    except Exception as error:  # ImportError, RuntimeError, mujoco.FatalError, AttributeError inside PyOpenGL ...
        raise RenderingUnavailable(
            f"no OpenGL for rendering ({chosen}: {' '.join(str(error).split())}); on Debian or Ubuntu: apt-get install "
            "libegl1 libopengl0 libgl1-mesa-dri (or libosmesa6 and MUJOCO_GL=osmesa)"
        ) from error


def _log_once(driver: str) -> None:
    if driver not in _logged_drivers:
        _logged_drivers.add(driver)
        _log.info("OpenGL renderer: %s", driver)
        if gpu := unused_gpu(driver):
            _log.warning("images are rendered in software (%s), yet there is a GPU at %s: %s", driver, gpu, FIX)
