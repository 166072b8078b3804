"""Encoders, cameras and wires are as bad as the disturbance says, and only in that."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from volar.robots.body import JointCommand
from volar.sim.disturbed_robot import Disturbance, DisturbedRobot
from volar.sim.sim_robot import SimRobot
from volar.sim.world import TaskWorld

PERIOD_S = 0.01
JOINTS = 7


@pytest.fixture(scope="module")
def world() -> Iterator[TaskWorld]:
    found = TaskWorld("lift", image_size=48)
    yield found
    found.close()


def bodies(world: TaskWorld, disturbance: Disturbance) -> tuple[SimRobot, DisturbedRobot]:
    """The plain body, and the disturbed one around it, at the start of an episode."""
    world.reset(0)
    plain = world.body
    assert isinstance(plain, SimRobot)
    robot = DisturbedRobot(plain)
    robot.disturb(disturbance)
    robot.restart()
    return plain, robot


def still(**settings: float) -> Disturbance:
    return Disturbance(joint_offset=np.zeros(JOINTS), **settings)  # type: ignore[arg-type]


def command(q: np.ndarray, width_m: float = 0.08) -> JointCommand:
    return JointCommand(q, np.zeros(JOINTS), np.zeros(JOINTS), width_m)


def test_without_disturbance_it_is_the_body(world: TaskWorld) -> None:
    plain, robot = bodies(world, still())
    np.testing.assert_array_equal(robot.joint_state().q, plain.joint_state().q)
    for name, image in plain.images().items():
        np.testing.assert_array_equal(robot.images()[name], image)
    assert (robot.now_ns, robot.cameras, robot.spec) == (plain.now_ns, plain.cameras, plain.spec)


def test_an_encoder_error_shows_in_what_is_measured_and_in_what_is_commanded(world: TaskWorld) -> None:
    offset = np.linspace(-0.02, 0.02, JOINTS)
    plain, robot = bodies(world, Disturbance(joint_offset=offset))
    true = plain.joint_state().q
    np.testing.assert_allclose(robot.joint_state().q, true + offset, atol=1e-15)
    for _ in range(20):  # told to stay where it believes to be, it stays where it is
        robot.send(command(true + offset))
        robot.advance(PERIOD_S)
    np.testing.assert_allclose(plain.joint_state().q, true, atol=1e-4)


def test_a_command_acts_after_its_delay(world: TaskWorld) -> None:
    plain, robot = bodies(world, still(action_delay=0.03))
    q = plain.joint_state().q
    ctrl = [int(i) for i in range(JOINTS)]
    robot.send(command(q + 0.05))
    seen = []
    for _ in range(5):
        robot.advance(PERIOD_S)
        seen.append(float(world.data.ctrl[ctrl[0]] - q[0]))
    np.testing.assert_allclose(seen, [0, 0, 0, 0.05, 0.05], atol=1e-12)


def test_states_are_as_old_as_the_delay_says_and_say_so(world: TaskWorld) -> None:
    plain, robot = bodies(world, still(state_delay=0.02))
    true = [plain.joint_state()]
    for _ in range(5):
        robot.send(command(true[0].q + 0.3))
        robot.advance(PERIOD_S)
        true.append(plain.joint_state())
    measured = robot.joint_state()
    np.testing.assert_array_equal(measured.q, true[-3].q)
    np.testing.assert_array_equal(measured.dq, true[-3].dq)
    assert measured.stamp_ns == robot.now_ns - 20_000_000
    assert not np.array_equal(measured.q, true[-1].q)


def test_images_are_as_old_as_the_delay_says(world: TaskWorld) -> None:
    """Of the positions then, which the undelayed picture shows one time step later."""
    plain, robot = bodies(world, still(observation_delay=0.05))
    first = robot.images()["wrist"]
    for _ in range(12):
        robot.send(command(plain.joint_state().q + 0.3))
        robot.advance(PERIOD_S)
        assert robot.image_stamps()["wrist"] == max(0, robot.now_ns - 50_000_000)
        assert plain.image_stamps()["wrist"] == plain.now_ns
        if robot.now_ns <= 50_000_000:  # nothing older than the beginning
            np.testing.assert_array_equal(robot.images()["wrist"], first)
    now, then = plain.images()["wrist"].astype(int), robot.images()["wrist"]
    assert np.abs(now - then).mean() > 1
    assert np.abs(first.astype(int) - then).mean() > 0.1


def test_a_dropped_frame_is_the_last_one_again(world: TaskWorld) -> None:
    plain, robot = bodies(world, still(frame_drop=0.5))
    last, repeated, frames = robot.images()["front"], 0, 60
    for _ in range(frames):
        robot.send(command(plain.joint_state().q + 0.05))
        robot.advance(PERIOD_S)
        image = robot.images()["front"]
        same = np.array_equal(image, last)
        assert same or np.array_equal(image, plain.images()["front"])
        repeated, last = repeated + same, image
    assert 0.25 * frames < repeated < 0.75 * frames


def test_noise_has_its_deviation_and_follows_from_seed_and_time(world: TaskWorld) -> None:
    plain, robot = bodies(world, still(image_noise=5.0, seed=3))
    noise = robot.images()["front"].astype(int) - plain.images()["front"]
    inside = (plain.images()["front"] > 40) & (plain.images()["front"] < 215)
    assert 4.6 < noise[inside].std() < 5.4
    assert abs(noise[inside].mean()) < 0.3
    np.testing.assert_array_equal(robot.images()["front"], robot.images()["front"])
    before = robot.images()["front"]
    robot.disturb(still(image_noise=5.0, seed=4))
    assert not np.array_equal(robot.images()["front"], before)


def test_exposure_blur_and_compression_are_what_they_are_called(world: TaskWorld) -> None:
    plain, robot = bodies(world, still(image_brightness=30.0))
    clean = plain.images()["front"]
    np.testing.assert_array_equal(robot.images()["front"], np.clip(clean.astype(int) + 30, 0, 255))
    _, robot = bodies(world, still(image_contrast=0.5))
    np.testing.assert_allclose(robot.images()["front"], 127.5 + 0.5 * (clean - 127.5), atol=0.51)
    _, robot = bodies(world, still(image_blur=1.0))
    np.testing.assert_allclose(robot.images()["front"], cv2.GaussianBlur(clean, (7, 7), 1.0), atol=1)
    _, robot = bodies(world, still(image_jpeg=50.0))
    error = np.abs(robot.images()["front"].astype(int) - clean)
    assert 0.2 < error.mean() < 12


def test_a_late_image_of_a_scene_at_rest_is_the_present_one() -> None:
    """Fixed props are where they were placed in the one as in the other."""
    world = TaskWorld("press_button", image_size=48)
    world.reset(0)
    body = DisturbedRobot(world.body.inner if isinstance(world.body, DisturbedRobot) else world.body)
    body.disturb(Disturbance(np.zeros(7), observation_delay=0.05))
    body.restart()
    for _ in range(10):
        body.advance(0.01)
    for late, now in zip(body.images().values(), body.inner.images().values(), strict=True):
        assert np.abs(late.astype(int) - now).mean() < 0.1
    world.close()
