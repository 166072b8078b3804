"""volar-sim-robot in this process: how long it runs, and over a scene that cannot go on."""

import signal
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy")

from volar.sim.ros2_robot import SimRobotConfig, serve
from volar.sim.ros2_twin import Twin

pytestmark = pytest.mark.real_time


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A domain of its own; what a signal does is as before afterwards."""
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("ROS_DOMAIN_ID", "77")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_it_simulates_as_long_as_it_is_told_over_a_scene_that_diverges(
    alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, seeds = Twin.end_period, []
    problems: dict[str, str] = {}

    def end_period(twin: Twin, physics: bool = True) -> None:
        seeds.append(twin.world.seed)
        problems.update(twin.problems)
        if len(seeds) == 10:
            twin.world.data.qvel[0] = np.nan
        end(twin, physics)

    monkeypatch.setattr(Twin, "end_period", end_period)
    serve(SimRobotConfig(task="reach", image_size=16, seed=4, duration_s=0.3), [])
    assert seeds == [4] * 10 + [5] * 20
    assert "reach, seed 4: the simulation became unstable" in problems["scene"]


def test_no_time_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="duration_s=0 must be positive"):
        SimRobotConfig(duration_s=0.0)
