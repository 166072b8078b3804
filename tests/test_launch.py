"""The ROS 2 package: executed where launch_ros is installed, read otherwise; its parameters are the node's own."""

import ast
import importlib.util
import runpy
import secrets
from pathlib import Path
from typing import Any

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
FILES = sorted((LAUNCH / "launch").glob("*.launch.py"))
ROBOTS = ("fr3", "sim", "so101", "ur5e")


def test_every_robot_has_a_launch_file_and_parameters() -> None:
    assert tuple(path.name.removesuffix(".launch.py") for path in FILES) == ROBOTS
    assert tuple(sorted(path.stem for path in (LAUNCH / "config").glob("*.yaml"))) == ROBOTS


@pytest.mark.parametrize("path", FILES, ids=ROBOTS)
def test_a_launch_file_configures_and_activates_only_on_request(path: Path) -> None:
    """Read: no code of volar is imported, the controller is a lifecycle node, activation has a condition."""
    tree = ast.parse(path.read_text())
    calls: dict[str, list[ast.Call]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            calls.setdefault(ast.unparse(node.func), []).append(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert "volar" not in ast.unparse(node)
    (controller,) = calls["LifecycleNode"]
    assert {"package='volar_ros2'", "executable='controller'"} <= {
        f"{k.arg}={ast.unparse(k.value)}" for k in controller.keywords
    }
    transitions = [ast.unparse(k.value) for call in calls["ChangeState"] for k in call.keywords]
    assert {"Transition.TRANSITION_CONFIGURE", "Transition.TRANSITION_ACTIVATE"} <= set(transitions)
    (handler,) = calls["RegisterEventHandler"]
    assert "IfCondition(LaunchConfiguration('activate'))" in ast.unparse(handler)
    declared = {ast.literal_eval(call.args[0]): call for call in calls["DeclareLaunchArgument"]}
    used = {ast.literal_eval(call.args[0]) for call in calls["LaunchConfiguration"]}
    assert used <= declared.keys()
    assert "default_value='false'" in ast.unparse(declared["activate"])


@pytest.mark.parametrize("path", FILES, ids=ROBOTS)
def test_a_launch_file_executes(path: Path) -> None:
    # Not "launch": from the repository root our folder of that name would do for an import.
    pytest.importorskip("launch_ros")
    description: Any = runpy.run_path(str(path))["generate_launch_description"]()
    assert {"policy", "activate"} <= {argument.name for argument in description.get_launch_arguments()}


@pytest.mark.parametrize("robot", ROBOTS)
def test_parameters_are_those_of_the_node(robot: str) -> None:
    """ROS reads the file; every name in it is declared, and the settings it makes are valid for the robot."""
    rclpy = pytest.importorskip("rclpy")
    from volar.robots.ros2 import parameters
    from volar.robots.spec import load_robot

    context = rclpy.Context()
    arguments = ["--ros-args", "--params-file", str(LAUNCH / "config" / f"{robot}.yaml")]
    rclpy.init(args=arguments, context=context, domain_id=1 + secrets.randbelow(100))
    node = rclpy.create_node("volar_controller", context=context)
    try:
        given = dict(node._parameter_overrides)
        parameters.declare(node)
        settings = parameters.read(node)
        spec = load_robot(settings.robot)
        topics = {camera: parameters.camera_topic(node, camera, "raw") for camera in spec.cameras}
        assert given.keys() >= {"rate_hz", "command_output", "cameras.front.topic"}
        assert [name for name in given if not node.has_parameter(name)] == []
        assert topics == {camera: f"{camera}/image_raw" for camera in spec.cameras}
        assert node.get_parameter("use_sim_time").value == (robot == "sim")
        if robot != "sim":
            assert settings.robot == robot
            assert settings.trajectory_topic == spec.trajectory_topic
            assert settings.gripper_action == spec.gripper_action
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_the_package_installs_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """setup.py, executed: entry points exist, no package, every launch file and YAML, the resource marker."""
    import setuptools

    told: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **facts: told.update(facts))
    runpy.run_path(str(LAUNCH / "setup.py"))
    assert told["packages"] == []
    installed = {name for _, names in told["data_files"] for name in names}
    assert installed == {"resource/volar_ros2", "package.xml"} | {
        str(path.relative_to(LAUNCH))
        for folder in ("launch", "config")
        for path in (LAUNCH / folder).iterdir()
        if path.is_file()
    }
    assert all((LAUNCH / name).is_file() for name in installed)
    for line in told["entry_points"]["console_scripts"]:
        module, _, function = line.split(" = ")[1].partition(":")
        assert importlib.util.find_spec(module) is not None
        source = Path(str(importlib.util.find_spec(module).origin))  # type: ignore[union-attr]
        assert f"def {function}(" in source.read_text()
