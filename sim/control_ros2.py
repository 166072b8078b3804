"""`volar-control robot=ros2/fr3`: the controller node in this process, before whatever publishes the robot's topics."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from volar.robots.errors import UsageError, VolarError

if TYPE_CHECKING:
    from volar.robots.ros2.run_controller import RobotRun
    from volar.sim.control import ControlConfig

ROS2 = "ros2/"


def control_ros2(config: "ControlConfig", ros_arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Runs for `duration_s` of commands, or until Ctrl-C, and brakes; writes control.json and returns it.

    `ros_arguments`: from `--ros-args` on, as any node takes them. Raises `UsageError` for settings that mean nothing
    here, `VolarError` where ROS 2 is missing, the node refuses to start, or nothing is sent.
    """
    from volar.datasets.durable_file import write_durably
    from volar.sim.control_report import print_summary

    simulated = {"video": config.video, "task": config.task, "seed": config.seed or None}
    simulated |= {"episodes": None if config.episodes == 1 else config.episodes}
    if given := [name for name, value in simulated.items() if value is not None]:
        raise UsageError(f"{', '.join(given)}: for simulated arms only, not for robot={config.robot}")
    if config.instruction is None:
        raise UsageError(f'robot={config.robot} needs instruction="..."')
    try:
        from volar.robots.ros2.run_controller import run_controller
    except ImportError as error:
        raise VolarError(
            f"robot={config.robot} needs ROS 2, which is not installed here ({error}): pip install 'volar[ros2]'"
        ) from error
    parameters = {
        "policy": config.policy,
        "robot": config.robot.removeprefix(ROS2),
        "asset": config.asset or "",
        "instruction": config.instruction,
        "rate_hz": config.rate_hz,
    }
    run = run_controller(parameters, ros_arguments, config.duration_s)
    result = {"policy": config.policy, "robot": config.robot, "asset": config.asset, "instruction": config.instruction}
    result |= summarize(run, 1.0 / config.rate_hz)
    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / "control.json"
    write_durably(path, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")
    print_summary(result)
    print(f"report: {path}")
    return result


def summarize(run: "RobotRun", period_s: float) -> dict[str, Any]:
    """What can be known without a simulator, plain values: everything but success."""
    from volar.sim.control_report import percentiles_ms
    from volar.sim.evaluation import versions

    periods_s = np.diff(np.array(run.ticks_ns, np.int64)) / 1e9
    return {
        "contract_sha256": run.contract_sha256,
        "duration_s": run.duration_s,
        "scheduling": "real-time" if run.real_time else "normal",
        "period_ms": 1e3 * period_s,
        "ticks": len(run.ticks_ns),
        "periods_skipped": int(np.maximum(np.round(periods_s / period_s) - 1, 0).sum()),
        "period_error_ms": percentiles_ms(np.abs(periods_s - period_s)),
        "inference_ms": percentiles_ms(run.inference_s),
        "observation_to_chunk_ms": percentiles_ms(run.chunk_s),
        "holds": dict(sorted(run.holds.items())),
        "refused": dict(sorted(run.refused.items())),
        "margins": asdict(run.margins),
        "policy_restarts": run.policy_restarts,
        "versions": versions(),
    }
