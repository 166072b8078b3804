"""SO-ARM101: a 5-joint hobby arm with one moving jaw, built from primitives on its real kinematics.

Joint origins, masses and axes: TheRobotStudio SO-ARM100, `Simulation/SO101/so101_new_calib.urdf`; its frames
turn by multiples of 90 deg, so that they are written as axes here. `wrist_roll` is zero in the middle of its
range, as LeRobot calibrates it, 0.0487 rad below the URDF's zero; the jaw is zero where it is closed.

Five joints reach a position and, with the fingers vertical, any yaw: an orientation that tilts them sideways
is out of reach. Real servos are softer than the ones here and sag: the simulated arm is stiff and its gravity is
compensated, like the FR3's, so that one expert and one policy interface serve all robots.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from volar.robots.action_space import end_effector_delta
from volar.robots.primitives import (
    DARK,
    GREY,
    PAD,
    WHITE,
    Capsule,
    Point,
    add_capsule,
    add_servo,
    add_width_servo,
)
from volar.robots.spec import STATE_NAMES, STATE_UNITS, RobotSpec, Vector

if TYPE_CHECKING:
    import mujoco

# Each link's frame in the one before: origin [m], then its x and y axes. Joints turn about z. The last frame, the
# flange, has z along the fingers and y in the direction in which the jaw opens; the URDF's is the same upside down,
# so that its joint turns about -z.
_FRAMES: tuple[tuple[Point, tuple[float, ...]], ...] = (
    ((0.0388353, 0.0, 0.0624), (-1, 0, 0, 0, 1, 0)),
    ((-0.0303992, -0.0182778, -0.0542), (0, 0, 1, 1, 0, 0)),
    ((-0.11257, -0.028, 0.0), (0, 1, 0, -1, 0, 0)),
    ((-0.1349, 0.0052, 0.0), (0, -1, 0, 1, 0, 0)),
    ((0.0, -0.0611, 0.0181), (0, 0, 1, -1, 0, 0)),
)
_AXES = (1.0, 1.0, 1.0, 1.0, -1.0)
_SHAPES: tuple[Capsule, ...] = (
    ((0, 0, -0.005), (-0.03, 0, -0.0542), 0.024),
    ((0, 0, 0.0183), (-0.11257, -0.028, 0.0183), 0.018),
    ((0, 0, 0.0183), (-0.1349, 0.0052, 0.0183), 0.016),
    ((0, 0, 0.0181), (0, -0.05, 0.0181), 0.016),
    ((0, 0, 0.0), (0, 0, 0.012), 0.014),
)
BASE_MASS = 0.147  # [kg]
LINK_MASS = (0.100006, 0.103, 0.104, 0.079, 0.03)  # [kg]
HAND_MASS, JAW_MASS = 0.087 - LINK_MASS[-1], 0.012  # [kg]; the URDF's gripper_link is last link and fixed jaw in one

ARMATURE = 0.028  # [kg m^2], STS3215; sources differ: another identifies 0.11
JOINT_DAMPING = 0.6  # [Nm s/rad], `Simulation/SO101/joints_properties.xml`
SERVO_KP, SERVO_KV = 400.0, 16.0  # [Nm/rad], [Nm s/rad]: 20 rad/s^2 of 0.07 kg m^2 bend a joint by 3.5 mrad
EFFORT_MAX = 2.94  # [Nm], STS3215 at 12 V, stall
VELOCITY_MAX = 4.7  # [rad/s], the same servo without load
# No limits are published. Derived from torque: with the arm stretched out, 20 rad/s^2 of all joints at once ask the
# shoulder for 1.3 Nm beside 0.8 Nm of gravity, of its 2.9 (mass matrix of this model). Jerk: that acceleration is
# built up in two periods of a 100 Hz bus.
ACCELERATION_MAX, JERK_MAX = 20.0, 1000.0  # [rad/s^2], [rad/s^3]

# The hand in the flange's frame. The URDF puts the tip of the fixed jaw and the jaw's hinge here:
FIXED_FACE_Y, TIP_Z = -0.0079, 0.0981  # [m]
HINGE = (0.0, 0.0202, 0.0234)  # [m]
# A block of 0.022 m turned by 0.3 rad is 0.0275 m wide: with its centre at the tool centre point the fixed jaw passes
# it by 0.7 mm, and closing pushes it 3.5 mm against that jaw.
TCP_Y = FIXED_FACE_Y + 0.0145
TCP_Z = TIP_Z - 0.006  # so that the tips stay 5 mm off the table at a block's centre
GRIPPED_M = 0.022  # the opening at which the jaws are parallel
JAW_M = float(np.hypot(FIXED_FACE_Y + GRIPPED_M - HINGE[1], TCP_Z - HINGE[2]))  # from the hinge to the tip: 0.075 m
OPENING_MAX = 0.05  # [m], what the tasks need; the real jaw opens to 0.13 m, too wide among neighbouring blocks
GRIP_FORCE = 0.25 * EFFORT_MAX / JAW_M  # [N], 9.8; LeRobot limits the gripper's servo to a quarter of its torque
JAW_DAMPING = 0.3  # [Nm s/rad]: closes at 0.1 m/s and does not throw an 8 g block about
_SOLREF = [0.004, 1.0]  # stiffer than the FR3's fingers: contact gives way the more, the lighter the block
_JAW_RANGE = OPENING_MAX / JAW_M + 0.02  # [rad]
_THICK, _WIDE = 0.0035, 0.005  # [m] half sizes of the fingers along y and x


def velocity_bounds(q: Vector) -> tuple[Vector, Vector]:
    """Velocity limits at a position: q (5,) [rad] -> lower (5,), upper (5,) [rad/s]; the same everywhere."""
    limit = np.full(len(q), VELOCITY_MAX)
    return -limit, limit


def add_to(spec: "mujoco.MjSpec") -> Any:
    """Adds the arm, hand, wrist camera, `flange` and `tcp` sites and actuators; returns the base body.

    Actuators: one position servo a joint, then `gripper`, whose control is the opening at the
    fingertips [m]. Gravity is compensated on every link.
    """
    spec.compiler.degree = False
    base = spec.worldbody.add_body(name="so101_base")
    add_capsule(base, "so101_base", ((-0.03, 0, 0.03), (0.035, 0, 0.03), 0.028), BASE_MASS, WHITE)
    parent = base
    for i, (origin, axes) in enumerate(_FRAMES):
        link = parent.add_body(name=f"so101_link{i + 1}", pos=origin, xyaxes=axes, gravcomp=1.0)
        link.add_joint(
            name=SO101.joint_names[i],
            axis=[0, 0, _AXES[i]],
            range=[SO101.position_min[i], SO101.position_max[i]],
            armature=ARMATURE,
            damping=[JOINT_DAMPING, 0.0, 0.0],
        )
        add_capsule(link, f"so101_link{i + 1}", _SHAPES[i], LINK_MASS[i], WHITE if i % 2 == 0 else GREY)
        add_servo(spec, SO101.joint_names[i], SERVO_KP, SERVO_KV, EFFORT_MAX)
        parent = link
    parent.add_site(name="flange")
    add_hand(spec, parent, (0, 0, 0))
    return base


def add_hand(spec: "mujoco.MjSpec", flange: Any, position: Point) -> None:
    """Adds the fixed and the moving jaw, site `tcp`, camera `wrist` and actuator `gripper`."""
    hand = flange.add_body(name="so101_hand", pos=position, gravcomp=1.0)
    _add_box(hand, "so101_hand", (0, 0.004, 0.024), (0.016, 0.02, 0.022), HAND_MASS * 0.8, WHITE)
    _add_finger(hand, "so101_fixed_jaw", FIXED_FACE_Y - _THICK, 0.0, HAND_MASS * 0.2)
    hand.add_site(name="tcp", pos=[0, TCP_Y, TCP_Z], size=[0.003, 0.003, 0.003], rgba=[0, 0, 0, 0])
    # Looks along the fingers from in front of the hand; the fingertips are in the lower half of the image.
    hand.add_camera(name="wrist", pos=[0.05, TCP_Y, TCP_Z - 0.06], xyaxes=[0, 1, 0, 0.94, 0, 0.34], fovy=74)
    # The frame of the jaw is parallel to the hand's where it holds a block of that size; zero is that much further in.
    half = GRIPPED_M / JAW_M / 2
    jaw = hand.add_body(name="so101_jaw", pos=HINGE, quat=[np.cos(half), np.sin(half), 0, 0], gravcomp=1.0)
    jaw.add_joint(
        name=SO101.gripper_joint_names[0],
        axis=[-1, 0, 0],
        range=[0, _JAW_RANGE],
        armature=ARMATURE,
        damping=[JAW_DAMPING, 0.0, 0.0],
    )
    _add_finger(jaw, "so101_moving_jaw", FIXED_FACE_Y + GRIPPED_M + _THICK - HINGE[1], HINGE[2], JAW_MASS)
    add_width_servo(spec, {SO101.gripper_joint_names[0]: JAW_M}, OPENING_MAX, GRIP_FORCE)


def _add_finger(body: Any, name: str, y: float, base_z: float, mass: float) -> None:
    """A finger at `y` of a body that is at `base_z` of the hand [m]: an arm, and the pad that holds things."""
    pad, top = (0.068, TIP_Z), 0.03
    _add_box(body, name, (0, y, (top + pad[0]) / 2 - base_z), (_WIDE, _THICK, (pad[0] - top) / 2), mass / 2, DARK)
    size = (_WIDE, _THICK, (pad[1] - pad[0]) / 2)
    _add_box(body, f"{name}_pad", (0, y, sum(pad) / 2 - base_z), size, mass / 2, DARK, **{**PAD, "solref": _SOLREF})


def _add_box(body: Any, name: str, pos: Point, size: Point, mass: float, rgba: list[float], **options: Any) -> None:
    import mujoco

    body.add_geom(name=name, type=mujoco.mjtGeom.mjGEOM_BOX, pos=pos, size=size, mass=mass, rgba=rgba, **options)


SO101 = RobotSpec(
    name="so101",
    joint_names=("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll"),
    position_min=(-1.91986, -1.74533, -1.69, -1.65806, -2.79252),
    position_max=(1.91986, 1.74533, 1.69, 1.65806, 2.79252),
    velocity_max=(VELOCITY_MAX,) * 5,
    acceleration_max=(ACCELERATION_MAX,) * 5,
    jerk_max=(JERK_MAX,) * 5,
    effort_max=(EFFORT_MAX,) * 5,
    # Fingers down at (0.20, 0, 0.085) m in the base frame to 0.02 mm: inverse kinematics, checked by a test.
    home=(-0.04203, -0.27811, 0.27464, 1.57427, -1.61283),
    ee_site="tcp",
    gripper_joint_names=("gripper",),
    gripper_width_max=OPENING_MAX,
    gripper_speed_max=0.15,  # [m/s] at the tip, 2 rad/s, less than half of the servo's speed
    gripper_force_max=GRIP_FORCE,
    workspace_low=(0.10, -0.17, 0.003),
    workspace_high=(0.33, 0.17, 0.30),
    cameras=("front", "wrist"),
    action=end_effector_delta(),
    state_names=STATE_NAMES,
    state_units=STATE_UNITS,
    joint_states_topic="joint_states",
    trajectory_topic="joint_trajectory_controller/joint_trajectory",
    gripper_action="gripper_controller/gripper_cmd",
    velocity_bounds=velocity_bounds,
    add_to=add_to,
    add_hand=add_hand,
    # Position first: where the wrist's limit (above 0.09 m) keeps the fingers from pointing straight down, they tilt.
    orientation_m=0.03,
    gripper_m_per_unit=JAW_M,
)
