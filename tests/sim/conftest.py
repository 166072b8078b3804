"""The small artifact of tests/robots, for tests that run a policy in the scene."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def artifact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moves the hand to x = 0.5 m with the gripper open; takes instructions of at most seven words."""
    source = Path(__file__).parents[1] / "robots" / "conftest.py"
    spec = importlib.util.spec_from_file_location("volar_tests_robots_artifact", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = module.write_artifact(tmp_path_factory.mktemp("artifact") / "tiny")
    assert isinstance(folder, Path)
    return folder
