"""What can stand on the table beside the blocks, built from primitives; each kind by name in `PROPS`.

Sizes are in table coordinates and multiplied by the table's scale `s`. A coloured kind has one of each colour, and a
task places those it wants: the others stay out of sight. Fixed things are mocap bodies, so that a layout is data, not
model; their moving part hangs from them by a joint, and a site of the same name marks where to act on it:

    body drawer_red (mocap) > body drawer_red_slider, joint drawer_red, site drawer_red (its bar)

Contacts: fixed things have contype 0, so that they touch hand, arm and objects but not each other nor themselves.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from volar.sim.colors import COLORS, RGBA

if TYPE_CHECKING:
    import mujoco

Triple = tuple[float, float, float]

GREY, DARK, WHITE = (0.45, 0.46, 0.48, 1.0), (0.22, 0.23, 0.25, 1.0), (0.95, 0.95, 0.95, 1.0)
_PLATE_RGBA = (0.62, 0.25, 0.70, 1.0)  # purple: none of the blocks' colours, and unlike the white arm
_BOWL_RGBA = (0.10, 0.62, 0.66, 1.0)  # teal

PLATE_RADIUS_M, PLATE_HALF_HEIGHT_M, PLATE_MASS_KG = 0.06, 0.004, 0.25
BOWL_RADIUS_M, BOWL_FLOOR_M, BOWL_RIM_M, BOWL_MASS_KG = 0.055, 0.008, 0.03, 0.3  # of the wall's middle; heights
MAT_HALF_M, MAT_HEIGHT_M = 0.045, 0.006
MARK_RADIUS_M = 0.03

# Drawer: x of the housing's front and of the closed bar from the housing's centre, height of the bar, travel.
HOUSING_HALF_M: Triple = (0.075, 0.065, 0.038)
DRAWER_TRAVEL_M = 0.12
BAR_X_M, BAR_Z_M = -0.135, 0.045
DRAWER_FLOOR_M, DRAWER_SIDES_M = 0.015, 0.036  # heights of the inside's floor and of its side walls

_HIDDEN = 4  # a group of sites that is not drawn
BUTTON_TOP_M, BUTTON_TRAVEL_M = 0.044, 0.010
_BUTTON_SPRING = 150.0  # [N/m], 1.5 N when pressed down: a push button of a machine takes 1 to 5 N
LEVER_LENGTH_M, LEVER_TIP_Z_M, LEVER_RANGE_RAD = 0.08, 0.035, 1.2


def _fixed(spec: "mujoco.MjSpec", name: str) -> Any:
    return spec.worldbody.add_body(name=name, mocap=True)


def _box(body: Any, s: float, pos: Triple, half: Triple, rgba: tuple[float, ...], mass_kg: float = 0.0) -> Any:
    import mujoco

    return body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[s * value for value in pos],
        size=[s * value for value in half],
        rgba=rgba,
        mass=mass_kg * s**3,
        contype=0,
        conaffinity=3,
    )


def _cylinder(
    body: Any, s: float, pos: Triple, radius: float, half_height: float, rgba: tuple[float, ...], mass_kg: float = 0.0
) -> Any:
    import mujoco

    return body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        pos=[s * value for value in pos],
        size=[s * radius, s * half_height, 0],
        rgba=rgba,
        mass=mass_kg * s**3,
        contype=0,
        conaffinity=3,
    )


def add_plate(spec: "mujoco.MjSpec", s: float) -> None:
    """A flat round plate that can be moved; the origin is its centre."""
    import mujoco

    body = spec.worldbody.add_body(name="plate", pos=[s * 0.5, s * 0.2, s * PLATE_HALF_HEIGHT_M])
    body.add_freejoint(name="plate")
    body.add_geom(
        name="plate",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[s * PLATE_RADIUS_M, s * PLATE_HALF_HEIGHT_M, 0],
        mass=PLATE_MASS_KG * s**3,
        rgba=_PLATE_RGBA,
        conaffinity=3,
        friction=[1.0, 0.005, 0.0001],
    )


def add_bowl(spec: "mujoco.MjSpec", s: float) -> None:
    """A bowl that can be moved: a floor and twelve sides; the origin is the middle of its underside."""
    body = spec.worldbody.add_body(name="bowl", pos=[s * 0.5, s * 0.2, 0])
    body.add_freejoint(name="bowl")
    body.add_site(name="bowl", group=_HIDDEN)
    half_floor = BOWL_FLOOR_M / 2
    parts = [_cylinder(body, s, (0, 0, half_floor), BOWL_RADIUS_M, half_floor, _BOWL_RGBA, BOWL_MASS_KG / 2)]
    sides, half_height = 12, (BOWL_RIM_M - BOWL_FLOOR_M) / 2
    for angle in np.arange(sides) * 2 * np.pi / sides:
        pos = (BOWL_RADIUS_M * np.cos(angle), BOWL_RADIUS_M * np.sin(angle), BOWL_FLOOR_M + half_height)
        half_width = BOWL_RADIUS_M * np.tan(np.pi / sides)
        side = _box(body, s, pos, (0.003, half_width, half_height), _BOWL_RGBA, BOWL_MASS_KG / 2 / sides)
        side.quat = [np.cos(angle / 2), 0, 0, np.sin(angle / 2)]
        parts.append(side)
    for part in parts:
        part.contype = 1  # it stands on the table


def add_mats(spec: "mujoco.MjSpec", s: float) -> None:
    """Flat square mats; the origin is the middle of the underside."""
    for color in COLORS:
        body = _fixed(spec, f"mat_{color}")
        body.add_site(name=f"mat_{color}", group=_HIDDEN)
        half = MAT_HEIGHT_M / 2
        _box(body, s, (0, 0, half), (MAT_HALF_M, MAT_HALF_M, half), RGBA[color])


def add_mark(spec: "mujoco.MjSpec", s: float) -> None:
    """A white mark on the table, to be seen and not felt."""
    body = _fixed(spec, "mark")
    body.add_site(name="mark", group=_HIDDEN)
    _cylinder(body, s, (0, 0, 0.0005), MARK_RADIUS_M, 0.0005, WHITE).conaffinity = 0


def add_drawers(spec: "mujoco.MjSpec", s: float) -> None:
    """Cabinets with one drawer each, opening towards -x by a bar; the joint is how far it is open [m].

    The origin is the middle of the housing's underside. One stem on the left holds the bar, so that fingers of any
    width reach behind it.
    """
    import mujoco

    hx, hy, hz = HOUSING_HALF_M
    for color in COLORS:
        paint = RGBA[color]
        body = _fixed(spec, f"drawer_{color}")
        _box(body, s, (0, 0, 2 * hz - 0.002), (hx, hy, 0.003), paint)  # the top, a little above the sides
        for side in (-1, 1):
            _box(body, s, (0, side * (hy - 0.004), hz), (hx, 0.004, hz), GREY)
        _box(body, s, (hx - 0.004, 0, hz), (0.004, hy, hz), GREY)
        slider = body.add_body(name=f"drawer_{color}_slider")
        joint = slider.add_joint(
            name=f"drawer_{color}",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[-1, 0, 0],
            range=[0, s * DRAWER_TRAVEL_M],
            frictionloss=0.5 * s**3,
        )
        joint.damping = [5.0 * s**3, 0, 0]
        floor, sides = DRAWER_FLOOR_M - 0.003, (DRAWER_SIDES_M - DRAWER_FLOOR_M) / 2
        _box(slider, s, (-0.005, 0, floor), (0.068, 0.053, 0.003), DARK, 0.15)
        for side in (-1, 1):
            _box(slider, s, (-0.005, side * 0.05, DRAWER_FLOOR_M + sides), (0.068, 0.003, sides), DARK, 0.05)
        _box(slider, s, (0.06, 0, DRAWER_FLOOR_M + sides), (0.003, 0.05, sides), DARK, 0.05)
        _box(slider, s, (-0.08, 0, hz), (0.005, hy - 0.004, hz - 0.006), paint, 0.1)  # the front
        _box(slider, s, (BAR_X_M, -0.008, BAR_Z_M), (0.005, 0.042, 0.006), paint, 0.03)
        _box(slider, s, ((BAR_X_M - 0.08) / 2, 0.03, BAR_Z_M), (0.0275, 0.004, 0.005), GREY, 0.02)
        slider.add_site(name=f"drawer_{color}", group=_HIDDEN, pos=[s * BAR_X_M, 0, s * BAR_Z_M])


def add_buttons(spec: "mujoco.MjSpec", s: float) -> None:
    """Push buttons on a box; the joint is negative when pressed [m]. The origin is the middle of the underside."""
    import mujoco

    for color in COLORS:
        body = _fixed(spec, f"button_{color}")
        _box(body, s, (0, 0, 0.013), (0.03, 0.03, 0.013), DARK)
        cap = body.add_body(name=f"button_{color}_cap")
        joint = cap.add_joint(
            name=f"button_{color}",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[0, 0, 1],
            range=[-s * BUTTON_TRAVEL_M, 0],
            limited=True,
        )
        # mass scales with s^3 and forces with it, so that motions look alike: stiffness and damping with s^2 and s^2.5
        joint.stiffness = [_BUTTON_SPRING * s**2, 0, 0]
        joint.damping = [4.0 * s**2.5, 0, 0]
        half = (BUTTON_TOP_M - 0.024) / 2
        _cylinder(cap, s, (0, 0, 0.024 + half), 0.022, half, RGBA[color], 0.03)
        cap.gravcomp = 1.0  # its spring carries it
        cap.add_site(name=f"button_{color}", group=_HIDDEN, pos=[0, 0, s * BUTTON_TOP_M])


def add_levers(spec: "mujoco.MjSpec", s: float) -> None:
    """Levers that turn about a vertical axis and point towards -x at 0; positive turns their tip to the right (-y).

    The origin is the middle of the underside, below the axis; the site is the middle of the tip.
    """
    for color in COLORS:
        body = _fixed(spec, f"lever_{color}")
        _cylinder(body, s, (0, 0, 0.01), 0.025, 0.01, DARK)
        arm = body.add_body(name=f"lever_{color}_arm")
        joint = arm.add_joint(
            name=f"lever_{color}",
            axis=[0, 0, 1],
            range=[-LEVER_RANGE_RAD, LEVER_RANGE_RAD],
            frictionloss=0.01 * s**4,
        )
        joint.damping = [0.02 * s**4.5, 0, 0]
        joint.armature = 1e-4 * s**5
        half = LEVER_LENGTH_M / 2
        _box(arm, s, (-half, 0, 0.026), (half, 0.008, 0.006), RGBA[color], 0.05)
        _cylinder(arm, s, (-LEVER_LENGTH_M, 0, LEVER_TIP_Z_M), 0.012, 0.015, RGBA[color], 0.03)
        arm.add_site(name=f"lever_{color}", group=_HIDDEN, pos=[-s * LEVER_LENGTH_M, 0, s * LEVER_TIP_Z_M])


PROPS: dict[str, Callable[["mujoco.MjSpec", float], None]] = {
    "plate": add_plate,
    "bowl": add_bowl,
    "mats": add_mats,
    "mark": add_mark,
    "drawers": add_drawers,
    "buttons": add_buttons,
    "levers": add_levers,
}
