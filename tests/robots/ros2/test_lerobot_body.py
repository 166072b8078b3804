"""A LeRobot robot's images and joints of one moment: what `Ros2Body` does with stamps, its body does by turns."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from volar.robots.joint_units import DEGREES, JointUnits
from volar.robots.lerobot_robot import LeRobotBody, LeRobotRobotError
from volar.robots.so101 import SO101

KEYS = tuple(f"{name}.pos" for name in (*SO101.joint_names, "gripper"))
MS = 1_000_000


class Counting:
    """Has LeRobot's interface: at each turn every joint is a degree further, and the image one brighter."""

    name = "counting"
    observation_features = dict.fromkeys(KEYS, float) | {"front": (4, 4, 3)}
    action_features = dict.fromkeys(KEYS, float)
    turns = 0

    def get_observation(self) -> dict[str, Any]:
        self.turns += 1
        return dict.fromkeys(KEYS, float(self.turns)) | {"front": np.full((4, 4, 3), self.turns, np.uint8)}


def test_joints_are_taken_with_the_images_though_the_bus_goes_on() -> None:
    clock = SimpleNamespace(now_ns=0)
    body = LeRobotBody(Counting(), SO101, units=JointUnits(DEGREES, 0.0, 100.0), clock=lambda: clock.now_ns)
    with pytest.raises(LeRobotRobotError, match="has not answered yet"):
        body.images()
    assert body.image_stamps() == {}
    for turn in (1, 2, 3):
        clock.now_ns = turn * 10 * MS
        body.exchange()
        assert body.error is None
        assert body.image_stamps() == {"front": turn * 10 * MS}
        if turn == 2:
            image = body.images()["front"]
    assert image[0, 0, 0] == 2
    np.testing.assert_allclose(np.degrees(body.taken().q), 2.0)
    assert body.taken().stamp_ns == 20 * MS
    np.testing.assert_allclose(np.degrees(body.joint_state().q), 3.0)
