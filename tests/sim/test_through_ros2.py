"""Evaluation's episodes through both nodes: the twin in this process, the controller in its own."""

from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")

from volar.robots.errors import UsageError  # noqa: E402
from volar.sim.evaluate import EvaluateConfig  # noqa: E402
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


def test_what_makes_no_sense_together_is_refused() -> None:
    with pytest.raises(UsageError, match="stop=sequential"):
        EvaluateConfig(through="ros2", stop="sequential")
