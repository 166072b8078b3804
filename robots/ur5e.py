"""Universal Robots UR5e with a two-finger gripper, built from primitives on its real kinematics.

Kinematics and link masses: Universal Robots, "DH parameters for calculations of kinematics and dynamics"
(standard Denavit-Hartenberg). The base frame is ROS's `base_link` of ur_description, which points the arm
along +x at zero: the controller's own frame `base` is turned by pi about z. The gripper has the stroke,
length, mass and force of a Robotiq 2F-85 and is simplified to two fingers that slide; the real ones swing on
linkages, so that their tips move along the approach axis by some millimetres as they close. Its driver knows one
knuckle joint, not these fingers: launch/README.md says what a node between them does.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from volar.robots.action_space import end_effector_delta
from volar.robots.parallel_gripper import ParallelGripper
from volar.robots.primitives import DARK, GREY, Capsule, add_capsule, add_servo
from volar.robots.spec import STATE_NAMES, STATE_UNITS, RobotSpec, Vector

if TYPE_CHECKING:
    import mujoco

DH_D = (0.1625, 0.0, 0.0, 0.1333, 0.0997, 0.0996)  # [m]
DH_A = (0.0, -0.425, -0.3922, 0.0, 0.0, 0.0)  # [m]
DH_ALPHA = (np.pi / 2, 0.0, 0.0, np.pi / 2, -np.pi / 2, 0.0)  # [rad]
BASE_YAW = np.pi  # [rad] of the controller's frame in `base_link`, ur_description

LINK_MASS = (3.761, 8.058, 2.846, 1.37, 1.3, 0.365)  # [kg], the same table
BASE_MASS = 4.0  # [kg], ur_description

ARMATURE = 0.1  # [kg m^2], rotor inertia through the gear; mujoco_menagerie universal_robots_ur5e
JOINT_DAMPING = 1.0  # [Nm s/rad], as the FR3's here; the servo damps far more
SERVO_KP = (4500.0, 4500.0, 4500.0, 2000.0, 2000.0, 2000.0)  # [Nm/rad], as the FR3's of like size
SERVO_KV = (450.0, 450.0, 450.0, 200.0, 200.0, 200.0)  # [Nm s/rad]

EFFORT_MAX = (150.0, 150.0, 150.0, 28.0, 28.0, 28.0)  # [Nm], UR "Max. joint torques"
VELOCITY_MAX = (np.pi,) * 6  # [rad/s], UR5e datasheet, 180 deg/s
# UR publishes no limit of acceleration or jerk; ur_moveit_config's 5 rad/s^2 is called conservative there. Derived
# from torque: with the arm stretched out, 10 rad/s^2 of all joints at once ask the shoulder for 71 Nm beside
# 68 Nm of gravity, of its 150 (mass matrix of this model); the wrist for 6 of 28. Jerk: that acceleration is built
# up in five periods of the controller's 500 Hz.
ACCELERATION_MAX = 10.0  # [rad/s^2]
JERK_MAX = 1000.0  # [rad/s^3]

GRIPPER = ParallelGripper(
    name="ur5e_hand",
    joint_names=("ur5e_finger_joint1", "ur5e_finger_joint2"),
    yaw=0.0,
    palm=((0, 0, 0.047), (0.032, 0.045, 0.047)),
    tcp_m=0.1538,  # 9 mm behind the fingertips as the Franka Hand's; these are at 0.1628 m, 2F-85 manual, closed
    fingers_m=0.1088,
    camera=(0.07, 0, 0.0704),
    stroke_m=0.0425,  # 2F-85 manual: 85 mm in all
    mass=0.895,  # 2F-85 manual: 0.925 kg with the fingers
    finger_mass=0.015,
    force_max=70.0,  # [N], as the Franka Hand's; the 2F-85 is set to 20 to 235 N
)

# In the frame of each link: its joint is at the origin, about z.
_SHAPES: tuple[Capsule, ...] = (
    ((0, 0, 0.06), (0, 0, 0.1625), 0.06),
    ((0, 0, 0.138), (-0.425, 0, 0.138), 0.056),
    ((0, 0, 0.02), (-0.3922, 0, 0.02), 0.048),
    ((0, 0, 0.04), (0, 0, 0.1333), 0.042),
    ((0, 0, 0.02), (0, 0, 0.0997), 0.042),
    ((0, 0, 0.05), (0, 0, 0.065), 0.038),
)


def velocity_bounds(q: Vector) -> tuple[Vector, Vector]:
    """Velocity limits at a position: q (6,) [rad] -> lower (6,), upper (6,) [rad/s]; the same everywhere."""
    limit = np.array(VELOCITY_MAX)
    return -limit, limit


def add_to(spec: "mujoco.MjSpec") -> Any:
    """Adds the arm, hand, wrist camera, `flange` and `tcp` sites and actuators; returns the base body.

    Actuators: one position servo a joint, then `gripper`, whose control is the width between the
    fingers [m]. Gravity is compensated on every link, as the real arm's controller does.
    """
    spec.compiler.degree = False
    base = spec.worldbody.add_body(name="ur5e_base")
    add_capsule(base, "ur5e_base", ((0, 0, 0.05), (0, 0, 0.06), 0.07), BASE_MASS, GREY)
    # Standard convention: a link's row of the table lies between its joint and the next one's.
    position, quaternion = [0.0, 0.0, 0.0], [np.cos(BASE_YAW / 2), 0, 0, np.sin(BASE_YAW / 2)]
    parent = base
    for i, shape in enumerate(_SHAPES):
        name = f"ur5e_link{i + 1}"
        link = parent.add_body(name=name, pos=position, quat=quaternion, gravcomp=1.0)
        link.add_joint(
            name=UR5E.joint_names[i],
            axis=[0, 0, 1],
            range=[UR5E.position_min[i], UR5E.position_max[i]],
            armature=ARMATURE,
            damping=[JOINT_DAMPING, 0.0, 0.0],
        )
        add_capsule(link, name, shape, LINK_MASS[i], GREY if i % 2 == 0 else DARK)
        add_servo(spec, UR5E.joint_names[i], SERVO_KP[i], SERVO_KV[i], EFFORT_MAX[i])
        position = [DH_A[i], 0.0, DH_D[i]]
        quaternion = [np.cos(DH_ALPHA[i] / 2), np.sin(DH_ALPHA[i] / 2), 0, 0]
        parent = link
    parent.add_site(name="flange", pos=position)
    GRIPPER.add_to(spec, parent, (0, 0, DH_D[-1]))
    return base


UR5E = RobotSpec(
    name="ur5e",
    joint_names=(
        "shoulder_pan_joint",
        "shoulder_lift_joint",
        "elbow_joint",
        "wrist_1_joint",
        "wrist_2_joint",
        "wrist_3_joint",
    ),
    position_min=(-2 * np.pi, -2 * np.pi, -np.pi, -2 * np.pi, -2 * np.pi, -2 * np.pi),
    position_max=(2 * np.pi, 2 * np.pi, np.pi, 2 * np.pi, 2 * np.pi, 2 * np.pi),
    velocity_max=VELOCITY_MAX,
    acceleration_max=(ACCELERATION_MAX,) * 6,
    jerk_max=(JERK_MAX,) * 6,
    effort_max=EFFORT_MAX,
    # Fingers down at (0.45, 0, 0.22) m in the base frame to 0.02 mm, elbow up: inverse kinematics, checked by a test.
    home=(-0.30073, -1.67896, 1.96754, -1.85938, -1.5708, -1.87153),
    ee_site="tcp",
    gripper_joint_names=GRIPPER.joint_names,
    gripper_width_max=2 * GRIPPER.stroke_m,
    gripper_speed_max=0.15,  # [m/s], 2F-85 manual: 20 to 150 mm/s
    gripper_force_max=GRIPPER.force_max,
    workspace_low=(0.25, -0.35, 0.005),
    workspace_high=(0.75, 0.35, 0.60),
    cameras=("front", "wrist"),
    action=end_effector_delta(),
    state_names=STATE_NAMES,
    state_units=STATE_UNITS,
    joint_states_topic="joint_states",
    trajectory_topic="scaled_joint_trajectory_controller/joint_trajectory",
    gripper_action="",  # robotiq_gripper_controller takes a knuckle's angle (0 open, 0.8 rad closed): by topic only
    velocity_bounds=velocity_bounds,
    add_to=add_to,
    add_hand=GRIPPER.add_to,
)
