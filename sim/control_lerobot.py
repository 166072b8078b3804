"""`volar-control robot=lerobot/so101 lerobot_robot=FILE`: the same loop on a real arm, through LeRobot's driver."""

import contextlib
import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from volar.robots.errors import UsageError, VolarError

if TYPE_CHECKING:
    from volar.sim.control import ControlConfig

LEROBOT = "lerobot/"
BRAKING_S = 2.0  # more than any arm here needs to come to rest


def control_lerobot(config: "ControlConfig") -> dict[str, Any]:
    """Runs for `duration_s`, brakes, and disconnects; writes control.json and returns it.

    However it ends (Ctrl-C, a policy that dies), the arm is brought to rest first. Raises `UsageError` for settings
    that mean nothing here, `VolarError` for a robot that is not calibrated or does not fit.
    """
    from volar.datasets.durable_file import write_durably
    from volar.robots.contract import require
    from volar.robots.lerobot_robot import LeRobotBody, open_robot
    from volar.robots.policy_source import open_source
    from volar.robots.spec import load_robot

    if config.lerobot_robot is None or config.instruction is None or config.duration_s is None:
        raise UsageError("a real arm needs lerobot_robot=FILE.json, instruction=... and duration_s=...")
    simulated = {"video": config.video, "asset": config.asset, "task": config.task, "seed": config.seed or None}
    simulated |= {"episodes": None if config.episodes == 1 else config.episodes}
    if given := [name for name, value in simulated.items() if value is not None]:
        raise UsageError(f"{', '.join(given)}: for simulated arms only, not for robot={config.robot}")
    spec = load_robot(config.robot.removeprefix(LEROBOT))
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_source(config.policy))
        require(source.contract, spec)
        robot = open_robot(config.lerobot_robot)
        robot.connect(calibrate=False)
        stack.callback(robot.disconnect)
        if not robot.is_calibrated:
            raise VolarError(
                f"{robot.name} is not calibrated: lerobot-calibrate --robot.type=... --robot.id={robot.id}"
            )
        body = LeRobotBody(robot, spec)
        body.require_cameras(source.contract)
        body.start()
        stack.callback(body.close)
        result = run_body(body, source, config.instruction, config.duration_s, config.rate_hz)
    config.output.mkdir(parents=True, exist_ok=True)
    result |= {"policy": config.policy, "robot": config.robot, "instruction": config.instruction}
    write_durably(config.output / "control.json", json.dumps(result, indent=1).encode() + b"\n")
    print(json.dumps(result, indent=1))
    return result


def run_body(body: Any, source: Any, instruction: str, duration_s: float, rate_hz: float) -> dict[str, Any]:
    """Ticks in real time for `duration_s`, then, and whatever is raised meanwhile, until the arm rests."""
    from volar.robots.control_loop import ControlLoop
    from volar.robots.kinematics import Arm
    from volar.robots.limit_margins import MarginMeter
    from volar.robots.real_time import Pacer, real_time_scheduling

    loop = ControlLoop.for_policy(body, Arm(body.spec), source.contract, source, period_s=1.0 / rate_hz)
    meter, holds, ticks = MarginMeter(body.spec, 1.0 / rate_hz), Counter[str](), 0

    def tick() -> Any:
        report = loop.tick(time.monotonic_ns())
        meter.add(report.command)
        holds.update([report.reason] if report.reason else [])
        return report

    source.reset(0)
    loop.set_instruction(instruction)
    pacer = Pacer(round(1e9 / rate_hz))
    loop.reset(time.monotonic_ns())
    with real_time_scheduling():
        pacer.start()
        try:
            for _ in range(round(duration_s * rate_hz)):
                pacer.wait()
                tick()
                ticks += 1
                if source.failure is not None:
                    raise VolarError(f"the policy failed: {source.failure}")
        finally:
            loop.stop()
            for _ in range(round(BRAKING_S * rate_hz)):
                pacer.wait()
                command = tick().command
                if not command.dq.any() and not command.ddq.any():
                    break
    clamp = None if body.clamp is None else vars(body.clamp)
    margins = vars(meter.result())
    return {"ticks": ticks, "holds": dict(holds), "margins": margins, "clamped": body.clamps, "last_clamp": clamp}
