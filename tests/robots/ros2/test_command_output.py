"""What goes out besides the arm's commands: when a gripper's action gets a goal, and who must be there to hear."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy")

from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from volar.robots.errors import VolarError
from volar.robots.fr3 import FR3
from volar.robots.ros2.command_output import GOAL_S, REST_M, STEP_M, CommandOutput, GoalSteps
from volar.robots.ros2.parameters import NodeSettings
from volar.robots.ur5e import UR5E

PERIOD_S = 0.01
EVERY = round(GOAL_S / PERIOD_S)


@pytest.fixture
def node(network: SimpleNamespace) -> Iterator[Any]:
    node = LifecycleNode("output")
    yield node
    node.destroy_node()


@given(st.lists(st.floats(-0.001, 0.001), max_size=200))
def test_goals_follow_a_width_and_end_where_it_rests(changes_m: list[float]) -> None:
    """Also one that never rests; never more often than every `GOAL_S`."""
    steps, width_m, told = GoalSteps(PERIOD_S), 0.04, list[tuple[int, float]]()
    for i, change_m in enumerate([*changes_m, *[0.0] * (EVERY + 1)]):
        width_m += change_m
        if steps.due(width_m):
            told.append((i, width_m))
        assert abs(width_m - told[-1][1]) < STEP_M + EVERY * 0.001  # a step, and what it moved in the time between
    assert told[0] == (0, 0.04 + (changes_m or [0.0])[0])
    assert all(later[0] - earlier[0] >= EVERY for earlier, later in pairwise(told))
    assert abs(told[-1][1] - width_m) < REST_M


def test_a_goal_that_was_lost_is_due_again() -> None:
    steps = GoalSteps(PERIOD_S)
    assert steps.due(0.04)
    steps.lost()
    assert [steps.due(0.04) for _ in range(EVERY + 1)] == [False] * (EVERY - 1) + [True, False]


def test_it_waits_for_the_grippers_subscriber_too(network: SimpleNamespace, node: Any) -> None:
    output = CommandOutput(node, FR3, NodeSettings(gripper_output="topic"), lambda topic, text: None)
    gripper = "a subscriber of /gripper_controller/commands"
    assert output.waits_for == (f"a subscriber of /{FR3.trajectory_topic}", gripper)
    with network.client() as client:
        client.node.create_subscription(JointTrajectory, FR3.trajectory_topic, print, 10)
        client.until(lambda: output.waits_for == (gripper,))
        client.node.create_subscription(Float64MultiArray, "gripper_controller/commands", print, 10)
        client.until(lambda: output.waits_for == ())
    output.close()


@pytest.mark.parametrize("wrong", [{"gripper_output": "action"}, {"gripper_action": "robotiq/gripper_cmd"}])
def test_the_ur5es_gripper_is_not_told_widths_as_angles(node: Any, wrong: dict[str, Any]) -> None:
    """Whether control_msgs is installed or not: by topic, or not at all."""
    with pytest.raises(VolarError, match=r"an angle of its knuckle.*use gripper_output=topic"):
        CommandOutput(node, UR5E, replace(NodeSettings(), **wrong), lambda topic, text: None)
    for fine in ({}, wrong | {"gripper_output": "topic"}):  # a file may go on naming what is not used
        output = CommandOutput(node, UR5E, NodeSettings(**fine), lambda topic, text: None)
        assert "a subscriber of /gripper_controller/commands" in output.waits_for
        output.close()
