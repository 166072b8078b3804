"""The controller node in its own process before an arm that does as told, over DDS: lifecycle, orders, faults."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from rcl_interfaces.srv import DescribeParameters  # noqa: E402
from std_msgs.msg import String  # noqa: E402

from volar.robots.fr3 import FR3  # noqa: E402

pytestmark = pytest.mark.real_time

Stage = Callable[..., tuple[Any, Any]]
PERIODS = 30
PIXELS = 16  # of the artifact
# Where it is not the deadlines that are tested.
PATIENT = {"joint_state_age_s": "2.0", "camera_age_s": "5.0", "clock_jump_s": "5.0"}
# Where they are: one that a busy machine keeps while the sensor speaks.
TESTED = PATIENT | {"joint_state_age_s": "1.0", "camera_age_s": "2.0"}


def pass_by(arm: Any, controller: Any, periods: int = PERIODS) -> None:
    """Time that the arm counts."""
    until = arm.periods + periods
    controller.until(lambda: arm.periods >= until)


def within_limits(arm: Any) -> bool:
    """Of all commands since the last call, which began at rest."""
    margins = arm.margins()
    return bool(min(margins.position, margins.velocity, margins.acceleration, margins.jerk) > -1e-6)


def activate(arm: Any, controller: Any) -> None:
    """Returns when the arm moves."""
    assert controller.transition("activate")
    controller.until(lambda: arm.moving)


def heard_out(arm: Any, controller: Any) -> bool:
    """Waits for the commands that are on their way: true when the last one rests."""
    controller.until(lambda: not arm.moving)
    pass_by(arm, controller)
    return not arm.commands[-1].dq.any()


def test_lifecycle(stage: Stage) -> None:
    """Commands come between activation and deactivation only, begin and end at rest, and keep the limits."""
    arm, controller = stage(**PATIENT)
    arm.run()
    assert controller.lifecycle == "unconfigured"
    assert controller.transition("configure")
    pass_by(arm, controller)
    assert controller.lifecycle == "inactive"
    controller.until(lambda: controller.said == "inactive")
    assert arm.commands == []
    for _ in range(2):  # a second time, from where the arm is put
        arm.home()
        activate(arm, controller)
        assert controller.transition("deactivate")
        assert heard_out(arm, controller)
        count = len(arm.commands)
        pass_by(arm, controller)
        assert len(arm.commands) == count
        assert within_limits(arm)
    assert controller.transition("cleanup")
    assert controller.lifecycle == "unconfigured"
    assert controller.transition("configure")
    arm.home()
    activate(arm, controller)
    assert arm.messages[-1].header.stamp.sec == 0  # from its arrival: no controller drops it for being late
    assert arm.messages[-1].points[0].time_from_start.nanosec == 10_000_000
    assert controller.transition("active_shutdown")
    assert controller.process.wait(timeout=60) == 0
    assert heard_out(arm, controller)
    assert within_limits(arm)


def test_orders(stage: Stage) -> None:
    """Each is answered by the loop, with its reason where it is denied; an instruction comes by topic or parameter."""
    arm, controller = stage(**PATIENT)
    arm.run()
    assert controller.transition("configure")
    answer = controller.trigger("stop")
    assert (answer.success, answer.message) == (False, "not moving: activate the node first")
    activate(arm, controller)
    for order, granted, message in (
        ("resume", False, "not_paused"),
        ("recover", False, "not_stopped"),
        ("pause", True, "paused"),
        ("resume", True, "running"),
        ("stop", True, "stopped"),
        ("resume", False, "is_stopped"),
    ):
        answer = controller.trigger(order)
        assert answer.success is granted, order
        assert answer.message == message or (order == "resume" and granted)  # running, or holding until a chunk comes
    controller.until(lambda: not arm.moving)
    controller.until(lambda: controller.said == "stopped: stop_requested")
    controller.until(lambda: controller.trigger("recover").success)

    controller.told.publish(String(data=" lift the blue block "))
    controller.until(lambda: controller.values.get("instruction") == "lift the blue block")
    assert controller.set_text("instruction", "lift the block").successful
    controller.until(lambda: controller.values.get("instruction") == "lift the block")
    refused = controller.set_text("instruction", " ")
    assert not refused.successful
    assert refused.reason == "the instruction is empty"
    refused = controller.set_text("robot", "ur5e")
    assert not refused.successful
    assert "clean it up first" in refused.reason
    controller.told.publish(String(data=""))
    pass_by(arm, controller)
    assert controller.values["instruction"] == "lift the block"
    assert within_limits(arm)


def test_why_the_policy_gives_no_chunk_is_said(stage: Stage) -> None:
    """In the diagnostics and, once, in the log; an instruction that it can read moves the arm again."""
    arm, controller = stage(**PATIENT)
    arm.run()
    assert controller.transition("configure")
    activate(arm, controller)
    assert controller.values["policy error"] == ""
    assert controller.set_text("instruction", " ".join(["block"] * 20)).successful
    controller.until(lambda: "has 20 words" in controller.values["policy error"])
    controller.until(lambda: "gave no chunk" in controller.log)
    line = next(line for line in controller.log.splitlines() if "gave no chunk" in line)
    assert "has 20 words, the policy takes at most" in line
    controller.until(lambda: not arm.moving)
    pass_by(arm, controller, 150)  # more than one report
    assert controller.log.count("gave no chunk") == 1
    assert controller.said.startswith("holding")
    assert controller.set_text("instruction", "lift the block").successful
    controller.until(lambda: controller.said == "running")


def test_faults_of_the_senses(stage: Stage) -> None:
    """A sensor that falls silent stops the arm by name; it moves again when told to, and not before it is heard."""
    arm, controller = stage(**TESTED)
    arm.run()
    assert controller.transition("configure")
    activate(arm, controller)
    for sense, fault in (("images", "stale_camera"), ("states", "stale_joint_state")):
        setattr(arm, sense, False)
        controller.until(lambda fault=fault: controller.said == f"stopped: {fault}")
        controller.until(lambda fault=fault: controller.status.status[0].message == f"stopped: {fault}")
        assert controller.status.status[0].level == DiagnosticStatus.ERROR
        controller.until(lambda fault=fault: controller.trigger("recover").message == fault)  # not while it lasts
        told = "sent" if sense == "images" else "ceased: the arm rests where it is, until it may move again"
        controller.until(lambda told=told: controller.values["commands"] == told)
        rested = len(arm.commands)
        pass_by(arm, controller)
        assert all((command.q == arm.q).all() for command in arm.commands[rested:])
        setattr(arm, sense, True)
        controller.until(lambda: controller.trigger("recover").success)
        controller.until(lambda: controller.said == "running")
    assert within_limits(arm)
    assert {"camera front age [ms]", "period error p99 [ms]", "policy restarts"} <= controller.values.keys()


def test_images_that_cannot_be_the_policys_are_named(stage: Stage) -> None:
    """Whatever a camera sends, the others and the services go on."""
    arm, controller = stage(**TESTED)
    assert controller.transition("configure")
    assert controller.transition("activate")
    arm.run()
    controller.until(lambda: arm.moving)
    arm.shape = (PIXELS, 2 * PIXELS)
    controller.until(lambda: "the policy wants the shape of 16x16" in controller.values.get("problem with front", ""))
    controller.until(lambda: controller.said == "stopped: stale_camera")
    arm.shape = (2 * PIXELS, 2 * PIXELS)  # larger, of the same shape: made smaller
    controller.until(lambda: controller.trigger("recover").success)
    controller.until(lambda: controller.said == "running")
    assert within_limits(arm)


def test_a_configuration_that_is_refused_leaves_the_node_alive(stage: Stage, artifact_path: Path) -> None:
    arm, controller = stage(policy="nowhere", **PATIENT)
    arm.run()
    assert not controller.transition("configure")
    assert controller.lifecycle == "unconfigured"
    assert "nowhere" in controller.log
    assert controller.set_text("policy", artifact_path).successful
    assert controller.set_text("robot", "ur5e").successful
    assert not controller.transition("configure")
    controller.until(lambda: "ur5e" in controller.log)
    assert controller.set_text("robot", "fr3").successful
    assert controller.transition("configure")
    activate(arm, controller)
    assert controller.terminate() == 0
    assert within_limits(arm)


def test_an_arm_that_was_told_nothing_does_not_move(stage: Stage) -> None:
    """It says what it waits for; the first instruction starts it."""
    arm, controller = stage(instruction="", **PATIENT)
    assert controller.transition("configure")
    assert controller.transition("activate")
    controller.until(lambda: "joint fr3_joint1" in controller.values.get("waits for", ""))
    assert "camera wrist" in controller.values["waits for"]
    arm.run()
    controller.until(lambda: controller.values.get("waits for") == "an instruction")
    assert controller.status.status[0].message == "waits for an instruction"
    pass_by(arm, controller)
    assert arm.commands == []
    start = arm.q
    assert controller.set_text("instruction", "lift the red block").successful
    controller.until(lambda: arm.moving)
    np.testing.assert_allclose(arm.commands[0].q, start, atol=1e-3)
    assert within_limits(arm)


@pytest.mark.parametrize(("order", "then"), [("stop", "stopped: stop_requested"), ("pause", "paused: pause_requested")])
def test_an_order_to_rest_is_kept_while_the_node_waits(stage: Stage, order: str, then: str) -> None:
    """What it waited for comes, and the arm stays where it is, until it is told to go on."""
    arm, controller = stage(instruction="", **PATIENT)
    arm.run()
    assert controller.transition("configure")
    assert controller.transition("activate")
    controller.until(lambda: controller.values.get("waits for") == "an instruction")
    refused = controller.trigger("recover")
    assert (refused.success, refused.message) == (False, "not moving yet: it waits for an instruction")
    answer = controller.trigger(order)
    assert (answer.success, answer.message) == (True, f"will be {then.partition(':')[0]} at the first tick")
    start = arm.q
    assert controller.set_text("instruction", "lift the red block").successful
    controller.until(lambda: controller.said == then)
    controller.until(lambda: len(arm.commands) > PERIODS)
    assert all(np.allclose(command.q, start, atol=1e-9) and not command.dq.any() for command in arm.commands)
    assert controller.trigger("recover" if order == "stop" else "resume").success
    controller.until(lambda: arm.moving)
    assert within_limits(arm)


def test_it_starts_only_from_a_fresh_finite_state_at_rest(stage: Stage) -> None:
    """What is wrong with the newest one is said; nothing is sent until one will do."""
    arm, controller = stage(**TESTED)
    arm.speed = 1.0
    arm.run()
    assert controller.transition("configure")
    assert controller.transition("activate")

    def waits_for(text: str) -> None:
        controller.until(lambda: text in controller.values.get("waits for", ""))
        assert arm.commands == []

    waits_for("a state to start from: fr3_joint1 moves at 1.000 rad/s")
    arm.q[3], arm.speed = np.nan, None
    waits_for("a state to start from: fr3_joint4 is measured at nan")
    arm.states = False
    waits_for("a joint state newer than 1 s")
    arm.home()
    arm.states = True
    controller.until(lambda: arm.moving)
    np.testing.assert_allclose(arm.commands[0].q, FR3.home, atol=1e-3)
    assert within_limits(arm)


def test_it_does_not_start_from_where_the_arm_was(stage: Stage) -> None:
    """Everything has come once, and the driver has fallen silent before the instruction comes."""
    arm, controller = stage(instruction="", **TESTED)
    arm.run()
    assert controller.transition("configure")
    assert controller.transition("activate")
    controller.until(lambda: controller.values.get("waits for") == "an instruction")
    arm.states = False
    controller.until(lambda: controller.values.get("waits for") == "a joint state newer than 1 s, an instruction")
    arm.q = arm.q + 0.1  # somebody moves it meanwhile
    start = arm.q
    assert controller.set_text("instruction", "lift the red block").successful
    controller.until(lambda: controller.values.get("waits for") == "a joint state newer than 1 s")
    assert controller.said == "active"
    assert arm.commands == []
    arm.states = True
    controller.until(lambda: arm.moving)
    np.testing.assert_allclose(arm.commands[0].q, start, atol=1e-3)
    assert within_limits(arm)


def test_parameters_are_described(stage: Stage) -> None:
    _, controller = stage()
    names = ["rate_hz", "camera_sync_s", "policy", "instruction", "joint_state_age_s"]
    answer = controller.call(DescribeParameters, "describe_parameters", DescribeParameters.Request(names=names))
    described = dict(zip(names, answer.descriptors, strict=True))
    assert all(item.description for item in described.values())
    rate = described["rate_hz"].floating_point_range[0]
    assert (rate.from_value, rate.to_value) == (50.0, 500.0)
    assert described["camera_sync_s"].floating_point_range
