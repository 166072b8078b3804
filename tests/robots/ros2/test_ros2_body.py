"""The robot behind its topics: joints by name, images of one moment, stamps on the loop's clock."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volar.robots.fr3 import FR3
from volar.robots.ros2.clocks import SimulatedClock, on_loop_clock
from volar.robots.ros2.ros2_body import FINGERS_NS, FRAMES, NotReady, Ros2Body

MS = 1_000_000
NAMES = (*FR3.joint_names, *FR3.gripper_joint_names)
BLACK = np.zeros((4, 4, 3), np.uint8)


def body(*cameras: str, sync_s: float = 0.05, age_s: float = 0.1) -> Ros2Body:
    return Ros2Body(FR3, dict.fromkeys(cameras, (4, 4)), lambda command: None, sync_s, age_s)


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


def test_fingers_that_fall_silent_make_the_joint_state_old() -> None:
    """They may come once a second, and be lost once; then the loop finds them by the age of the whole."""
    robot, lag_ms = body(), FINGERS_NS // MS
    assert lag_ms > 2_000
    tell(robot, list(range(9)), 1_000 * MS)
    for ms in range(1_010, lag_ms + 2_001, 10):
        tell(robot, list(range(7)), ms * MS)
        assert robot.joint_state().stamp_ns == min(ms, lag_ms + 1_000) * MS
    assert robot.problems["joint_states"].startswith("fr3_finger_joint1, fr3_finger_joint2: silent")
    tell(robot, [7, 8], lag_ms * MS + 2_001 * MS)
    assert robot.joint_state().stamp_ns == lag_ms * MS + 2_000 * MS
    assert robot.problems == {}


@pytest.mark.parametrize("rate_hz", [100, 500, 1000])
def test_a_late_image_finds_the_joints_of_its_moment_at_any_rate(rate_hz: int) -> None:
    """Nearly a second late, behind whatever number of joint states."""
    robot = body("front")
    for i in range(2 * rate_hz):
        robot.on_joint_state(list(NAMES), [float(i)] * 9, [], round(i * 1e9 / rate_hz))
    then = round(1.1 * rate_hz)
    robot.on_image("front", BLACK, round(then * 1e9 / rate_hz))
    robot.images()
    assert robot.taken().q[0] == then


@pytest.mark.parametrize(("image_ms", "apart_ms"), [(880, 120), (2_000, 900)])
def test_images_without_joints_of_their_moment_make_no_observation(image_ms: int, apart_ms: int) -> None:
    robot = body("front")
    for ms in range(1_000, 1_101, 10):
        tell(robot, list(range(9)), ms * MS)
    robot.on_image("front", BLACK, image_ms * MS)
    with pytest.raises(NotReady, match=f"lies {apart_ms} ms from them, of 100 allowed"):
        robot.images()
    tell(robot, list(range(9)), image_ms * MS)
    assert set(robot.images()) == {"front"}


def test_slow_joint_states_that_are_not_too_old_make_observations() -> None:
    robot = body("front", age_s=0.4)
    tell(robot, list(range(9)), 1_000 * MS)
    robot.on_image("front", BLACK, 1_390 * MS)
    assert set(robot.images()) == {"front"}
    robot.on_image("front", BLACK, 1_410 * MS)
    with pytest.raises(NotReady, match="lies 410 ms from them, of 400 allowed"):
        robot.images()


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
    tell(robot, list(range(9)), 100 * MS)
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


def test_a_clock_that_is_set_back_makes_older_stamps_the_newer_ones() -> None:
    """The simulation, or a camera's computer, starts again: what it sends is seen at once."""
    robot = body("front")
    for stamp in (9_000 * MS, 9_010 * MS):
        tell(robot, list(range(9)), stamp)
        robot.on_image("front", BLACK, stamp)
    robot.on_joint_state(list(NAMES), [0.5] * 9, [], 1_000 * MS)
    robot.on_image("front", BLACK + 1, 1_000 * MS)
    assert robot.image_stamps() == {"front": 1_000 * MS}
    assert robot.images()["front"].all()
    assert robot.taken().q.tolist() == [0.5] * 7
    assert robot.taken().stamp_ns == robot.joint_state().stamp_ns == 1_000 * MS


@given(
    st.lists(st.tuples(st.sampled_from(["front", "wrist"]), st.integers(1000, 1150)), min_size=1, max_size=40),
    st.integers(1, 60),
)
def test_what_is_chosen_lies_together_and_is_the_newest_that_the_slower_camera_allows(
    frames: list[tuple[str, int]], sync_ms: int
) -> None:
    robot = body("front", "wrist", sync_s=sync_ms / 1e3)
    kept: dict[str, list[int]] = {"front": [], "wrist": []}
    for camera, stamp_ms in frames:
        robot.on_image(camera, np.full((4, 4, 3), stamp_ms - 1000, np.uint8), stamp_ms * MS)
        if not kept[camera] or stamp_ms >= kept[camera][-1]:
            kept[camera].append(stamp_ms)
    for stamp_ms in (1000, 1075, 1150):
        tell(robot, list(range(9)), stamp_ms * MS)
    if not all(kept.values()):
        with pytest.raises(NotReady):
            robot.images()
        return
    moment = min(stamps[-1] for stamps in kept.values())
    best = {camera: min(abs(stamp - moment) for stamp in stamps[-FRAMES:]) for camera, stamps in kept.items()}
    try:
        images = robot.images()
    except NotReady:
        assert max(best.values()) > sync_ms
        return
    chosen = {camera: 1000 + int(image[0, 0, 0]) for camera, image in images.items()}
    assert max(chosen.values()) - min(chosen.values()) <= sync_ms
    assert {camera: abs(stamp - moment) for camera, stamp in chosen.items()} == best
    assert robot.taken().stamp_ns == min(chosen.values()) * MS


def test_a_simulated_clock_counts_from_when_it_is_heard() -> None:
    clock = SimulatedClock(10 * MS)
    assert clock.waits_for == ("/clock",)
    assert clock.stamp_ns(5_000 * MS, 0) == 5_000 * MS  # it may be right: the clock is only heard later
    clock.advance(5_010 * MS)
    assert clock.waits_for == ()
    assert clock.stamp_ns(5_000 * MS, 0) == 5_000 * MS
    assert clock.stamp_ns(5_020 * MS, 0) == 5_020 * MS  # heard before the clock that belongs to it
    assert clock.stamp_ns(0, 0) == 5_010 * MS
    assert clock.stamp_ns(10**18, 0) == 5_010 * MS  # stamped by another clock: it grows old from now on


@given(st.lists(st.integers(0, 80), min_size=1, max_size=30))
def test_a_simulated_clock_gives_one_deadline_for_all_periods_that_passed(steps_ms: list[int]) -> None:
    """Each wait that returns is later than the one before, by one deadline at least."""
    clock, leaving = SimulatedClock(10 * MS), threading.Event()
    leaving.set()
    clock.advance(1_000 * MS)
    clock.start()
    assert clock.wait(leaving)
    now_ms, due_ms = 1_000, 1_010
    for step_ms in steps_ms:
        now_ms += step_ms
        clock.advance(now_ms * MS)
        if now_ms < due_ms:
            continue
        assert clock.wait(leaving)  # at once: it would wait half a second, and then say no
        due_ms += ((now_ms - due_ms) // 10 + 1) * 10
    assert clock.now_ns() == now_ms * MS
