"""Geoms and servos from which the arms are built, with what the suite's scenes expect of them.

Contact: links have contype 2 and conaffinity 0. They touch the table and objects (conaffinity 3), not each
other, since neighbours overlap by construction. Hands and fingers have contype and conaffinity 1.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mujoco

Point = tuple[float, float, float]
Capsule = tuple[Point, Point, float]  # start [m], end [m], radius [m]

WHITE, GREY, DARK = [0.92, 0.92, 0.94, 1.0], [0.55, 0.57, 0.6, 1.0], [0.2, 0.21, 0.23, 1.0]
LINK_CONTYPE = 2

# What holds a block without slipping: high friction that overrides the block's own, also about the normal.
PAD = {"friction": [1.5, 0.05, 0.001], "condim": 4, "priority": 1, "solref": [0.01, 1.0]}


def add_capsule(body: Any, name: str, shape: Capsule, mass: float, rgba: list[float]) -> None:
    """A link: its shape in the frame of `body`, mass [kg]."""
    import mujoco

    start, end, radius = shape
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        fromto=[*start, *end],
        size=[radius, 0, 0],
        mass=mass,
        rgba=rgba,
        contype=LINK_CONTYPE,
        conaffinity=0,
    )


def add_servo(spec: "mujoco.MjSpec", joint: str, kp: float, kv: float, effort_max: float) -> None:
    """A position servo named as its joint: kp [Nm/rad], kv [Nm s/rad], limit [Nm]."""
    import mujoco

    actuator = spec.add_actuator(
        name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT, forcerange=[-effort_max, effort_max]
    )
    actuator.set_to_position(kp=kp, kv=kv)


def add_width_servo(spec: "mujoco.MjSpec", coefficients: dict[str, float], width_max: float, force_max: float) -> None:
    """The actuator `gripper`: its control is the width [m] = sum of coefficient times finger joint; force in [N]."""
    import mujoco

    tendon = spec.add_tendon(name="gripper")
    for joint, coefficient in coefficients.items():
        tendon.wrap_joint(joint, coefficient)
    gripper = spec.add_actuator(
        name="gripper",
        target="gripper",
        trntype=mujoco.mjtTrn.mjTRN_TENDON,
        ctrlrange=[0, width_max],
        forcerange=[-force_max, force_max],
    )
    gripper.set_to_position(kp=1000.0, kv=100.0)


def couple(spec: "mujoco.MjSpec", joints: tuple[str, ...]) -> None:
    """Ties two finger joints together, so that they move alike; one alone needs nothing."""
    import mujoco

    for other in joints[1:]:
        spec.add_equality(
            type=mujoco.mjtEq.mjEQ_JOINT,
            objtype=mujoco.mjtObj.mjOBJ_JOINT,
            name1=joints[0],
            name2=other,
            solref=[0.005, 1.0],
            data=[0.0, 1.0] + [0.0] * 10,
        )
