"""Evaluation's episodes through both nodes: the twin in this process, the controller in its own."""

import shutil
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")

from volar.robots.errors import UsageError, VolarError  # noqa: E402
from volar.sim.closed_loop import NothingRuns  # noqa: E402
from volar.sim.conditions import THROUGH_ROS2  # noqa: E402
from volar.sim.evaluate import EvaluateConfig  # noqa: E402
from volar.sim.evaluation import Bench, Job, run_jobs  # noqa: E402
from volar.sim.through_ros2 import Ros2ClosedLoop  # noqa: E402

pytestmark = pytest.mark.real_time

MOVED_RAD = 0.02


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


def test_a_controller_that_dies_costs_one_episode(artifact_folder: Path) -> None:
    """In the episode, and between two of them, which costs none."""
    loop = Ros2ClosedLoop(artifact_folder, "reach", max_steps=3)

    def kill(world: object = None) -> None:
        assert loop._controller is not None
        loop._controller._process.kill()
        loop._controller._process.wait()

    try:
        broken = loop.run(1, after_step=kill)
        assert broken.broken
        assert "the controller ended" in broken.reason
        assert not loop.run(2).broken
        kill()
        assert not loop.run(3).broken
    finally:
        loop.close()


def test_nodes_that_do_not_start_are_no_episodes_fault(artifact_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(artifact_folder, tmp_path / "damaged")
    (folder / "artifact.json").write_text("{}")
    loop = Ros2ClosedLoop(folder, "reach", max_steps=3)
    try:
        with pytest.raises(NothingRuns, match="do not start: the controller"):
            loop.run(1)
    finally:
        loop.close()
    with pytest.raises(VolarError, match="do not start: the controller"):
        next(run_jobs(Bench(str(folder), "fr3", 0.0), [Job("reach", THROUGH_ROS2, 0, 1)], workers=1))


def test_what_makes_no_sense_together_is_refused() -> None:
    with pytest.raises(UsageError, match="stop=sequential"):
        EvaluateConfig(through="ros2", stop="sequential")
