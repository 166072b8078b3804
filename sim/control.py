"""volar-control: an exported policy moves an arm in real time: a simulated one, or one behind ROS 2 or LeRobot.

The same artifact, control loop and safety filter that drive a real arm; the policy runs in a process of its own, the
loop at 100 Hz on the wall clock. Leaves control.json: success, how exact the period was, how long inference took,
when the arm held and why, and how near to its limits it came. An episode that the computer or the robot stopped
(stale_joint_state, for one) is named and not counted: the policy did not cause it.
"""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volar.robots.command_line import run
from volar.robots.control_loop import MAX_RATE_HZ, MIN_RATE_HZ
from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.spec import ROBOTS as ARMS

if TYPE_CHECKING:
    from volar.robots.action_space import ActionSpec
    from volar.robots.policy_source import PolicySource
    from volar.sim.control_report import Run
    from volar.sim.orders import Order
    from volar.sim.wall_clock import RealTimeRun
    from volar.sim.world import TaskWorld

ROBOTS = (*(f"{where}/{robot}" for where in ("sim", "ros2") for robot in ARMS), "lerobot/so101")
EXAMPLES = (
    'volar-control policy=runs/artifact robot=sim/fr3 instruction="lift the red block"',
    "volar-control policy=runs/artifact task=lift episodes=50 output=runs/lifts",
    'volar-control policy=runs/artifact instruction="lift the red block" video=runs/lift.mp4',
    'volar-control policy=runs/artifact robot=ros2/fr3 instruction="lift the red block" duration_s=30',
    'volar-control policy=runs/artifact robot=ros2/fr3 instruction="lift the red block" --ros-args -p record:=runs/bag',
)


@dataclass(frozen=True)
class ControlConfig:
    """Settings of `volar-control`."""

    policy: str = field(
        metadata={"help": "exported artifact (volar-export writes one), lerobot:DIR, or ws://HOST:PORT"}
    )
    robot: str = field(default="sim/fr3", metadata={"help": f"the body to move: {', '.join(ROBOTS)}"})
    lerobot_robot: Path | None = field(
        default=None,
        metadata={"help": "for robot=lerobot/...: JSON with LeRobot's robot configuration (type, port, id)"},
    )
    asset: str | None = field(default=None, metadata={"help": "menagerie:PATH, your own MJCF model of that robot"})
    instruction: str | None = field(
        default=None, metadata={"help": "what to do; left out, what each scene of the task asks for"}
    )
    task: str | None = field(default=None, metadata={"help": "the scene's task; by default the instruction's"})
    episodes: int = field(default=1, metadata={"help": "how often, each time in another scene"})
    seed: int = field(default=0, metadata={"help": "decides the scenes, as in volar-evaluate"})
    duration_s: float | None = field(
        default=None, metadata={"help": "longest time of an episode, by default the task's; for ros2/..., until Ctrl-C"}
    )
    rate_hz: float = field(default=100.0, metadata={"help": "of the control loop; whole multiples of the action rate"})
    video: Path | None = field(default=None, metadata={"help": "film the first episode into this .mp4"})
    output: Path = field(default=Path("runs/control"), metadata={"help": "folder for control.json"})
    overwrite: bool = field(default=False, metadata={"help": "replace a control.json in output, and video"})

    def __post_init__(self) -> None:
        if self.robot not in ROBOTS:
            raise Unknown("robot", self.robot, ROBOTS)
        if self.instruction is None and self.task is None:
            raise UsageError('say what to do: instruction="lift the red block", or task=lift for its own instructions')
        if self.instruction is not None and not self.instruction.strip():
            raise ValueError("instruction is empty")
        if self.lerobot_robot is not None and not self.robot.startswith("lerobot/"):
            raise UsageError(f"lerobot_robot= is for robot=lerobot/so101, not {self.robot}")
        if self.episodes < 1 or self.seed < 0:
            raise ValueError(f"episodes={self.episodes} must be at least 1 and seed={self.seed} at least 0")
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ:
            raise UsageError(f"rate_hz={self.rate_hz:g} must be from {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz")
        if self.duration_s is not None and not self.duration_s > 0:
            raise ValueError(f"duration_s={self.duration_s} must be positive")
        if self.video is not None and self.video.suffix != ".mp4":
            raise ValueError(f"video={self.video} must end in .mp4")


def control(config: ControlConfig, ros_arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Runs the episodes, writing control.json after each; returns the last one. `ros_arguments`: for robot=ros2/...

    Raises `VolarError` for a folder that is no artifact or output that is taken, `ContractError` when the policy
    does not fit the robot, `UsageError` when the instruction means nothing here.
    """
    from volar.datasets.durable_file import write_durably
    from volar.robots.contract import require
    from volar.robots.control_loop import ControlLoop
    from volar.robots.kinematics import Arm
    from volar.robots.policy_source import open_source
    from volar.robots.real_time import Pacer
    from volar.robots.spec import load_robot, robot_name
    from volar.sim import orders
    from volar.sim.closed_loop import world_for
    from volar.sim.control_report import print_summary, summarize

    path = _output_file(config)
    if config.robot.startswith("ros2/"):
        from volar.sim.control_ros2 import control_ros2

        return control_ros2(config, ros_arguments)
    if ros_arguments:
        raise UsageError(f"{ros_arguments[0]} is for robot=ros2/..., not for robot={config.robot}")
    if config.robot.startswith("lerobot/"):
        from volar.sim.control_lerobot import control_lerobot

        return control_lerobot(config)
    robot = robot_name(config.robot.partition("/")[2], config.asset)
    order = (
        orders.understand(config.instruction, config.task) if config.instruction else orders.Order(config.task or "")
    )
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa renders in the loop's thread: another would wait for a core
    pacer = Pacer(round(1e9 / config.rate_hz))
    runs: list[Run] = []
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_source(config.policy))
        contract = source.contract
        require(contract, load_robot(robot))
        world = stack.enter_context(contextlib.closing(world_for(order.task, robot, contract)))
        steps_per_action = _periods_per_action(config.rate_hz, contract.action, world.model.opt.timestep)
        duration_s = config.duration_s or world.task.max_steps / world.spec.action.rate_hz
        _check_words(Path(config.policy), contract.instruction_template, config.instruction)
        config.output.mkdir(parents=True, exist_ok=True)
        facts = _facts(config, order.task, contract.sha256)
        loop = ControlLoop.for_policy(world.body, Arm(world.spec), contract, source, period_s=1.0 / config.rate_hz)
        for run in _run_episodes(config, order, world, loop, source, pacer, duration_s, steps_per_action):
            if source.failure is not None:  # an episode without a policy is none
                raise VolarError(f"the policy failed: {source.failure}")
            runs.append(run)
            about = {"policy_restarts": source.restarts, "policy_error": source.error}
            result = facts | summarize(runs, 1.0 / config.rate_hz) | about
            write_durably(path, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")
    print_summary(result)
    print(f"report: {path}")
    return result


def _output_file(config: ControlConfig) -> Path:
    """Where control.json goes. Raises `VolarError` when that, or the film's file, is taken."""
    path = config.output / "control.json"
    if config.output.exists() and not config.output.is_dir():
        raise VolarError(f"output {config.output} is a file; give a folder")
    if path.exists() and not config.overwrite:
        raise VolarError(f"output {config.output} holds a control.json; give another output=, or overwrite=true")
    if config.video is not None and config.video.exists() and not config.overwrite:
        raise VolarError(f"video {config.video} exists; give another video=, or overwrite=true")
    return path


def _facts(config: ControlConfig, task: str, contract_sha256: str) -> dict[str, Any]:
    """What was run, for control.json."""
    return {
        "policy": config.policy,
        "contract_sha256": contract_sha256,
        "robot": config.robot,
        "asset": config.asset,
        "task": task,
        "instruction": config.instruction,
        "seed": config.seed,
    }


def _periods_per_action(rate_hz: float, action: "ActionSpec", timestep_s: float) -> int:
    """Control periods in one action.

    Raises `UsageError` where that, or the physics steps in a period, is not whole. Absolute joint positions, which do
    not add up, may change at any time: LeRobot's 30 Hz at 100.
    """
    periods, steps = rate_hz / action.rate_hz, 1.0 / (rate_hz * timestep_s)
    whole = action.kind == "joint_position" or abs(periods - round(periods)) <= 1e-9
    if round(periods) < 1 or not whole or abs(steps - round(steps)) > 1e-6:
        raise UsageError(
            f"rate_hz={rate_hz:g} must be a multiple of the action rate {action.rate_hz:g} Hz and divide the physics' "
            f"{1 / timestep_s:g} Hz: 100 does, so do 50 and 250"
        )
    return round(periods)


def _check_words(policy: Path, template: str, instruction: str | None) -> None:
    """Says which words an artifact does not know. Raises `TokenizerError` when the instruction is too long for it."""
    from volar.robots.exported_policy import TOKENIZER, Manifest
    from volar.robots.policies import find_policy
    from volar.robots.tokenize_subwords import load_tokenizer

    if instruction is None or not policy.is_dir():
        return
    artifact = find_policy(policy)
    tokenizer = load_tokenizer(artifact / TOKENIZER, Manifest.load(artifact).text_length)
    tokenizer.encode(template.format(instruction=instruction))
    if unknown := tokenizer.unknown_words(instruction):
        print(f"note: the policy was never trained on: {', '.join(unknown)}")


def _run_episodes(
    config: ControlConfig,
    order: "Order",
    world: "TaskWorld",
    loop: Any,
    source: "PolicySource",
    pacer: Any,
    duration_s: float,
    check_every: int,
) -> "Iterator[Run]":
    """Runs the episodes, one after the other; each is there as soon as it is over."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from volar.sim.control_report import Run
    from volar.sim.orders import seeds
    from volar.sim.wall_clock import run_in_real_time

    chosen = list(itertools.islice(seeds(order, world, config.seed), config.episodes))
    successes = counted = 0
    # Drawn between the episodes only: a thread that draws would take the interpreter from the loop.
    columns = (TextColumn("episodes"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, auto_refresh=False) as bar:
        shown = bar.add_task("", total=len(chosen))
        bar.refresh()
        for number, seed in enumerate(chosen):
            world.reset(seed)
            instruction = config.instruction or world.instruction
            source.reset(seed)
            loop.set_instruction(instruction)
            result = run_in_real_time(world, loop, source, pacer, duration_s, check_every, lambda: source.predict_s)
            if config.video is not None and number == 0:
                _film(world, result, config.video, 1e9 / (pacer.period_ns * check_every))
            run = Run(seed, instruction, result)
            counted, successes = counted + run.counts, successes + result.success
            yield run
            bar.update(shown, advance=1, description=f"success {successes}/{counted}", refresh=True)


def _film(world: "TaskWorld", result: "RealTimeRun", path: Path, rate_hz: float) -> None:
    """After the episode, from the recorded positions: filming during it would delay the loop."""
    import mujoco

    from volar.sim.video import Film, write_mp4

    data, film = mujoco.MjData(world.model), Film(world.model)
    data.mocap_pos[:], data.mocap_quat[:] = world.data.mocap_pos, world.data.mocap_quat
    for qpos in result.qpos:
        data.qpos[:] = qpos
        mujoco.mj_forward(world.model, data)
        film.shoot(data)
    film.close()
    write_mp4(path, film.frames, rate_hz)


def main() -> int:
    words = sys.argv[1:]
    cut = words.index("--ros-args") if "--ros-args" in words else len(words)

    def control_it(config: ControlConfig) -> None:
        control(config, words[cut:])

    return run("volar-control", ControlConfig, control_it, doc=__doc__, examples=EXAMPLES, argv=words[:cut])


if __name__ == "__main__":
    raise SystemExit(main())
