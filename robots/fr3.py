"""Franka Research 3 with the Franka Hand, built from primitives on its real kinematics.

Limits: libfranka `rate_limiting.h` (FR3 section) and franka_description. Kinematics: Franka's published
Craig (modified) Denavit-Hartenberg table. Link masses: Gaz, Cognetti, Oliva, Robuffo Giordano, De Luca,
"Dynamic Identification of the Franka Emika Panda Robot" (RA-L 2019), whose arm has the same links.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from volar.robots.action_space import end_effector_delta
from volar.robots.parallel_gripper import ParallelGripper
from volar.robots.primitives import GREY, WHITE, Capsule, add_capsule, add_servo
from volar.robots.spec import STATE_NAMES, STATE_UNITS, RobotSpec, Vector

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
_SPEED = np.array(VELOCITY_MAX)
_LOWER = np.array([-2.75010, -1.79180, -2.90650, -3.04810, -2.81010, 0.54092, -3.01960])


def velocity_bounds(q: Vector) -> tuple[Vector, Vector]:
    """Velocity limits at a position: q (7,) [rad] -> lower (7,), upper (7,) [rad/s]."""
    # Twice a control period; `np.clip` takes three times as long as what it calls.
    upper = np.minimum(np.maximum(np.sqrt(np.maximum(_GAIN * (_UPPER - q), 0.0)) - _OFFSET, 0.0), _SPEED)
    lower = np.minimum(np.maximum(np.sqrt(np.maximum(_GAIN * (q - _LOWER), 0.0)) - _OFFSET, 0.0), _SPEED)
    return -lower, upper


GRIPPER = ParallelGripper(
    name="fr3_hand",
    joint_names=("fr3_finger_joint1", "fr3_finger_joint2"),
    yaw=HAND_YAW,
    palm=((0, 0, 0.03), (0.02, 0.1, 0.03)),
    tcp_m=TCP_D,
    fingers_m=0.0584,  # franka_description hand.xacro
    camera=(0.07, 0, 0.02),
    stroke_m=FINGER_STROKE,
    mass=HAND_MASS,
    finger_mass=FINGER_MASS,
    force_max=GRIP_FORCE,
)

# In the frame of each link, from the joint to where the next joint sits.
_SHAPES: tuple[Capsule, ...] = (
    ((0, 0, -0.14), (0, 0, 0.0), 0.062),
    ((0, 0, 0.0), (0, -0.14, 0.0), 0.06),
    ((0, 0, -0.12), (0.06, 0, 0.0), 0.058),
    ((0, 0, 0.0), (-0.07, 0.09, 0.0), 0.058),
    ((0, 0, -0.24), (0, 0.04, 0.0), 0.052),
    ((0, 0, 0.0), (0.07, 0, 0.0), 0.05),
    ((0, 0, -0.02), (0, 0, 0.07), 0.044),
)


def add_to(spec: "mujoco.MjSpec") -> Any:
    """Adds the arm, hand, wrist camera, `flange` and `tcp` sites and actuators; returns the base body.

    Actuators: one position servo a joint, then `gripper`, whose control is the width between the
    fingers [m]. Gravity is compensated on every link, as the real arm's controller does.
    """
    spec.compiler.degree = False
    base = spec.worldbody.add_body(name="fr3_link0")
    add_capsule(base, "fr3_link0", ((-0.08, 0, 0.05), (0, 0, 0.14), 0.07), 2.0, WHITE)
    parent = base
    for i, shape in enumerate(_SHAPES):
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
        add_capsule(link, f"fr3_link{i + 1}", shape, LINK_MASS[i], WHITE if i % 2 == 0 else GREY)
        add_servo(spec, FR3.joint_names[i], SERVO_KP[i], SERVO_KV[i], EFFORT_MAX[i])
        parent = link
    parent.add_site(name="flange", pos=[0, 0, FLANGE_D])
    GRIPPER.add_to(spec, parent, (0, 0, FLANGE_D))
    return base


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
    gripper_joint_names=GRIPPER.joint_names,
    gripper_width_max=2 * FINGER_STROKE,
    gripper_speed_max=0.1,  # [m/s], twice the 50 mm/s a finger of the Franka Hand datasheet
    gripper_force_max=GRIP_FORCE,
    workspace_low=(0.25, -0.35, 0.005),
    workspace_high=(0.75, 0.35, 0.60),
    cameras=("front", "wrist"),
    action=end_effector_delta(),
    state_names=STATE_NAMES,
    state_units=STATE_UNITS,
    joint_states_topic="joint_states",
    trajectory_topic="joint_trajectory_controller/joint_trajectory",
    gripper_action="fr3_gripper/gripper_cmd",
    velocity_bounds=velocity_bounds,
    add_to=add_to,
    add_hand=GRIPPER.add_to,
)
