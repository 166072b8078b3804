"""Scenes with more to vary: a lamp, a shadow map, textures, distractors. Compiled once for each process.

None of it shows until a draw says so, except the lamp, which is weak.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from volar.robots.spec import RobotSpec, load_robot
from volar.sim import scene
from volar.sim.randomization_axes import MAX_DISTRACTORS, TEXTURES
from volar.sim.table import table_of

if TYPE_CHECKING:
    import mujoco

FEATURES = ("lamp", "shadow", "texture", "distractors")
SHADOW_MAP = 512  # pixels; MuJoCo's 4096 takes ten times as long as everything else in software rendering
_SHADOW_BOX, _SHADOW_CENTRE_M = 0.5, (0.7, -0.15, 0.5)  # the box's half edge, as a share of the scene's extent
_TEXTURE = 64  # pixels, a side
_LAMP_POSITION_M = (0.3, 0.4, 1.2)
_LAMP_DIFFUSE = (0.2, 0.2, 0.2)
_REPEAT = 3.0  # of a texture over a surface
# Where distractors that are not wanted wait: far below the floor, out of every camera's sight.
_AWAY_M = (0.0, 0.0, -30.0)
# None of them like a block's or the plate's.
_DISTRACTOR_RGBA = ((0.92, 0.92, 0.92, 1), (0.12, 0.12, 0.12, 1), (0.45, 0.28, 0.16, 1), (0.55, 0.75, 0.78, 1))
_DISTRACTOR_HALF_M = 0.014


@lru_cache(maxsize=32)
def compiled(robot: str, props: tuple[str, ...], features: frozenset[str]) -> "mujoco.MjModel":
    """`scene.compiled` with these features; the very same model without any. Read-only: it is shared."""
    if not features:
        return scene.compiled(robot, props)
    spec = scene.build(load_robot(robot), props)
    scale = table_of(load_robot(robot)).scale
    # What MuJoCo derives from the bounding box, and from that how near a camera sees, must not depend on features.
    plain = scene.compiled(robot, props).stat
    spec.stat.extent, spec.stat.center = plain.extent, plain.center
    for feature in FEATURES:
        if feature in features:
            _ADD[feature](spec, scale)
    return spec.compile()


def _add_lamp(spec: "mujoco.MjSpec", scale: float) -> None:
    import mujoco

    spec.worldbody.add_light(
        name="lamp",
        type=mujoco.mjtLightType.mjLIGHT_SPOT,
        pos=_LAMP_POSITION_M,
        dir=[0, 0, -1],
        cutoff=80,
        exponent=1,
        diffuse=_LAMP_DIFFUSE,
        specular=[0, 0, 0],
        castshadow=False,
    )


def _add_shadow(spec: "mujoco.MjSpec", scale: float) -> None:
    spec.visual.quality.shadowsize = SHADOW_MAP
    # A directional light's shadows are drawn in a box about its position; a small one around the workspace, or so
    # few pixels cover the table that it is speckled with its own shadow.
    spec.visual.map.shadowclip = _SHADOW_BOX
    spec.light("sun").pos = _SHADOW_CENTRE_M


def _add_textures(spec: "mujoco.MjSpec", scale: float) -> None:
    import mujoco

    for name in TEXTURES:
        pixels = texture(name)
        spec.add_texture(
            name=f"texture_{name}",
            type=mujoco.mjtTexture.mjTEXTURE_2D,
            width=_TEXTURE,
            height=_TEXTURE,
            nchannel=3,
            data=pixels.ravel().tolist(),
        )
        material = spec.add_material(name=f"texture_{name}", texrepeat=[_REPEAT, _REPEAT])
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = f"texture_{name}"


def _add_distractors(spec: "mujoco.MjSpec", scale: float) -> None:
    """Things that stand fast: movable ones would double the degrees of freedom."""
    import mujoco

    shapes = (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER)
    for i in range(MAX_DISTRACTORS):
        name = f"distractor_{i}"
        body = spec.worldbody.add_body(name=name, pos=_AWAY_M)
        size = [scale * _DISTRACTOR_HALF_M] * 3
        body.add_geom(name=name, type=shapes[i % 2], size=size, rgba=_DISTRACTOR_RGBA[i], conaffinity=3)


_ADD = {"lamp": _add_lamp, "shadow": _add_shadow, "texture": _add_textures, "distractors": _add_distractors}


def distractor_height_m(robot: RobotSpec) -> float:
    """Of its centre above the table, where it stands [m]."""
    return table_of(robot).scale * _DISTRACTOR_HALF_M


def texture(name: str) -> NDArray[np.uint8]:
    """A pattern (64, 64, 3), light, to be multiplied with a surface's colour; the same in every process."""
    y, x = np.mgrid[0:_TEXTURE, 0:_TEXTURE] / _TEXTURE
    rng = np.random.default_rng([TEXTURES.index(name), 5])
    coarse = np.kron(rng.random((16, 16)), np.ones((4, 4)))
    patterns = {
        "checker": ((np.floor(4 * x) + np.floor(4 * y)) % 2),
        "noise": coarse,
        "stripes": (np.floor(8 * x) % 2),
        "wood": 0.5 + 0.5 * np.sin(2 * np.pi * (6 * x + 0.6 * np.sin(2 * np.pi * y))),
        "dots": (np.hypot((4 * x) % 1 - 0.5, (4 * y) % 1 - 0.5) < 0.3).astype(float),
        "waves": 0.5 + 0.5 * np.sin(2 * np.pi * (4 * y + 0.5 * np.sin(4 * np.pi * x))),
    }
    light = 0.55 + 0.45 * patterns[name]  # (64, 64)
    return np.repeat((255 * light).round().astype(np.uint8)[..., None], 3, axis=-1)
