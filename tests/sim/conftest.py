"""The small artifact of tests/robots, for tests that run a policy in the scene."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def artifact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moves the hand to x = 0.5 m with the gripper open; takes instructions of at most seven words."""
    module = _loaded(Path(__file__).parents[1] / "robots" / "conftest.py", "volar_tests_robots_artifact")
    folder = module.write_artifact(tmp_path_factory.mktemp("artifact") / "tiny")
    assert isinstance(folder, Path)
    return folder


@pytest.fixture(scope="session")
def ros2_client() -> Any:
    """The module `ros2_client.py` beside this file: `Client` and `own_domain`."""
    pytest.importorskip("rclpy")
    return _loaded(Path(__file__).with_name("ros2_client.py"), "volar_tests_ros2_client")


def _loaded(path: Path, name: str) -> Any:
    """A file as a module: pytest's import mode puts no folder of tests on `sys.path`."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
