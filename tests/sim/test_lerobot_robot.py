"""A LeRobot `Robot` driven by the control loop: LeRobot's interface and units, motors of the simulated SO-101."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.motors import MotorCalibration

from volar.robots import loop_state as ls
from volar.robots.body import JointCommand
from volar.robots.control_loop import ControlLoop
from volar.robots.errors import UsageError
from volar.robots.interface import ActionChunk
from volar.robots.kinematics import Arm
from volar.robots.lerobot_robot import LeRobotBody, LeRobotRobotError, open_robot, units_of
from volar.robots.policies import read_contract
from volar.robots.so101 import SO101
from volar.sim.control import ControlConfig, control

from .simulatedso101 import MOTORS, TICK_S, SimulatedSO101, SimulatedSO101Config
from .test_lerobot_policy import facts, make, write_facts

pytestmark = pytest.mark.real_time


@pytest.fixture
def description(tmp_path: Path) -> dict[str, Any]:
    """What a user writes down, and the calibration that lerobot-calibrate left."""
    entries = {
        name: {"id": i, "drive_mode": i % 2, "homing_offset": 0, "range_min": 700, "range_max": 3400 + i}
        for i, name in enumerate(MOTORS)
    }
    (tmp_path / "arm.json").write_text(json.dumps(entries))
    return {"type": "simulated_so101", "id": "arm", "calibration_dir": str(tmp_path)}


def made(description: dict[str, Any], tmp_path: Path, **changes: Any) -> SimulatedSO101:
    path = tmp_path / "robot.json"
    path.write_text(json.dumps(description | changes))
    robot: SimulatedSO101 = open_robot(path)
    robot.connect()
    return robot


@pytest.mark.parametrize("use_degrees", [True, False])
def test_the_loop_moves_the_arm_where_it_says(description: dict[str, Any], tmp_path: Path, use_degrees: bool) -> None:
    robot = made(description, tmp_path, use_degrees=use_degrees)
    body = LeRobotBody(robot, SO101, clock=lambda: robot.now_ns)
    body.exchange()
    there = robot.world.body.joint_state()
    np.testing.assert_allclose(body.joint_state().q, there.q, atol=1e-9)
    assert body.joint_state().gripper_width_m == pytest.approx(there.gripper_width_m, abs=1e-9)
    loop = ControlLoop(body, Arm(SO101), SO101.joint_action(10.0), period_s=TICK_S)
    loop.reset(robot.now_ns)
    target = np.array(SO101.home) + 0.15
    target[3] = SO101.home[3] - 0.15
    loop.push(ActionChunk(np.tile(np.append(target, 0.5), (20, 1)).astype(np.float32), robot.now_ns, 0.1), robot.now_ns)
    for _ in range(150):
        loop.tick(robot.now_ns)
        body.exchange()
    assert body.error is None
    np.testing.assert_allclose(robot.world.body.joint_state().q, target, atol=0.01)
    assert robot.world.body.joint_state().gripper_width_m == pytest.approx(0.025, abs=0.003)
    assert body.images()["front"].shape == (64, 96, 3)
    assert body.clamps == 0
    robot.disconnect()


def test_a_bus_that_fails_is_a_stale_joint_state(description: dict[str, Any], tmp_path: Path) -> None:
    robot = made(description, tmp_path)
    body = LeRobotBody(robot, SO101, clock=lambda: robot.now_ns)
    body.exchange()
    loop = ControlLoop(body, Arm(SO101), SO101.joint_action(10.0), period_s=TICK_S)
    loop.reset(robot.now_ns)
    robot.broken = ConnectionError("Incorrect status packet!")
    reasons = []
    for _ in range(20):
        body.exchange()
        reasons.append(loop.tick(robot.now_ns).reason)
    assert str(body.error) == "Incorrect status packet!"
    assert reasons[-1] == ls.STALE_JOINT_STATE
    robot.broken = None
    body.exchange()
    assert body.error is None
    assert loop.tick(robot.now_ns).mode == ls.STOPPED  # until somebody says recover
    robot.disconnect()


def test_a_target_that_the_robot_cut_is_reported(description: dict[str, Any], tmp_path: Path) -> None:
    robot = made(description, tmp_path, max_relative_target=1.0)
    body = LeRobotBody(robot, SO101, clock=lambda: robot.now_ns)
    body.exchange()
    q = body.joint_state().q
    q[0] += 0.1
    body.send(JointCommand(q, np.zeros(5), np.zeros(5), body.joint_state().gripper_width_m))
    body.exchange()
    assert body.clamps == 1
    assert body.clamp is not None
    assert body.clamp.joint == "shoulder_pan.pos"
    assert body.clamp.asked - body.clamp.sent == pytest.approx(np.degrees(0.1) - 1.0, abs=0.1)
    robot.disconnect()


def test_unknown_units_are_refused(description: dict[str, Any], tmp_path: Path) -> None:
    robot = made(description, tmp_path)
    robot.calibration = {}
    with pytest.raises(LeRobotRobotError, match="lerobot-calibrate"):
        units_of(robot, SO101)
    robot.calibration = {"gripper": MotorCalibration(1, 0, 0, 0, 4095)}
    with pytest.raises(Exception, match="lacks shoulder_pan"):
        units_of(robot, SO101)
    del robot.config.use_degrees, SimulatedSO101Config.use_degrees
    try:
        with pytest.raises(LeRobotRobotError, match="use_degrees"):
            units_of(robot, SO101)
    finally:
        SimulatedSO101Config.use_degrees = True
    robot.disconnect()


def test_a_description_that_is_wrong_is_named(description: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LeRobotRobotError, match=r"unknown type 'so1001'.*so101_follower"):
        made(description, tmp_path, type="so1001")
    with pytest.raises(LeRobotRobotError, match=r"robot\.json"):
        made(description, tmp_path, baud=9600)


def test_a_lerobot_policy_on_a_lerobot_robot(description: dict[str, Any], tmp_path: Path) -> None:
    """Both directions at once, in real time, through the verb; the arm rests before it is disconnected."""
    write_facts(facts(make(tmp_path / "act")))
    (tmp_path / "robot.json").write_text(json.dumps(description))
    told: dict[str, Any] = {"instruction": "reach", "duration_s": 1.0, "output": tmp_path / "out"}
    SimulatedSO101.log.clear()
    policy = f"lerobot:{tmp_path / 'act'}"
    result = control(ControlConfig(policy, "lerobot/so101", lerobot_robot=tmp_path / "robot.json", **told))
    assert result["ticks"] == 100
    assert min(result["margins"].values()) >= 0
    assert ls.TRACKING_ERROR not in result["holds"]  # a busy machine may be late with a state or a frame; then it stops
    assert SimulatedSO101.log == ["disconnected at rest"]
    again = told | {"output": tmp_path / "again"}
    smaller = made(description, tmp_path, size=[32, 32])
    with pytest.raises(LeRobotRobotError, match=r"camera front: policy wants 96x64, .* 32x32"):
        LeRobotBody(smaller, SO101).require_cameras(read_contract(tmp_path / "act"))
    smaller.disconnect()
    with pytest.raises(UsageError, match="seed: for simulated arms only, not for robot=lerobot/so101"):
        control(ControlConfig(policy, "lerobot/so101", lerobot_robot=tmp_path / "robot.json", seed=3, **again))
    with pytest.raises(UsageError, match="lerobot_robot="):
        control(ControlConfig(policy, "lerobot/so101", **again))
