"""One domain, one client, one arm and one controller for each module that asks; rclpy may be missing."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

HERE = Path(__file__).parent
DOMAINS = {
    "test_controller_node": 5,
    "test_controller_process": 6,
    "test_run_controller": 7,
    "test_parity": 8,
    "test_topic_rates": 9,
    "test_command_output": 10,
}


def _loaded(path: Path) -> Any:
    """A file as a module: pytest's import mode puts no folder of tests on `sys.path`."""
    spec = importlib.util.spec_from_file_location(f"volar_tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def artifact_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moves the hand along x to 0.5 m, from 0.45, with the gripper open."""
    folder = _loaded(HERE.parent / "conftest.py").write_artifact(tmp_path_factory.mktemp("artifact") / "tiny")
    assert isinstance(folder, Path)
    return folder


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """`domain`, and `module` with `ExactArm` and `Controller`."""
    pytest.importorskip("rclpy")
    client = _loaded(HERE.parents[1] / "sim" / "ros2_client.py")
    number = DOMAINS[request.module.__name__.rpartition(".")[2]]
    with client.own_domain(number) as domain:
        yield SimpleNamespace(domain=domain, client=client.Client, module=_loaded(HERE / "driver.py"))


@pytest.fixture
def stage(network: SimpleNamespace, artifact_path: Path) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """Makes an arm and a controller: `stage(arm={...}, arguments=[...], **parameters)`."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(network.client())

        def make(arm: dict[str, Any] | None = None, arguments: Any = (), **values: Any) -> tuple[Any, Any]:
            name = values.pop("name", "volar_controller")
            body = network.module.ExactArm(client, **(arm or {}))
            stack.callback(body.close)
            values = {"policy": artifact_path, "instruction": "lift the red block", "gripper_output": "topic"} | values
            controller = network.module.Controller(client, network.domain, *arguments, name=name, **values)
            stack.callback(controller.close)
            return body, controller

        yield make
