"""What the doctor says of a robot's topics, heard from a real arm on a domain of its own."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from volar.robots import doctor
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.doctor import Check, DoctorConfig
from volar.robots.errors import UsageError
from volar.robots.fr3 import FR3

pytestmark = pytest.mark.real_time
SHORT_S = 6.0  # until a silent topic counts as such; discovery alone can take 2.4 s


@pytest.fixture
def publish(network: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Starts an arm that publishes; what listens is on its domain."""
    monkeypatch.setenv("ROS_DOMAIN_ID", str(network.domain))
    monkeypatch.setattr("volar.robots.ros2.topic_rates.DISCOVERY_S", SHORT_S)
    with network.client() as client:
        arms: list[Any] = []

        def start(shape: tuple[int, int] = (16, 16), images: bool = True, **kind: Any) -> None:
            arms.append(network.module.ExactArm(client, **kind))
            arms[-1].shape, arms[-1].images = shape, images
            arms[-1].run()

        yield start
        for arm in arms:
            arm.close()


def listen(contract: PolicyContract | None, *ros_arguments: str) -> dict[str, Check]:
    from volar.robots.ros2.topic_rates import check_topics

    found = check_topics(FR3, contract, 1.0, ros_arguments)
    return {check.name.removeprefix("topic "): check for check in found}


def test_what_comes_is_measured(publish: Callable[..., Any], artifact_path: Path) -> None:
    contract = PolicyContract.load(artifact_path / "contract.json")
    publish()
    found = listen(contract)
    assert set(found) == {"joint_states", "front/image_raw", "wrist/image_raw"}
    assert all(check.status != "broken" for check in found.values()), found  # a busy machine may be slow
    assert "10 joints" in found["joint_states"].found
    assert "16x16 bgr8" in found["front/image_raw"].found
    rates = {name: float(check.found.split()[0]) for name, check in found.items()}
    assert rates["joint_states"] > 2 * rates["front/image_raw"]  # it publishes an image every fourth period

    large = dataclasses.replace(contract, cameras=(CameraSpec("front", 32, 32),))
    check = listen(large)["front/image_raw"]
    assert check.status == "broken"
    assert "gives 16x16, the policy wants 32x32" in check.fix


def test_the_fix_of_a_silent_topic_is_named(
    publish: Callable[..., Any], artifact_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(compressed=True)
    check = listen(None)["front/image_raw"]
    assert (check.status, check.found) == ("broken", "/front/image_raw is silent")
    assert "image_transport:=compressed" in check.fix

    publish(prefix="left/")  # the same arm in a namespace
    remapped = listen(None, "--ros-args", "-r", "front/image_raw:=left/front/image_raw")
    assert remapped["front/image_raw"].status != "broken"
    monkeypatch.setattr(doctor, "checks", lambda config: [])
    assert doctor.examine(DoctorConfig(robot="ros2/fr3", artifact=artifact_path, seconds=0.5)) == 1


def test_another_topic_of_that_type_is_offered(publish: Callable[..., Any]) -> None:
    publish(prefix="left/")
    found = listen(None)
    assert all(check.status == "broken" for check in found.values())
    assert "/left/joint_states" in found["joint_states"].fix
    assert "-r wrist/image_raw:=TOPIC" in found["wrist/image_raw"].fix


def test_a_publisher_that_says_nothing(publish: Callable[..., Any]) -> None:
    publish(images=False)
    found = listen(None)
    assert found["joint_states"].status != "broken"
    assert "has a publisher that sends nothing" in found["front/image_raw"].fix


def test_a_robot_that_is_not_the_artifacts_is_refused(artifact_path: Path) -> None:
    with pytest.raises(UsageError, match="the artifact is for fr3"):
        doctor.examine(DoctorConfig(robot="ros2/ur5e", artifact=artifact_path))
    with pytest.raises(UsageError, match="ros2/fr3"):
        DoctorConfig(robot="sim/fr3")
