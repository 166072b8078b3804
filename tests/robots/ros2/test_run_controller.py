"""volar-control robot=ros2/fr3: the node in the verb's process, before an arm that does as told, over DDS."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy")

from volar.robots.loop_state import LATCHING, STOP_REQUESTED
from volar.robots.ros2.controller_command import help_text
from volar.robots.ros2.parameters import NodeSettings

pytestmark = pytest.mark.real_time

RUN = "import sys; from volar.sim.control import main; sys.exit(main())"
# The deadlines are tested elsewhere: here nothing but the verb is to stop the arm.
PATIENT = ("-p", "joint_state_age_s:=2.0", "-p", "camera_age_s:=5.0", "-p", "clock_jump_s:=5.0")
WITHOUT_ROS2 = f"import sys; sys.modules['rclpy'] = None; {RUN}"


@pytest.fixture
def verb(network: SimpleNamespace, artifact_path: Path, tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts volar-control on the test's domain."""

    def start(*words: str, code: str = RUN) -> "subprocess.Popen[str]":
        settings = [f"policy={artifact_path}", "instruction=lift the red block", f"output={tmp_path / 'run'}"]
        robot = [] if any(word.startswith("robot=") for word in words) else ["robot=ros2/fr3"]
        return subprocess.Popen(
            [sys.executable, "-c", code, *robot, *settings, *words],
            env={**os.environ, "ROS_DOMAIN_ID": str(network.domain)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_it_moves_the_arm_and_reports(network: Any, verb: Any, tmp_path: Path) -> None:
    """For so long as it is told; then the arm rests, and control.json has what can be measured there."""
    with network.client() as client:
        arm = network.module.ExactArm(client)
        arm.run()
        process = verb("duration_s=2", "--ros-args", "-p", "camera_sync_s:=0.03", *PATIENT)
        said, error = process.communicate(timeout=180)
        assert process.returncode == 0, error
        client.until(lambda: not arm.commands[-1].dq.any())
        margins = arm.margins()
        arm.close()
    result = json.loads((tmp_path / "run" / "control.json").read_text())
    assert result["duration_s"] >= 2.0
    assert result["ticks"] > 50
    assert result["period_error_ms"]["p99"] > 0
    assert result["observation_to_chunk_ms"]["p50"] > 0
    assert result["inference_ms"]["p50"] > 0
    assert LATCHING & result["holds"].keys() == {STOP_REQUESTED}
    assert "success_rate" not in result
    for name, share in result["margins"].items():
        assert -1e-6 < share <= 1.0
        assert share <= getattr(margins, name) + 1e-6  # the arm may have missed the first commands, none besides
    assert "running" in said
    assert "success" not in said


def test_without_a_robot_it_says_what_it_waited_for(verb: Any, tmp_path: Path) -> None:
    process = verb()
    line = process.stdout.readline()
    assert line.startswith("waits for joint fr3_joint1")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "nothing was sent: the node waited for joint fr3_joint1" in error
    assert not (tmp_path / "run").exists()


def test_what_it_waited_for_is_what_was_missing_before_it_was_left(network: Any, verb: Any) -> None:
    with network.client() as client:
        arm = network.module.ExactArm(client)
        arm.run()
        process = verb("--ros-args", "-p", "trajectory_topic:=/nobody", *PATIENT)
        assert any(line == "waits for a subscriber of /nobody\n" for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=180)
        arm.close()
    assert process.returncode == 1
    assert "the node waited for a subscriber of /nobody; does" in error


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["task=lift"], 2, "task: for simulated arms only"),
        (["robot=sim/fr3", "--ros-args", "-p", "a:=1"], 2, "--ros-args is for robot=ros2"),
        (["robot=ros2/ur5e"], 1, "ur5e"),
        (["--ros-args", "-p", "camera_sync_s:=7.0"], 2, "camera_sync_s"),
        (["--ros-args", "-p", "camera_snc_s:=0.05"], 2, "did you mean camera_sync_s"),
        (["--ros-args", "-p", "rate_hz:=200.0"], 2, "-p rate_hz:=200.0 is a setting here, rate_hz=100.0"),
    ],
)
def test_what_it_refuses(verb: Any, words: list[str], code: int, said: str) -> None:
    process = verb(*words)
    _, error = process.communicate(timeout=180)
    assert process.returncode == code, error
    assert said in error
    assert "Traceback" not in error


def test_without_ros2_it_names_the_extra(verb: Any) -> None:
    process = verb(code=WITHOUT_ROS2)
    _, error = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "pip install 'volar[ros2]'" in error
    assert "Traceback" not in error


def test_the_nodes_help_names_every_parameter() -> None:
    assert all(f"  {item.name}:=" in help_text() for item in fields(NodeSettings))
    code = "import sys; sys.modules['rclpy'] = None; from volar.robots.ros2.controller_command import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == help_text().strip()
