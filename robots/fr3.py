"""Franka Research 3 with the Franka Hand, built from primitives on its real kinematics.

Limits: libfranka `rate_limiting.h` (FR3 section) and franka_description. Kinematics: Franka's published
Craig (modified) Denavit-Hartenberg table. Link masses: Gaz, Cognetti, Oliva, Robuffo Giordano, De Luca,
"Dynamic Identification of the Franka Emika Panda Robot" (RA-L 2019), whose arm has the same links.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from volar.robots.action_space import end_effector_delta
from volar.robots.spec import RobotSpec, Vector

if TYPE_CHECKING:
    import mujoco

DH_A = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088)  # [m], Craig: a_{i-1}
DH_ALPHA = (0.0, -np.pi / 2, np.pi / 2, np.pi / 2, -np.pi / 2, np.pi / 2, np.pi / 2)  # [rad]
DH_D = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0)  # [m]
FLANGE_D = 0.107  # [m] along z of joint 7
HAND_YAW = -np.pi / 4  # [rad] hand about the flange's z, franka_description hand.xacro
TCP_D = 0.1034  # [m] hand frame to the point between the fingertips, franka_description

LINK_MASS = (4.970684, 0.646926, 3.228604, 3.587895, 1.225946, 1.666555, 0.735522)  # [kg], Gaz et al. 2019
HAND_MASS = 0.73  # [kg], franka_description
FINGER_MASS = 0.015  # [kg] each, franka_description

ARMATURE = 0.1  # [kg m^2], rotor inertia through the gear; mujoco_menagerie franka_emika_panda
JOINT_DAMPING = 1.0  # [Nm s/rad], same source
SERVO_KP = (4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0)  # [Nm/rad], same source
SERVO_KV = (450.0, 450.0, 350.0, 350.0, 200.0, 200.0, 200.0)  # [Nm s/rad], same source
GRIP_FORCE = 70.0  # [N], continuous grasping force, Franka Hand datasheet
FINGER_STROKE = 0.04  # [m] each finger

EFFORT_MAX = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)  # [Nm]
VELOCITY_MAX = (2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26)  # [rad/s]
# Position-dependent velocity limits of libfranka `rate_limiting.h`, FR3:
# upper_i(q) = min(v_max, -OFFSET + sqrt(GAIN (UPPER - q))), lower_i(q) its mirror about LOWER.
_OFFSET = np.array([0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35])
_GAIN = np.array([12.0, 5.17, 7.0, 8.0, 34.0, 11.0, 34.0])
_UPPER = np.array([2.75010, 1.79180, 2.90650, -0.14580, 2.81010, 4.52050, 3.01960])
_LOWER = np.array([-2.75010, -1.79180, -2.90650, -3.04810, -2.81010, 0.54092, -3.01960])


def velocity_bounds(q: Vector) -> tuple[Vector, Vector]:
    """Velocity limits at a position: q (7,) [rad] -> lower (7,), upper (7,) [rad/s]."""
    limit = np.array(VELOCITY_MAX)
    upper = np.clip(-_OFFSET + np.sqrt(np.maximum(0.0, _GAIN * (_UPPER - q))), 0.0, limit)
    lower = -np.clip(-_OFFSET + np.sqrt(np.maximum(0.0, _GAIN * (q - _LOWER))), 0.0, limit)
    return lower, upper


def add_to(spec: "mujoco.MjSpec") -> Any:
    """Adds the arm, hand, wrist camera, `flange` and `tcp` sites and actuators; returns the base body.

    Actuators: one position servo a joint, then `gripper`, whose control is the width between the
    fingers [m]. Gravity is compensated on every link, as the real arm's controller does.
    """
    import mujoco

    spec.compiler.degree = False
    white, grey, dark = [0.92, 0.92, 0.94, 1.0], [0.55, 0.57, 0.6, 1.0], [0.2, 0.21, 0.23, 1.0]
    base = spec.worldbody.add_body(name="fr3_link0")
    _capsule(base, "fr3_link0", (-0.08, 0, 0.05), (0, 0, 0.14), 0.07, 2.0, white)
    # Capsule axes in the frame of each link, from the joint to where the next joint sits.
    shapes: tuple[tuple[tuple[float, float, float], tuple[float, float, float], float], ...] = (
        ((0, 0, -0.14), (0, 0, 0.0), 0.062),
        ((0, 0, 0.0), (0, -0.14, 0.0), 0.06),
        ((0, 0, -0.12), (0.06, 0, 0.0), 0.058),
        ((0, 0, 0.0), (-0.07, 0.09, 0.0), 0.058),
        ((0, 0, -0.24), (0, 0.04, 0.0), 0.052),
        ((0, 0, 0.0), (0.07, 0, 0.0), 0.05),
        ((0, 0, -0.02), (0, 0, 0.07), 0.044),
    )
    parent = base
    for i, (start, end, radius) in enumerate(shapes):
        c, s = np.cos(DH_ALPHA[i]), np.sin(DH_ALPHA[i])
        link = parent.add_body(
            name=f"fr3_link{i + 1}",
            pos=[DH_A[i], -s * DH_D[i], c * DH_D[i]],
            quat=[np.cos(DH_ALPHA[i] / 2), np.sin(DH_ALPHA[i] / 2), 0, 0],
            gravcomp=1.0,
        )
        link.add_joint(
            name=FR3.joint_names[i],
            axis=[0, 0, 1],
            range=[FR3.position_min[i], FR3.position_max[i]],
            armature=ARMATURE,
            damping=[JOINT_DAMPING, 0.0, 0.0],
        )
        _capsule(link, f"fr3_link{i + 1}", start, end, radius, LINK_MASS[i], white if i % 2 == 0 else grey)
        actuator = spec.add_actuator(
            name=FR3.joint_names[i],
            target=FR3.joint_names[i],
            trntype=mujoco.mjtTrn.mjTRN_JOINT,
            forcerange=[-EFFORT_MAX[i], EFFORT_MAX[i]],
        )
        actuator.set_to_position(kp=SERVO_KP[i], kv=SERVO_KV[i])
        parent = link
    parent.add_site(name="flange", pos=[0, 0, FLANGE_D])
    _add_hand(spec, parent, white, dark)
    return base


def _add_hand(spec: "mujoco.MjSpec", flange: Any, white: list[float], dark: list[float]) -> None:
    import mujoco

    hand = flange.add_body(
        name="fr3_hand", pos=[0, 0, FLANGE_D], quat=[np.cos(HAND_YAW / 2), 0, 0, np.sin(HAND_YAW / 2)], gravcomp=1.0
    )
    box = mujoco.mjtGeom.mjGEOM_BOX
    hand.add_geom(name="fr3_hand", type=box, pos=[0, 0, 0.03], size=[0.02, 0.1, 0.03], mass=HAND_MASS, rgba=white)
    hand.add_site(name="tcp", pos=[0, 0, TCP_D], size=[0.005, 0.005, 0.005], rgba=[0, 0, 0, 0])
    # Looks along the fingers from in front of the hand; the fingertips are in the lower half of the image.
    hand.add_camera(name="wrist", pos=[0.07, 0, 0.02], xyaxes=[0, 1, 0, 0.94, 0, 0.34], fovy=74)
    tendon = spec.add_tendon(name="gripper")
    for name, side in zip(FR3.gripper_joint_names, (1.0, -1.0), strict=True):
        finger = hand.add_body(name=name.replace("joint", ""), pos=[0, 0, 0.0584], gravcomp=1.0)
        finger.add_joint(
            name=name,
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[0, side, 0],
            range=[0, FINGER_STROKE],
            armature=0.1,
            damping=[10.0, 0.0, 0.0],
        )
        finger.add_geom(
            type=box,
            pos=[0, side * 0.012, 0.012],
            size=[0.01, 0.008, 0.014],
            mass=FINGER_MASS / 3,
            rgba=dark,
            contype=0,
            conaffinity=0,
        )
        finger.add_geom(
            name=f"{name}_pad",
            type=box,
            pos=[0, side * 0.006, 0.036],
            size=[0.011, 0.006, 0.018],
            mass=FINGER_MASS * 2 / 3,
            rgba=dark,
            friction=[1.5, 0.05, 0.001],
            condim=4,
            priority=1,
            solref=[0.01, 1.0],
        )
        tendon.wrap_joint(name, 1.0)
    spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT,
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        name1=FR3.gripper_joint_names[0],
        name2=FR3.gripper_joint_names[1],
        solref=[0.005, 1.0],
        data=[0.0, 1.0] + [0.0] * 10,
    )
    gripper = spec.add_actuator(
        name="gripper",
        target="gripper",
        trntype=mujoco.mjtTrn.mjTRN_TENDON,
        ctrlrange=[0, 2 * FINGER_STROKE],
        forcerange=[-GRIP_FORCE, GRIP_FORCE],
    )
    gripper.set_to_position(kp=1000.0, kv=100.0)


def _capsule(
    body: Any,
    name: str,
    start: tuple[float, float, float],
    end: tuple[float, float, float],
    radius: float,
    mass: float,
    rgba: list[float],
) -> None:
    import mujoco

    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        fromto=[*start, *end],
        size=[radius, 0, 0],
        mass=mass,
        rgba=rgba,
        contype=2,  # links touch objects (conaffinity 2), not each other: neighbours overlap by construction
        conaffinity=0,
    )


FR3 = RobotSpec(
    name="fr3",
    joint_names=tuple(f"fr3_joint{i}" for i in range(1, 8)),
    position_min=(-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159),
    position_max=(2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159),
    velocity_max=VELOCITY_MAX,
    acceleration_max=(10.0,) * 7,
    jerk_max=(5000.0,) * 7,
    effort_max=EFFORT_MAX,
    # Fingers down at (0.45, 0, 0.22) m in the base frame to 0.02 mm: inverse kinematics, checked by a test.
    home=(0.0, -0.1289, 0.0, -2.5263, 0.0, 2.3974, np.pi / 4),
    ee_site="tcp",
    gripper_joint_names=("fr3_finger_joint1", "fr3_finger_joint2"),
    gripper_width_max=2 * FINGER_STROKE,
    gripper_speed_max=0.1,  # [m/s], twice the 50 mm/s a finger of the Franka Hand datasheet
    workspace_low=(0.25, -0.35, 0.005),
    workspace_high=(0.75, 0.35, 0.60),
    cameras=("front", "wrist"),
    action=end_effector_delta(),
    state_names=(
        "ee_x",
        "ee_y",
        "ee_z",
        "ee_r11",
        "ee_r21",
        "ee_r31",
        "ee_r12",
        "ee_r22",
        "ee_r32",
        "gripper_width",
    ),
    state_units=("m",) * 3 + ("1",) * 6 + ("m",),
    joint_states_topic="/joint_states",
    trajectory_topic="/joint_trajectory_controller/joint_trajectory",
    gripper_action="/fr3_gripper/gripper_cmd",
    velocity_bounds=velocity_bounds,
    add_to=add_to,
)
