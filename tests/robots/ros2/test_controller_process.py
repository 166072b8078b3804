"""The controller's process: signals, exit codes, recording, simulated time, other topics and transports, QoS."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")

from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from volar.robots.fr3 import FR3  # noqa: E402
from volar.robots.loop_state import LATCHING, STOP_REQUESTED  # noqa: E402
from volar.robots.ros2.messages import stamp_ns  # noqa: E402

pytestmark = pytest.mark.real_time

Stage = Callable[..., tuple[Any, Any]]
PERIOD_NS = 10_000_000

# Where it is not the deadlines that are tested.
PATIENT = {"joint_state_age_s": "2.0", "camera_age_s": "5.0", "clock_jump_s": "5.0"}


def recorded(folder: Path) -> dict[str, list[Any]]:
    """Topic -> (time [ns], message) of each message."""
    from rosbags.highlevel import AnyReader

    heard: dict[str, list[Any]] = {}
    with AnyReader([folder]) as reader:
        for connection, time_ns, data in reader.messages():
            heard.setdefault(connection.topic, []).append((time_ns, reader.deserialize(data, connection.msgtype)))
    return heard


def test_a_signal_brakes_and_the_recording_opens(stage: Stage, tmp_path: Path) -> None:
    """What was recorded is what was sent, and the policy saw the pictures that the cameras took."""
    folder = tmp_path / "recording"
    arm, controller = stage(autostart="true", record=folder, **PATIENT)
    arm.run()
    controller.until(lambda: arm.moving)
    controller.until(lambda: len(arm.commands) > 60)
    assert controller.terminate(signal.SIGTERM) == 0, controller.log
    ended = arm.periods
    controller.until(lambda: not arm.commands[-1].dq.any() and arm.periods > ended + 30)  # what was on its way
    heard = recorded(folder)
    sent = [np.array(message.points[0].positions) for message in arm.messages]
    kept = [message.points[0].positions for _, message in heard["/volar/command"]]
    assert len(kept) >= len(sent)  # the first ones may go out before the arm is found
    np.testing.assert_array_equal(kept[-len(sent) :], sent)
    ticks = [json.loads(message.data) for _, message in heard["/volar/tick"]]
    assert len(ticks) == len(kept)
    assert all(tick["sent"] for tick in ticks)
    assert {tick["reason"] for tick in ticks} & LATCHING == {STOP_REQUESTED}  # it braked from following the policy
    assert ticks[-1]["reason"] == STOP_REQUESTED
    assert all(0.0 <= tick["limits"][name] <= 1.0 + 1e-6 for tick in ticks for name in ("velocity", "acceleration"))
    assert min(len(heard["/volar/chunk"]), len(heard["/volar/observation/front"])) >= 2
    now_ns = arm.client.node.get_clock().now().nanoseconds
    for time_ns, image in heard["/volar/observation/wrist"]:
        pixels = image.data.reshape(image.height, image.width, 3)
        assert pixels[0, 0, 1] == FR3.cameras.index("wrist")
        assert not pixels[:, :, 2].any()
        assert 0 <= time_ns - stamp_ns(image.header.stamp) < 5e9
        assert abs(now_ns - time_ns) < 100e9  # beside other recordings, not at the machine's start
    margins = arm.margins()
    assert min(margins.velocity, margins.acceleration, margins.jerk) > -1e-6


def test_a_command_that_was_not_sent_is_not_recorded(stage: Stage, tmp_path: Path) -> None:
    """Nobody knows where the arm is: it rests in a stop, and commands cease."""
    folder = tmp_path / "recording"
    arm, controller = stage(autostart="true", record=folder, **PATIENT | {"joint_state_age_s": "1.0"})
    arm.run()
    controller.until(lambda: arm.moving)
    arm.states = False
    controller.until(lambda: controller.values.get("commands", "").startswith("ceased"))
    assert controller.terminate(signal.SIGTERM) == 0, controller.log
    heard = recorded(folder)
    ticks = [json.loads(message.data) for _, message in heard["/volar/tick"]]
    sent = [tick["sent"] for tick in ticks]
    assert sent.count(True) == len(heard["/volar/command"]) < len(ticks)
    assert not sent[-1]
    assert {tick["state"] for tick in ticks if not tick["sent"]} == {"stopped"}


def test_simulated_time(stage: Stage) -> None:
    """Nothing before the clock; a command for each period of it, one for several at once; a clock set back is named."""
    arm, controller = stage(arm={"sim_time": True}, use_sim_time="true", **PATIENT)
    assert controller.transition("configure")
    assert controller.transition("activate")
    controller.until(lambda: controller.values.get("waits for") == "/clock", arm.period)
    assert arm.commands == []

    def pass_time(by_ns: int = PERIOD_NS) -> None:
        arm.period()
        arm.tick_clock(by_ns)

    controller.until(lambda: arm.moving, pass_time)
    for by_ns in (PERIOD_NS,) * 20 + (5 * PERIOD_NS, PERIOD_NS, PERIOD_NS):
        count = len(arm.commands)
        pass_time(by_ns)
        controller.until(lambda count=count: len(arm.commands) > count)
        assert len(arm.commands) <= count + 2  # one of the period before may have been on its way
    assert controller.said != "stopped: clock_jump"
    controller.until(lambda: arm.sim_ns > 3_000_000_000, pass_time)
    arm.sim_ns = 1_000_000_000  # the simulation starts again
    controller.until(lambda: controller.said == "stopped: clock_jump", pass_time)
    # Joint states and images with older stamps are the newer ones now.
    controller.until(lambda: bool(controller.trigger("recover", pass_time).success), pass_time)
    controller.until(lambda: controller.said == "running", pass_time)
    assert arm.sim_ns < 3_000_000_000
    assert controller.terminate() == 0, controller.log  # although the clock stands still


def test_an_order_that_no_tick_answered_is_not_carried_out_later(stage: Stage) -> None:
    """While simulated time stands still: going on is withdrawn, and a stop holds from the next tick."""
    arm, controller = stage(arm={"sim_time": True}, use_sim_time="true", **PATIENT)
    assert controller.transition("configure")
    assert controller.transition("activate")

    def pass_time() -> None:
        arm.period()
        arm.tick_clock()

    def ticks_end() -> None:
        """The last period that passed may still be on its way to the node, whose tick would answer an order."""
        count, still_s = -1, 0.0

        def still() -> bool:
            nonlocal count, still_s
            if count != len(arm.commands):
                count, still_s = len(arm.commands), time.monotonic()
            return time.monotonic() > still_s + 1.0

        controller.until(still)

    controller.until(lambda: arm.moving, pass_time)
    ticks_end()
    answer = controller.trigger("stop")
    assert (answer.success, answer.message.partition("? ")[2]) == (False, "stop: it holds from the next one")
    controller.until(lambda: controller.said == "stopped: stop_requested", pass_time)
    controller.until(lambda: not arm.moving, pass_time)
    ticks_end()
    answer = controller.trigger("recover")
    assert (answer.success, answer.message.partition("? ")[2]) == (False, "recover: it is withdrawn")
    count = len(arm.commands)
    controller.until(lambda: len(arm.commands) > count + 20, pass_time)
    assert controller.said == "stopped: stop_requested"
    assert not any(command.dq.any() for command in arm.commands[count:])
    assert controller.trigger("recover", pass_time).success


def test_other_names_and_transports(stage: Stage) -> None:
    """A namespace, another name, remapped joint states, compressed images, best effort, positions: one node a name."""
    effort = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
    arm, controller = stage(
        arm={"prefix": "/left/", "compressed": True, "state_qos": effort},
        arguments=["-r", "__ns:=/left", "-r", "__node:=hand", "-r", "states:=/left/joint_states"],
        name="/left/hand",
        command_output="position",
        image_transport="compressed",
        joint_states_topic="states",
        **PATIENT,
    )
    arm.run()
    assert controller.transition("configure")
    assert controller.transition("activate")
    start = arm.q
    controller.until(lambda: bool(np.abs(arm.q - start).max() > 0.02))
    controller.until(lambda: arm.width_m > 0.9 * FR3.gripper_width_max)  # the policy opens it
    names = arm.client.node.get_node_names_and_namespaces()
    assert len(set(names)) == len(names)
    assert ("hand", "/left") in names
    assert controller.terminate(signal.SIGINT) == 0, controller.log


def test_what_a_file_says_in_vain_is_logged(stage: Stage, tmp_path: Path) -> None:
    """A file may be of several nodes: it is not refused. What rclpy and the policy's cameras read is not named."""
    file = tmp_path / "shared.yaml"
    parameters = {
        "max_sped": 1.0,
        "cameras": {"front": {"topic": "front/image_raw"}, "wirst": {"topic": "wirst/image"}},
    }
    parameters |= {"use_sim_time": False, "qos_overrides": {"/clock": {"subscription": {"depth": 1}}}}
    file.write_text(json.dumps({"/**": {"ros__parameters": parameters}}))  # JSON is YAML
    arm, controller = stage(arguments=["--params-file", str(file)])
    arm.run()
    assert controller.transition("configure")
    lines = [line for line in controller.log.splitlines() if "not read: unknown parameter" in line]
    assert len(lines) == 2, controller.log
    assert any("'max_sped'" in line for line in lines)
    assert any("'cameras.wirst.topic'; did you mean cameras.wrist.topic" in line for line in lines)


def test_another_transport_after_a_cleanup(stage: Stage) -> None:
    """The default topics are those of the transport, each time the node is configured; a topic that was set stays."""
    arm, controller = stage(arm={"compressed": True}, **PATIENT)
    arm.run()
    assert controller.transition("configure")
    assert controller.transition("cleanup")
    assert controller.set_text("image_transport", "compressed").successful
    assert controller.set_text("cameras.wrist.topic", "elsewhere").successful
    for topic in ("elsewhere", "wrist/image_raw/compressed"):
        assert controller.transition("configure")
        assert controller.transition("activate")
        if topic == "elsewhere":
            controller.until(lambda: controller.values.get("waits for") == "camera wrist")
            assert controller.transition("deactivate")
            assert controller.transition("cleanup")
            assert controller.set_text("cameras.wrist.topic", "wrist/image_raw/compressed").successful
    controller.until(lambda: arm.moving)


def test_a_setting_of_all_nodes_is_no_typing_error(stage: Stage) -> None:
    """A launch file's SetParameter comes as a bare -p."""
    _, controller = stage(arguments=["-p", "robot_ip:=172.16.0.2"])
    assert controller.transition("configure")
    controller.until(lambda: "not read: unknown parameter 'robot_ip'" in controller.log)


def test_a_subscriber_that_cannot_hear_is_named(stage: Stage, network: Any) -> None:
    arm, controller = stage()
    heard: list[Any] = []
    latched = network.module.LATCHED
    arm.client.node.create_subscription(JointTrajectory, FR3.trajectory_topic, heard.append, latched)
    arm.run()
    assert controller.transition("configure")
    topic = f"problem with /{FR3.trajectory_topic}"
    controller.until(lambda: "durability" in controller.values.get(topic, ""))
    arm.client.node.create_subscription(JointTrajectory, FR3.trajectory_topic, heard.append, qos_profile_sensor_data)
    assert controller.transition("activate")
    controller.until(lambda: len(heard) > 10)  # best effort hears a reliable publisher


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["autostart:=true", "policy:=nowhere"], 1, "nowhere"),
        (["rate_hz:=10.0"], 2, "rate_hz"),
        (["rate_hz:=fast"], 2, "rate_hz"),
        (["rate_hs:=100.0"], 2, "unknown parameter 'rate_hs'; did you mean rate_hz"),
    ],
)
def test_what_cannot_start_says_why_in_a_line(network: Any, arguments: list[str], code: int, said: str) -> None:
    words = [word for argument in arguments for word in ("-p", argument)]
    done = subprocess.run(
        [sys.executable, "-m", "volar.robots.ros2.controller_node", "--ros-args", *words],
        env={**os.environ, "ROS_DOMAIN_ID": str(network.domain)},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_it_waits_for_somebody_who_hears_the_commands(stage: Stage) -> None:
    """Nothing is said into the void: the first command that is heard is the first one that was sent."""
    topic = "/elsewhere/joint_trajectory"
    arm, controller = stage(autostart="true", trajectory_topic=topic, **PATIENT)
    arm.run()
    controller.until(lambda: controller.values.get("waits for") == f"a subscriber of {topic}")
    heard: list[JointTrajectory] = []
    arm.client.node.create_subscription(JointTrajectory, topic, heard.append, 100)
    controller.until(lambda: len(heard) > 20)
    np.testing.assert_allclose(heard[0].points[0].positions, FR3.home, atol=1e-5)
