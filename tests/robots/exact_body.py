"""A body that does exactly what it is told, and what tests of the control loop do with it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from volar.robots.action_space import ActionSpec
from volar.robots.body import JointCommand, JointState
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.control_loop import ControlLoop, TickReport
from volar.robots.fr3 import FR3
from volar.robots.in_process_source import InProcessSource
from volar.robots.interface import ActionChunk, Observation
from volar.robots.kinematics import Arm
from volar.robots.spec import RobotSpec

TICK_NS = 10_000_000
STEP_NS = 100_000_000
HOME = np.array(FR3.home)
CONTRACT = PolicyContract(
    robot="fr3",
    action=FR3.action,
    state_names=FR3.state_names,
    state_units=FR3.state_units,
    cameras=(CameraSpec("front", 8, 8),),
    chunk_length=8,
    execute_steps=4,
)


class ExactBody:
    """Integrates commands exactly; time stands still unless the test moves it."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.state = JointState(HOME, np.zeros(7), 0.08, 0)
        self.reported: JointState | None = None  # in place of the state, when a test breaks the sensor
        self.sent: list[JointCommand] = []
        self.looks = 0

    @property
    def spec(self) -> RobotSpec:
        return FR3

    def joint_state(self) -> JointState:
        return self.reported or replace(self.state, stamp_ns=self.now_ns)

    def images(self) -> Mapping[str, NDArray[np.uint8]]:
        self.looks += 1
        return {name: np.full((8, 8, 3), self.looks % 256, np.uint8) for name in FR3.cameras}

    def send(self, command: JointCommand) -> None:
        self.sent.append(command)
        self.state = JointState(command.q, command.dq, command.gripper_width_m, self.now_ns)


class Along:
    """A policy that moves by `step` each action, and remembers what it was asked."""

    def __init__(self, step: Callable[[Observation], list[float]]) -> None:
        self.step = step
        self.asked: list[Observation] = []
        self.seeds: list[int] = []

    @property
    def contract(self) -> PolicyContract:
        return CONTRACT

    def reset(self, seed: int) -> None:
        self.seeds.append(seed)

    def predict(self, observation: Observation) -> ActionChunk:
        self.asked.append(observation)
        actions = np.tile(np.array(self.step(observation), np.float32), (8, 1))
        return ActionChunk(actions, observation.stamp_ns, 0.1)


def run(loop: ControlLoop, body: ExactBody, ticks: int) -> list[TickReport]:
    reports = []
    for _ in range(ticks):
        reports.append(loop.tick(body.now_ns))
        body.now_ns += TICK_NS
    return reports


def check_limits(commands: list[JointCommand]) -> None:
    """Finite differences of the positions sent, from rest at home, against the robot's limits."""
    q, period_s = np.array([HOME] * 3 + [c.q for c in commands]), TICK_NS / 1e9
    velocity = np.diff(q, axis=0) / period_s
    lower, upper = np.array([FR3.velocity_bounds(row) for row in q[1:]]).swapaxes(0, 1)
    assert ((velocity >= lower) & (velocity <= upper)).all()
    for order, limits in ((2, FR3.acceleration_max), (3, FR3.jerk_max)):
        assert (np.abs(np.diff(q, order, axis=0)) / period_s**order <= limits).all()


def pushed(arm: Arm, action: ActionSpec = FR3.action) -> tuple[ControlLoop, ExactBody]:
    body = ExactBody()
    loop = ControlLoop(body, arm, action)
    loop.reset(0)
    return loop, body


def policy_loop(arm: Arm, policy: Along, latency_s: float = 0.0) -> tuple[ControlLoop, ExactBody, InProcessSource]:
    body, source = ExactBody(), InProcessSource(policy, latency_s)
    loop = ControlLoop.for_policy(body, arm, CONTRACT, source)
    loop.set_instruction("lift the red block")
    loop.reset(0)
    return loop, body, source
