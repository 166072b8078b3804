"""The loop's thread by itself: what it answers when the loop has ended."""

import threading
from typing import Any

import pytest

pytest.importorskip("rclpy")

from volar.robots.control_loop import ControlLoop
from volar.robots.fr3 import FR3
from volar.robots.kinematics import Arm
from volar.robots.ros2.clocks import WallClock
from volar.robots.ros2.control_thread import NOT_ACTIVE, ControlThread
from volar.robots.ros2.ros2_body import Ros2Body


def test_a_loop_that_an_error_ended_promises_no_tick() -> None:
    """Nor while its thread still closes the recording, which is when `changed` is called."""
    body = Ros2Body(FR3, {}, lambda command: None)
    source: Any = None  # not asked before the first tick
    loop = ControlLoop(body, Arm(FR3), FR3.action)
    answers, ended = list[tuple[bool, str]](), threading.Event()

    def changed() -> None:
        assert thread.alive
        answers.extend(thread.order(name) for name in ("stop", "recover"))
        ended.set()

    def fail() -> Any:
        raise OSError("the middleware is gone")

    thread = ControlThread(loop, body, source, WallClock(10_000_000), changed, listeners=fail)
    thread.start()
    assert ended.wait(30.0)
    assert answers == [(False, NOT_ACTIVE)] * 2
    assert thread.error == "OSError: the middleware is gone"
    assert thread.leave()
