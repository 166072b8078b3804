"""The controller node and the simulated arm's, each a process, over real DDS: lifecycle, orders, faults, restarts."""

import importlib.util
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from volar.robots.fr3 import FR3
from volar.sim.command_check import CommandCheck

pytest.importorskip("rclpy", reason="ROS 2 is not installed: pip install 'volar[ros2]'")

_spec = importlib.util.spec_from_file_location("volar_tests_ros2_graph", Path(__file__).with_name("ros2_graph.py"))
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
if TYPE_CHECKING:
    from ros2_graph import Graph
else:
    Graph = _module.Graph

pytestmark = pytest.mark.real_time

TINY = ("task=reach", "image_size=16", "camera_hz=50")


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Graph]:
    with Graph(tmp_path / "nodes.log") as found:
        yield found


def check_commands(graph: Graph) -> None:
    """What arrived: one trajectory inside every limit, told by name."""
    rows = np.array([message.points[0].positions for message in graph.commands])
    assert all(message.joint_names == list(FR3.joint_names) for message in graph.commands)
    check = CommandCheck(FR3, 0.01)
    check.reset(rows[0])
    for row in rows[1:4]:  # a client that has just been found may have missed the first ones
        check.look(row)
    assert [reason for row in rows[4:] if (reason := check.look(row))] == []


def at_rest(graph: Graph) -> bool:
    return bool(graph.commands) and not any(graph.commands[-1].points[0].velocities)


def test_lifecycle(graph: Graph, artifact_folder: Path, tmp_path: Path) -> None:
    """Configuring refuses with a reason; nothing is sent before activation, and nothing after the arm rests."""
    graph.robot(*TINY)
    bag = tmp_path / "bag"
    controller = graph.controller(policy=tmp_path / "nothing", instruction="lift", use_sim_time="true", record=bag)
    assert not graph.change("configure")
    graph.until(lambda: graph.lifecycle() == "unconfigured")
    assert "no such folder" in (tmp_path / "nodes.log").read_text()
    assert graph.trigger("stop") == (False, "not moving: activate the node first")
    assert graph.set_parameter("policy", str(artifact_folder)) == (True, "")
    assert graph.set_parameter("robot", "ur5e") == (True, "")
    assert not graph.change("configure")
    assert "robot: policy wants fr3, found ur5e" in (tmp_path / "nodes.log").read_text()
    assert graph.set_parameter("robot", "fr3") == (True, "")
    assert graph.change("configure")
    successful, reason = graph.set_parameter("robot", "ur5e")
    assert not successful
    assert "clean it up first" in reason
    graph.spin(0.3)
    assert graph.commands == []

    assert graph.change("activate")
    graph.until(lambda: graph.state == "running" and len(graph.commands) > 100)
    assert graph.change("deactivate")
    graph.until(lambda: at_rest(graph))
    graph.spin(0.3)  # what was on its way
    assert at_rest(graph)
    check_commands(graph)
    count = len(graph.commands)
    graph.spin(0.5)
    assert len(graph.commands) == count
    check_recording(bag, count)

    assert graph.change("cleanup")
    graph.until(lambda: graph.lifecycle() == "unconfigured")
    controller.send_signal(signal.SIGINT)
    graph.until(lambda: controller.poll() is not None)
    assert controller.returncode == 0


def check_recording(bag: Path, commands: int) -> None:
    """The file opens, and holds what was sent."""
    from rosbags.highlevel import AnyReader

    with AnyReader([bag]) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
        found = [connection for connection in reader.connections if connection.topic == "/volar/observation/front"]
        pixels = [reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages(connections=found)]
    assert abs(counts["/volar/command"] - commands) <= 1
    assert counts["/volar/tick"] == counts["/volar/command"]
    assert 0 < counts["/volar/chunk"] <= counts["/volar/observation/state"]
    assert {(image.height, image.width, image.encoding) for image in pixels} == {(16, 16, "rgb8")}


def test_orders(graph: Graph, artifact_folder: Path) -> None:
    """Pause, resume, stop, recover, with why each was denied; the instruction by topic and by parameter."""
    from std_msgs.msg import String

    graph.robot(*TINY)
    graph.controller(policy=artifact_folder, instruction="lift", use_sim_time="true", autostart="true")
    graph.until(lambda: graph.state == "running")
    assert graph.trigger("resume") == (False, "not_paused")
    assert graph.trigger("recover") == (False, "not_stopped")
    assert graph.trigger("pause") == (True, "paused")
    graph.until(lambda: at_rest(graph))
    graph.until(lambda: graph.state == "paused: pause_requested")
    assert graph.trigger("resume")[0]
    graph.until(lambda: graph.state == "running")
    assert graph.trigger("stop") == (True, "stopped")
    assert graph.trigger("resume") == (False, "is_stopped")
    graph.until(lambda: at_rest(graph))
    assert graph.trigger("recover")[0]
    graph.until(lambda: graph.state == "running")
    check_commands(graph)

    publisher = graph.node.create_publisher(String, "/volar_controller/instruction", 10)
    graph.until(lambda: publisher.get_subscription_count() > 0)
    publisher.publish(String(data="lift the blue block"))
    graph.until(lambda: graph.diagnostics.get("instruction") == "lift the blue block")
    assert graph.set_parameter("instruction", "lift the red block") == (True, "")
    graph.until(lambda: graph.diagnostics.get("instruction") == "lift the red block")
    assert graph.set_parameter("instruction", " ") == (False, "the instruction is empty")


def test_either_side_may_start_again(graph: Graph, artifact_folder: Path) -> None:
    """A controller that is killed leaves the arm at rest, and a new one goes on; a robot that starts again stops it."""
    robot = graph.robot(*TINY)
    settings = {"policy": artifact_folder, "instruction": "lift", "use_sim_time": "true", "autostart": "true"}
    controller = graph.controller(**settings)
    graph.until(lambda: graph.state == "running")
    controller.kill()
    controller.wait()
    graph.spin(0.3)  # what was on its way
    graph.commands.clear()
    graph.state = ""
    graph.controller(**settings)
    graph.until(lambda: graph.state == "running" and len(graph.commands) > 50)
    graph.until(lambda: "reflex" in graph.robot_state)  # said once: it may come with a later heartbeat of DDS
    assert graph.robot_state["reflex"] == ""
    check_commands(graph)

    robot.kill()
    robot.wait()
    graph.robot(*TINY)  # its clock begins again
    graph.until(lambda: graph.state == "stopped: clock_jump")
    graph.until(lambda: graph.trigger("recover")[0])
    graph.until(lambda: graph.state == "running")


def test_a_robot_that_hangs_is_noticed_on_the_machines_own_time(graph: Graph, artifact_folder: Path) -> None:
    """Joint states that stop coming end the motion; they are judged by the receiver's clock, not by /clock."""
    robot = graph.robot(*TINY, "sim_time=false")
    graph.controller(policy=artifact_folder, instruction="lift", autostart="true", command_output="position")
    graph.until(lambda: graph.state == "running")
    robot.send_signal(signal.SIGSTOP)
    graph.until(lambda: graph.state == "stopped: stale_joint_state")
    assert graph.trigger("recover") == (False, "stale_joint_state")
    robot.send_signal(signal.SIGCONT)
    graph.until(lambda: graph.trigger("recover")[0])
    graph.until(lambda: graph.state == "running")


def test_sigterm_brakes_first(graph: Graph, artifact_folder: Path) -> None:
    graph.robot(*TINY, "compressed=true")
    controller = graph.controller(
        policy=artifact_folder, instruction="lift", use_sim_time="true", autostart="true", image_transport="compressed"
    )
    graph.until(lambda: graph.state == "running" and not at_rest(graph))
    controller.send_signal(signal.SIGTERM)
    graph.until(lambda: controller.poll() is not None)
    assert controller.returncode == 0
    graph.until(lambda: at_rest(graph))
    check_commands(graph)


def test_qos_that_does_not_match_is_diagnosed(graph: Graph, artifact_folder: Path) -> None:
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from trajectory_msgs.msg import JointTrajectory

    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    topic = "/joint_trajectory_controller/joint_trajectory"
    graph.node.create_subscription(JointTrajectory, topic, lambda message: None, qos)
    graph.robot(*TINY)
    graph.controller(policy=artifact_folder, instruction="lift", use_sim_time="true", autostart="true")
    said = "a subscriber asks for durability"
    graph.until(lambda: any(said in text for key, text in graph.diagnostics.items() if key.startswith("problem with")))


def test_images_of_the_wrong_shape_are_waited_for_by_name(graph: Graph, artifact_folder: Path) -> None:
    graph.robot("task=reach", "image_size=8")
    graph.controller(policy=artifact_folder, instruction="lift", use_sim_time="true", autostart="true")
    graph.until(lambda: "camera front" in graph.diagnostics.get("waits for", ""))
    graph.until(lambda: "gives 8x8, the policy wants 16x16" in graph.diagnostics.get("problem with front", ""))
    assert graph.commands == []
