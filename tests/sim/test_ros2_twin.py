"""The simulated arm as a ROS 2 robot: what it publishes, and which commands it takes, over DDS."""

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")

from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image, JointState  # noqa: E402
from std_msgs.msg import Float64MultiArray, String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint  # noqa: E402

from volar.robots.kinematics import Arm  # noqa: E402
from volar.robots.ros2.messages import decode_image, stamp_ns  # noqa: E402
from volar.robots.safety import SafetyFilter  # noqa: E402
from volar.sim import scene  # noqa: E402
from volar.sim.command_check import CommandCheck  # noqa: E402
from volar.sim.ros2_twin import NAME, PERIOD_NS, Twin  # noqa: E402
from volar.sim.tasks.layout import NoLayout  # noqa: E402
from volar.sim.world import CONTROL_PERIOD_S, TaskWorld  # noqa: E402

STATES, CLOCK = "joint_states", "/clock"


@pytest.fixture(scope="module")
def domain(ros2_client: Any) -> Iterator[int]:
    with ros2_client.own_domain(1) as number:
        yield number


@pytest.fixture(scope="module")
def world() -> Iterator[TaskWorld]:
    made = TaskWorld("reach", "fr3", {"front": (96, 96)})
    yield made
    made.close()


@pytest.fixture
def client(domain: int, ros2_client: Any) -> Iterator[Any]:
    with ros2_client.Client() as made:
        made.hear(JointState, STATES, 200)
        made.hear(Clock, CLOCK, 200)
        made.hear(Image, "front/image_raw", qos_profile_sensor_data)
        made.hear(CameraInfo, "front/camera_info", qos_profile_sensor_data)
        yield made


@pytest.fixture(params=[True, False], ids=["reflex", "counting"])
def reflex(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def twin(world: TaskWorld, client: Any, request: pytest.FixtureRequest) -> Iterator[Twin]:
    """Found by the client, at rest."""
    world.reset(0)
    stops = request.getfixturevalue("reflex") if "reflex" in request.fixturenames else True
    with Twin(world, camera_hz=25.0, reflex=stops) as made:
        client.until(lambda: all(client.heard.values()), lambda: period(made))
        yield made


def period(twin: Twin) -> None:
    twin.begin_period()
    twin.end_period()


def lockstep(twin: Twin, client: Any, periods: int) -> None:
    """Periods, each after the client has got the state of the one before."""
    for _ in range(periods):
        now_ns = twin.now_ns
        period(twin)
        client.until(lambda now_ns=now_ns: stamp_ns(client.heard[STATES][-1].header.stamp) >= now_ns)  # type: ignore[misc]
        client.until(lambda now_ns=now_ns: stamp_ns(client.heard[CLOCK][-1].clock) >= now_ns)  # type: ignore[misc]


def trajectory(names: list[str], q: Any) -> JointTrajectory:
    point = JointTrajectoryPoint(positions=array("d", q), velocities=array("d", np.zeros(len(q))))
    return JointTrajectory(joint_names=names, points=[point])


def test_it_publishes_names_and_rates(twin: Twin, client: Any) -> None:
    client.until(lambda: stamp_ns(client.heard[CLOCK][-1].clock) == twin.now_ns - PERIOD_NS)
    first_ns = twin.now_ns
    lockstep(twin, client, 100)
    client.until(lambda: stamp_ns(client.heard["front/image_raw"][-1].header.stamp) >= first_ns + 96 * PERIOD_NS)
    spec = twin.world.spec
    states = [m for m in client.heard[STATES] if stamp_ns(m.header.stamp) >= first_ns]
    assert {tuple(m.name) for m in states} == {(*spec.joint_names, *spec.gripper_joint_names)}
    assert np.diff([stamp_ns(m.header.stamp) for m in states]).tolist() == [PERIOD_NS] * 99
    clock = [stamp_ns(m.clock) for m in client.heard[CLOCK]]
    assert clock == sorted(clock)
    images = [stamp_ns(m.header.stamp) for m in client.heard["front/image_raw"] if stamp_ns(m.header.stamp) >= first_ns]
    assert 20 <= len(images) <= 25  # of 25 in a second; best effort may lose some
    assert all(gap % (4 * PERIOD_NS) == 0 for gap in np.diff(images))
    newest = decode_image(client.heard["front/image_raw"][-1])
    assert newest.shape == (96, 96, 3)
    assert newest.std() > 5  # it shows something


def test_the_clock_goes_on_over_a_reset(twin: Twin, client: Any) -> None:
    seed, before_ns = twin.world.seed, twin.now_ns
    assert client.ask(Trigger, f"{NAME}/reset", lambda: period(twin)).success
    period(twin)
    assert twin.world.seed == seed + 1
    assert twin.now_ns > before_ns


class _Crowded(TaskWorld):
    """No layout is found for odd seeds."""

    def reset(self, seed: int, draws: Any = None) -> None:
        if seed % 2:
            raise NoLayout(f"seed {seed} has no room")
        super().reset(seed, draws)


def test_a_scene_without_a_layout_is_passed_over(twin: Twin, client: Any) -> None:
    twin.world.__class__ = _Crowded
    try:
        assert client.ask(Trigger, f"{NAME}/reset", lambda: period(twin)).success
        period(twin)
        period(twin)
    finally:
        twin.world.__class__ = TaskWorld
    assert twin.world.seed == 2
    assert twin.problems["scene"] == "seed 1 has no room; seed 2 is next"


def test_the_parameter_seed_chooses_the_scene(twin: Twin) -> None:
    from rclpy.parameter import Parameter

    def told(seed: int) -> bool:
        return bool(twin.node.set_parameters([Parameter("seed", Parameter.Type.INTEGER, seed)])[0].successful)

    assert told(7)
    period(twin)
    assert twin.world.seed == 7
    assert not told(-1)
    period(twin)
    assert twin.world.seed == 7


def test_camera_info_projects_as_the_image_was_rendered(twin: Twin, client: Any) -> None:
    """The hand, through the published matrix, is where the scene's own camera sees it."""
    info = client.heard["front/camera_info"][-1]
    view = scene.camera_view(twin.world.model, twin.world.data, "front")
    point = twin.world.data.site(twin.world.spec.ee_site).xpos.copy()
    optical = ((point - view.position) @ view.rotation) * [1.0, -1.0, -1.0]  # right, down, forwards
    u, v, w = np.array(info.k).reshape(3, 3) @ optical
    np.testing.assert_allclose([u / w, v / w], view.project(point) * [info.width, info.height], atol=1e-6)


def test_joints_are_matched_by_name_and_others_refused(twin: Twin, client: Any) -> None:
    spec = twin.world.spec
    sender = client.node.create_publisher(JointTrajectory, spec.trajectory_topic, 10)
    client.until(lambda: sender.get_subscription_count() > 0)
    q, names = twin.last_q, list(spec.joint_names)
    wanted = q + 1e-5 * np.arange(1, spec.joints + 1)  # 10 rad/s^2 is 1e-3 rad in a period
    sender.publish(trajectory(["other", *names[1:]], wanted))
    sender.publish(trajectory(names[1:], wanted[1:]))
    sender.publish(JointTrajectory(joint_names=names))
    sender.publish(trajectory(names[::-1], wanted[::-1]))
    client.until(lambda: twin.received > 0)
    twin.end_period()
    assert twin.received == 1
    assert twin.reflex_reason == ""
    assert "this arm has" in twin.problems[spec.trajectory_topic]
    np.testing.assert_allclose(twin.last_q, wanted)


def test_another_quality_of_service_is_named(twin: Twin, client: Any) -> None:
    """Best effort never reaches a controller that asks for reliable commands: DDS says so, and so does the robot."""
    topic = twin.world.spec.trajectory_topic
    assert topic not in twin.problems
    client.node.create_publisher(JointTrajectory, topic, qos_profile_sensor_data)
    client.until(lambda: topic in twin.problems)
    assert "reliab" in twin.problems[topic]
    client.hear(String, f"{NAME}/state", QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    client.until(lambda: any("reliab" in m.data for m in client.heard[f"{NAME}/state"]), lambda: period(twin))


@pytest.mark.parametrize("bad", ["jump", "nan", "short"])
def test_a_command_that_a_real_arm_aborts_on(twin: Twin, client: Any, reflex: bool, bad: str) -> None:
    spec, q = twin.world.spec, twin.last_q.copy()
    sender = client.node.create_publisher(Float64MultiArray, "forward_position_controller/commands", 10)
    client.until(lambda: sender.get_subscription_count() > 0)
    wrong = {"jump": q + 0.01, "nan": q * np.nan, "short": q[:-1]}[bad]
    sender.publish(Float64MultiArray(data=array("d", wrong)))
    sender.publish(Float64MultiArray(data=array("d", q)))
    client.until(lambda: twin.received == 2)
    assert twin.reflex_reason == "" if not reflex else twin.reflex_reason != ""
    if bad == "jump":
        assert twin.check.violations > 0
    for _ in range(20):
        period(twin)
    measured = twin.world.body.joint_state()
    np.testing.assert_allclose(measured.q, q, atol=2e-3 if reflex else 0.02)
    assert np.isfinite(measured.q).all()
    if reflex:
        assert client.ask(Trigger, f"{NAME}/recover", lambda: period(twin)).success
        now = twin.last_q.copy()
        sender.publish(Float64MultiArray(data=array("d", now + 1e-5)))
        client.until(lambda: twin.received == 3)
        twin.end_period()
        assert twin.reflex_reason == ""
        np.testing.assert_allclose(twin.last_q, now + 1e-5)
    assert spec.joints == len(measured.q)


@pytest.mark.parametrize("robot", ["fr3", "ur5e", "so101"])
def test_what_the_safety_filter_sends_is_never_aborted_on(robot: str) -> None:
    """Random targets, two seconds: the check shares no code with the filter."""
    world = TaskWorld("reach", robot, ())
    world.reset(0)
    arm, rng = Arm(world.spec), np.random.default_rng(0)
    safety, check = SafetyFilter(arm, CONTROL_PERIOD_S), CommandCheck(world.spec, CONTROL_PERIOD_S)
    q = world.body.joint_state().q
    safety.reset(q, 0.05)
    check.reset(q)
    target, moved = q, 0.0
    for i in range(200):
        if i % 25 == 0:
            target = q + rng.uniform(-0.3, 0.3, len(q))
        command = safety.step(target, 0.05).command
        assert check.look(command.q) is None
        moved = max(moved, float(np.abs(command.q - q).max()))
    assert moved > 0.05


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("velocity", [0.0, 0.03]),
        ("acceleration", [0.0, 0.002]),
        ("position", [0.0, 0.0]),
    ],
)
def test_the_check_names_what_was_broken(name: str, steps: list[float]) -> None:
    spec = TaskWorld("reach", "fr3", ()).spec
    check = CommandCheck(spec, CONTROL_PERIOD_S)
    q = np.array(spec.home)
    if name == "position":
        q[0] = spec.position_max[0] + 0.01
    check.reset(q)
    found = [check.look(q + np.eye(spec.joints)[0] * step) for step in steps]
    assert str(found[-1]).startswith(f"{spec.joint_names[0]}: {name} at ")
