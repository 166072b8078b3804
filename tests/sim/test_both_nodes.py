"""The controller node in its own process and the simulated arm in this one, over DDS; either is restarted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")

from std_srvs.srv import Trigger  # noqa: E402

from volar.robots.errors import UsageError  # noqa: E402
from volar.robots.real_time import Pacer  # noqa: E402
from volar.sim.evaluate import EvaluateConfig  # noqa: E402
from volar.sim.ros2_twin import PERIOD_NS, Twin  # noqa: E402
from volar.sim.through_ros2 import CONTROLLER, ControllerProcess, Ros2ClosedLoop  # noqa: E402
from volar.sim.world import TaskWorld  # noqa: E402

MOVED_RAD, TARGET_X_M = 0.02, 0.5  # the artifact moves the hand to x = 0.5 m, from 0.45


class Stage:
    """One world, a twin that can be replaced, a controller that can be replaced, and a client."""

    def __init__(self, artifact: Path, domain: int, client: Any) -> None:
        from volar.robots.policies import read_contract

        sizes = {camera.name: (camera.width, camera.height) for camera in read_contract(artifact).cameras}
        self.world = TaskWorld("reach", "fr3", sizes)
        self.world.reset(0)
        self.artifact, self.domain, self.client = artifact, domain, client
        self.pacer = Pacer(PERIOD_NS)
        self.pacer.start()
        self.controller: ControllerProcess | None = None
        self.twin = self.new_twin()

    def new_twin(self) -> Twin:
        twin = Twin(self.world, camera_hz=25.0)
        twin.__enter__()
        self.twin = twin
        return twin

    def period(self) -> None:
        """As `Ros2ClosedLoop` does it: the physics waits for a command while they come."""
        before = self.twin.received
        self.pacer.wait()
        self.twin.begin_period()
        with self.twin.arrived:
            self.twin.arrived.wait_for(lambda: self.twin.received > before, 0.02)
        self.twin.end_period()

    def until(self, there: Callable[[], bool]) -> None:
        self.client.until(there, self.period)

    def start(self) -> ControllerProcess:
        """A controller that is active, and has sent its first command."""
        self.controller = controller = ControllerProcess(self.client.node, self.artifact, "fr3", self.domain)
        self.until(controller.found())
        self.until(controller.transition("configure"))
        self.until(controller.instruct("reach the red block"))
        received = self.twin.received
        self.until(controller.transition("activate"))
        self.until(lambda: self.twin.received > received)
        return controller

    def ask(self, name: str) -> Any:
        return self.client.ask(Trigger, f"{CONTROLLER}/{name}", self.period)

    @property
    def q(self) -> Any:
        return self.world.body.joint_state().q

    @property
    def hand_x_m(self) -> float:
        return float(self.world.data.site(self.world.spec.ee_site).xpos[0])

    def close(self) -> None:
        if self.controller is not None:
            self.controller.close()
        self.twin.__exit__(None, None, None)
        self.world.close()


@pytest.fixture
def stage(artifact_folder: Path, ros2_client: Any) -> Iterator[Stage]:
    with ros2_client.own_domain(2) as domain, ros2_client.Client() as client:
        made = Stage(artifact_folder, domain, client)
        yield made
        made.close()


def test_the_controller_is_restarted_and_goes_on(stage: Stage) -> None:
    """The arm rests meanwhile; a new controller goes on from there, and no command is one to abort on."""
    start = stage.q
    controller = stage.start()
    stage.until(lambda: bool(np.abs(stage.q - start).max() > MOVED_RAD))
    controller._process.terminate()  # a killed one is still announced by DDS for 20 s
    stage.until(lambda: not controller.alive)
    for _ in range(60):
        stage.period()
    controller.close()
    rested, received = stage.q, stage.twin.received
    for _ in range(30):
        stage.period()
    assert stage.twin.received == received
    np.testing.assert_allclose(stage.q, rested, atol=1e-3)
    assert stage.hand_x_m < TARGET_X_M - 0.005
    stage.start()
    stage.until(lambda: abs(stage.hand_x_m - TARGET_X_M) < 0.01)
    assert stage.twin.check.violations == 0
    assert stage.twin.reflex_reason == ""


def test_the_robot_is_restarted_and_the_controller_recovers(stage: Stage) -> None:
    """The clock begins again: the controller stops by name, sends nothing that moves, and goes on when told to."""
    start = stage.q
    controller = stage.start()
    stage.until(lambda: bool(np.abs(stage.q - start).max() > MOVED_RAD))
    stage.twin.__exit__(None, None, None)
    stage.new_twin()
    stage.until(lambda: controller.said.startswith("stopped"))
    assert controller.reason in ("clock_jump", "stale_joint_state", "stale_camera")
    for _ in range(30):
        stage.period()
    rested = stage.q
    for _ in range(30):
        stage.period()
    np.testing.assert_allclose(stage.q, rested, atol=1e-3)
    stage.until(lambda: bool(stage.ask("recover").success))
    stage.until(lambda: abs(stage.hand_x_m - TARGET_X_M) < 0.01)


def test_an_episode_runs_through_both_nodes(artifact_folder: Path) -> None:
    """Two scenes, one after the other: every period has its command, none of them is one to abort on."""
    loop = Ros2ClosedLoop(artifact_folder, "reach", max_steps=12)
    try:
        for seed in (1, 2):
            record = loop.run(seed)
            assert record.valid
            assert not record.broken, record.reason
            assert record.success or record.steps == 12
            assert not any(reason.startswith("reflex") for reason in record.holds)
            assert record.holds.get("no_command", 0) <= 12  # of 120, on a machine that is busy
            assert len(loop.trace.commands) == 10 * record.steps
            assert record.margins.velocity > 0
        first, last = loop.trace.commands[0].q, loop.trace.commands[-1].q
        assert np.abs(last - first).max() > MOVED_RAD
    finally:
        loop.close()


def test_what_makes_no_sense_together_is_refused() -> None:
    with pytest.raises(UsageError, match="stop=sequential"):
        EvaluateConfig(through="ros2", stop="sequential")
