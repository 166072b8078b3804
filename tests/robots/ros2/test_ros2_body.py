"""The robot behind its topics: joints by name, images of one moment, stamps on the loop's clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volar.robots.fr3 import FR3
from volar.robots.ros2.clocks import on_loop_clock
from volar.robots.ros2.ros2_body import NotReady, Ros2Body

MS = 1_000_000
NAMES = (*FR3.joint_names, *FR3.gripper_joint_names)
BLACK = np.zeros((4, 4, 3), np.uint8)


def body(*cameras: str, sync_s: float = 0.05) -> Ros2Body:
    return Ros2Body(FR3, dict.fromkeys(cameras, (4, 4)), lambda command: None, sync_s)


def tell(robot: Ros2Body, order: list[int], stamp_ns: int = 0, extra: tuple[str, ...] = ()) -> None:
    """Joint i is at i, moves at -i; fingers at 0.01."""
    names = [NAMES[i] for i in order] + list(extra)
    positions = [float(i) if i < 7 else 0.01 for i in order] + [99.0] * len(extra)
    robot.on_joint_state(names, positions, [-float(i) for i in order] + [99.0] * len(extra), stamp_ns)


@given(st.permutations(range(9)), st.booleans())
def test_joints_are_found_by_name(order: list[int], stranger: bool) -> None:
    robot = body()
    tell(robot, order, 5, ("somebody_else",) if stranger else ())
    state = robot.joint_state()
    assert state.q.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert state.dq.tolist() == [0, -1, -2, -3, -4, -5, -6]
    assert state.gripper_width_m == pytest.approx(0.02)
    assert state.stamp_ns == 5


def test_arm_and_gripper_may_come_apart_and_the_oldest_arm_joint_counts() -> None:
    robot = body()
    tell(robot, [7, 8], 1)
    assert "joint fr3_joint1" in robot.waits_for
    with pytest.raises(NotReady):
        robot.joint_state()
    tell(robot, [0, 1, 2], 2)
    tell(robot, [3, 4, 5, 6], 3)
    assert robot.joint_state().stamp_ns == 2
    assert robot.waits_for == ()


def test_a_message_that_is_cut_short_or_of_another_robot_changes_nothing() -> None:
    robot = body()
    tell(robot, list(range(9)), 1)
    robot.on_joint_state(list(NAMES), [0.0] * 3, [], 2)
    assert "9 names and 3 positions" in robot.problems["joint_states"]
    robot.on_joint_state(["wheel"], [1.0], [], 3)
    assert robot.joint_state().stamp_ns == 1


def test_images_are_of_one_moment_with_the_joints_of_that_moment() -> None:
    robot = body("front", "wrist")
    with pytest.raises(NotReady, match="camera front, wrist"):
        robot.images()
    for i in range(20):
        robot.on_joint_state(list(NAMES), [float(i)] * 9, [], 10 * i * MS)
    for i in (100, 133, 166):
        robot.on_image("front", BLACK + i, i * MS)
    robot.on_image("wrist", BLACK + 131, 131 * MS)  # the slower camera
    images = robot.images()
    assert images["front"][0, 0, 0] == 133
    assert images["wrist"][0, 0, 0] == 131
    taken = robot.taken()
    assert taken.stamp_ns == 131 * MS
    assert taken.q[0] == 13


def test_images_that_lie_apart_make_no_observation() -> None:
    robot = body("front", "wrist", sync_s=0.02)
    tell(robot, list(range(9)))
    robot.on_image("front", BLACK, 100 * MS)
    robot.on_image("wrist", BLACK, 125 * MS)
    with pytest.raises(NotReady, match="25 ms apart, camera_sync_s allows 20"):
        robot.images()
    robot.on_image("front", BLACK, 140 * MS)
    assert set(robot.images()) == {"front", "wrist"}


def test_an_older_frame_does_not_replace_a_newer_one_and_forgetting_waits_again() -> None:
    robot = body("front")
    robot.on_image("front", BLACK, 10)
    robot.on_image("front", BLACK + 1, 5)
    assert robot.image_stamps() == {"front": 10}
    robot.forget()
    assert "camera front" in robot.waits_for
    assert robot.image_stamps() == {}


@given(st.integers(1, 10**18), st.integers(-(10**9), 10**10), st.integers(10**11, 10**12))
def test_stamps_are_as_old_as_their_header_says_and_never_of_the_future(ros: int, age: int, loop: int) -> None:
    stamp = on_loop_clock(max(1, ros - age), ros, loop)
    assert stamp <= loop
    assert stamp == loop - max(0, ros - max(1, ros - age))


def test_a_header_without_a_stamp_counts_as_of_now() -> None:
    assert on_loop_clock(0, 10**18, 123) == 123
