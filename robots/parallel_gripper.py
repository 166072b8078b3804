"""A hand with two fingers that slide apart, built from primitives: the Franka Hand, and a stand-in for others."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from volar.robots.primitives import DARK, PAD, WHITE, Point, add_width_servo, couple

if TYPE_CHECKING:
    import mujoco


@dataclass(frozen=True)
class ParallelGripper:
    """Sizes in the hand's frame: z along the fingers, which open along y; its origin is on the flange.

    `yaw`: of the hand about the flange's z [rad]. `palm`: centre and half sizes of a box [m]. `tcp_m`: flange to
    the point between the fingertips, 0.045 m beyond `fingers_m`, where the fingers start. `camera`: position of
    the wrist camera, which looks along the fingers from in front of the hand; 0.0834 m behind the tool centre
    point the fingertips are in the lower half of its image. `stroke_m`: of each finger. Masses [kg], force [N].
    """

    name: str
    joint_names: tuple[str, str]
    yaw: float
    palm: tuple[Point, Point]
    tcp_m: float
    fingers_m: float
    camera: Point
    stroke_m: float
    mass: float
    finger_mass: float
    force_max: float

    def add_to(self, spec: "mujoco.MjSpec", flange: Any, position: Point) -> None:
        """Adds hand, fingers, site `tcp`, camera `wrist` and actuator `gripper`; the flange is at `position`."""
        import mujoco

        hand = flange.add_body(
            name=self.name, pos=position, quat=[np.cos(self.yaw / 2), 0, 0, np.sin(self.yaw / 2)], gravcomp=1.0
        )
        box = mujoco.mjtGeom.mjGEOM_BOX
        centre, half = self.palm
        hand.add_geom(name=self.name, type=box, pos=centre, size=half, mass=self.mass, rgba=WHITE)
        hand.add_site(name="tcp", pos=[0, 0, self.tcp_m], size=[0.005, 0.005, 0.005], rgba=[0, 0, 0, 0])
        hand.add_camera(name="wrist", pos=self.camera, xyaxes=[0, 1, 0, 0.94, 0, 0.34], fovy=74)
        for name, side in zip(self.joint_names, (1.0, -1.0), strict=True):
            self._add_finger(hand, name, side)
        couple(spec, self.joint_names)
        add_width_servo(spec, dict.fromkeys(self.joint_names, 1.0), 2 * self.stroke_m, self.force_max)

    def _add_finger(self, hand: Any, name: str, side: float) -> None:
        import mujoco

        box = mujoco.mjtGeom.mjGEOM_BOX
        finger = hand.add_body(name=name.replace("joint", ""), pos=[0, 0, self.fingers_m], gravcomp=1.0)
        finger.add_joint(
            name=name,
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[0, side, 0],
            range=[0, self.stroke_m],
            armature=0.1,
            damping=[10.0, 0.0, 0.0],
        )
        finger.add_geom(
            type=box, pos=[0, side * 0.012, 0.012], size=[0.01, 0.008, 0.014], mass=self.finger_mass / 3, rgba=DARK,
            contype=0, conaffinity=0,
        )  # fmt: skip
        finger.add_geom(
            name=f"{name}_pad",
            type=box,
            pos=[0, side * 0.006, 0.036],
            size=[0.011, 0.006, 0.018],
            mass=self.finger_mass * 2 / 3,
            rgba=DARK,
            **PAD,
        )
