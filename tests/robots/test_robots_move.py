"""Each robot in real physics, driven through the control loop: straight lines, and a block held and lifted."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from volar.robots.control_loop import ControlLoop
from volar.robots.interface import ActionChunk
from volar.robots.kinematics import Arm, rotation_vector
from volar.robots.spec import RobotSpec, load_robot
from volar.sim.sim_robot import SimRobot

Vector = NDArray[np.float64]
DOWN = np.diag([1.0, -1.0, -1.0])
PERIOD_S = 0.01


@dataclass(frozen=True)
class Table:
    """Where a robot works and what it lifts there: [m], [kg], [m/s]."""

    block_half: float
    block_mass: float
    block: tuple[float, float]
    lift_to: float
    step_max: float  # of one action


TABLES = {
    "fr3": Table(0.02, 0.05, (0.5, 0.1), 0.2, 0.035),
    "ur5e": Table(0.02, 0.05, (0.5, 0.1), 0.2, 0.035),
    "so101": Table(0.011, 0.05 * 0.55**3, (0.22, 0.05), 0.085, 0.019),
}


class Seen(NamedTuple):
    """One control period: the tip and where its command puts it (3,) [m], its tilt, why it held, if it did."""

    tcp: Vector
    commanded: Vector
    tilt_deg: float
    reason: str | None


class Rig:
    """A robot at home above a table with one block, and its control loop."""

    def __init__(self, name: str, yaw: float = 0.3, offset: float = 0.0) -> None:
        self.spec: RobotSpec = load_robot(name)
        self.table = TABLES[name]
        self.model = self._model(yaw, offset)
        self.data: Any = mujoco.MjData(self.model)
        for joint, value in zip(self.spec.joint_names, self.spec.home, strict=True):
            self.data.joint(joint).qpos[0] = self.data.actuator(joint).ctrl[0] = value
        opened = self.spec.finger_positions(self.spec.gripper_width_max)
        for joint, value in zip(self.spec.gripper_joint_names, opened, strict=True):
            self.data.joint(joint).qpos[0] = value
        self.data.actuator("gripper").ctrl[0] = self.spec.gripper_width_max
        mujoco.mj_forward(self.model, self.data)
        self.body = SimRobot(self.spec, self.model, self.data, {})
        self.loop = ControlLoop(self.body, Arm(self.spec), self.spec.action, period_s=PERIOD_S)
        self.loop.reset(0)

    def _model(self, yaw: float, offset: float) -> Any:
        scene = mujoco.MjSpec()
        scene.option.timestep = 0.002
        scene.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        scene.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        scene.option.impratio = 10.0
        self.spec.add_to(scene)
        plane, box = mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX
        scene.worldbody.add_geom(type=plane, size=[1, 1, 0.1], conaffinity=3, friction=[0.8, 0.005, 0.0001])
        half, (x, y) = self.table.block_half, self.table.block
        block = scene.worldbody.add_body(
            name="block", pos=[x, y + offset, half], quat=[np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        )
        block.add_freejoint(name="block")
        block.add_geom(type=box, size=[half] * 3, mass=self.table.block_mass, conaffinity=3, condim=4)
        return scene.compile()

    @property
    def tcp(self) -> Vector:
        return np.array(self.data.site("tcp").xpos)

    @property
    def tilt_deg(self) -> float:
        turn = rotation_vector(self.data.site("tcp").xmat.reshape(3, 3) @ DOWN.T)
        return float(np.rad2deg(np.linalg.norm(turn)))

    @property
    def block_from_tcp(self) -> Vector:
        return np.array(self.data.body("block").xpos) - self.tcp

    def step(self, displacement: Vector, gripper: float) -> list[Seen]:
        """One action of 0.1 s."""
        action = np.array([[*displacement, 0.0, 0.0, 0.0, gripper]], np.float32)
        assert self.loop.push(ActionChunk(action, self.body.now_ns, 0.1), self.body.now_ns) is None
        seen = []
        for _ in range(10):
            report = self.loop.tick(self.body.now_ns)
            self.body.advance(PERIOD_S)
            commanded = self.loop.arm.forward(report.command.q).position
            seen.append(Seen(self.tcp, commanded, self.tilt_deg, report.reason))
        return seen

    def go(self, goal: Vector, gripper: float, steps: int = 40) -> None:
        for _ in range(steps):
            way = 0.5 * (goal - self.tcp)
            self.step(way * min(1.0, self.table.step_max / max(float(np.linalg.norm(way)), 1e-9)), gripper)


@pytest.mark.parametrize(
    ("name", "start", "velocity"),
    [
        ("fr3", (0.45, -0.1, 0.05), (0.0, 0.1, 0.0)),
        ("ur5e", (0.45, -0.1, 0.05), (0.0, 0.1, 0.0)),
        ("ur5e", (0.45, 0.1, 0.05), (0.1, 0.0, 0.0)),
        ("so101", (0.2, -0.05, 0.03), (0.0, 0.1, 0.0)),
        ("so101", (0.16, 0.05, 0.03), (0.1, 0.0, 0.0)),
        ("so101", (0.2, 0.05, 0.08), (0.0, 0.0, -0.07)),
    ],
)
def test_a_straight_line_with_fingers_down(name: str, start: tuple[float, ...], velocity: tuple[float, ...]) -> None:
    rig = Rig(name)
    rig.go(np.array(start), 1.0)
    np.testing.assert_allclose(rig.tcp, start, atol=1e-3)
    begin, along = rig.tcp, np.array(velocity) / np.linalg.norm(velocity)
    seen = [row for _ in range(10) for row in rig.step(np.array(velocity) * 0.1, 1.0)]
    offsets = np.array([row.tcp for row in seen]) - begin
    aside = np.linalg.norm(offsets - np.outer(offsets @ along, along), axis=1)
    assert aside.max() < 2e-3
    assert max(row.tilt_deg for row in seen) < 1.0
    assert {row.reason for row in seen} == {None}
    travelled = float(offsets[-1] @ along)
    assert travelled == pytest.approx(float(np.linalg.norm(velocity)), abs=6e-3)  # the filter lags by v^2 / 2a


@pytest.mark.parametrize("yaw", [0.0, 0.3])
@pytest.mark.parametrize("name", TABLES)
def test_a_block_is_gripped_lifted_held_and_let_go(name: str, yaw: float) -> None:
    rig = Rig(name, yaw)
    half, place = rig.table.block_half, np.array(rig.table.block)
    rest = np.array(rig.data.body("block").xpos)
    rig.go(np.array([*place, 3 * half]), 1.0)
    rig.go(np.array([*place, half]), 1.0, steps=20)
    # Coming down moves nothing.
    np.testing.assert_allclose(rig.data.body("block").xpos, rest, atol=5e-4)
    for _ in range(8):
        rig.step(np.zeros(3), 0.0)
    assert rig.body.joint_state().gripper_width_m == pytest.approx(2 * half, abs=0.15 * half)
    held = rig.block_from_tcp
    rig.go(np.array([*place, rig.table.lift_to]), 0.0)
    lifted = rig.block_from_tcp
    assert rig.data.body("block").xpos[2] > rig.table.lift_to - 0.3 * half
    np.testing.assert_allclose(lifted, held, atol=0.15 * half)
    for _ in range(20):
        rig.step(np.zeros(3), 0.0)
    np.testing.assert_allclose(rig.block_from_tcp, lifted, atol=2e-4)  # does not creep out in 2 s
    for _ in range(10):
        rig.step(np.zeros(3), 1.0)
    assert rig.data.body("block").xpos[2] < 1.2 * half
    for _ in range(10):
        rig.step(np.zeros(3), 0.0)
    assert rig.body.joint_state().gripper_width_m < 0.003  # closed on nothing: no block is held


@pytest.mark.parametrize("name", TABLES)
def test_the_body_follows_its_commands(name: str) -> None:
    """There and back at the expert's speed: the tip is within 2 mm of where the command of that period puts it."""
    rig = Rig(name)
    seen = [
        row
        for sign in (1.0, -1.0)
        for _ in range(5)
        for row in rig.step(np.array([0, sign * rig.table.step_max, 0]), 1.0)
    ]
    assert max(float(np.linalg.norm(row.tcp - row.commanded)) for row in seen) < 2e-3
    assert max(row.tcp[1] for row in seen) > 3 * rig.table.step_max
    np.testing.assert_allclose(rig.tcp, seen[0].tcp, atol=0.5 * rig.table.step_max)


def test_so101_straightens_again_when_it_comes_down() -> None:
    """Above 0.09 m its wrist's limit tilts the fingers, but the position is kept and the tilt does not stay."""
    rig = Rig("so101")
    for height, tilted in ((0.11, True), (0.05, False)):
        goal = np.array([0.2, 0.0, height])
        rig.go(goal, 1.0)
        np.testing.assert_allclose(rig.tcp, goal, atol=2e-3)
        assert (rig.tilt_deg > 2.0) == tilted
    assert rig.tilt_deg < 0.5
