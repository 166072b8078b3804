"""volar-evaluate: the success rate of a policy, with its interval, on episodes that anyone can replay.

Every episode runs through the control loop and the safety filter that drive a real arm, on a virtual clock. Its
seed follows from seed, task and number alone, so that two policies meet the same scenes. Leaves results.json,
episodes.jsonl, videos/ and report.html, which needs nothing else to be looked at.

Two more verbs, each with a --help of its own:
  volar-evaluate compare A B    which of two policies is better, and how sure that is
  volar-evaluate replay FILE    a broken episode again, bit for bit
"""

import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volar.robots.command_line import run
from volar.robots.errors import UsageError, VolarError
from volar.robots.spec import robot_name
from volar.robots.usable_cpus import usable_cpus

if TYPE_CHECKING:
    from volar.sim.episode_record import EpisodeRecord
    from volar.sim.evaluation import Bench
    from volar.sim.evaluation_plan import Plan

EXAMPLES = (
    "volar-evaluate",
    "volar-evaluate policy=runs/policy tasks=reach,lift episodes=50 output=runs/evaluation",
    "volar-evaluate policy=runs/policy output=runs/evaluation resume=true",
    "volar-evaluate policy=runs/policy stop=sequential margin=0.1 episodes=500 output=runs/sequential",
    "volar-evaluate policy=runs/policy randomization=all output=runs/robustness",
    "volar-evaluate policy=runs/artifact through=ros2 episodes=16 output=runs/through-ros2",
    "volar-evaluate policy=runs/policy checkpoints=all episodes=20 output=runs/curve",
    "volar-evaluate compare runs/evaluation runs/other-evaluation",
    "volar-evaluate replay runs/evaluation/replays/lift_0007_standard.npz",
)
_MARGIN = 0.1


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `volar-evaluate`."""

    policy: Path | None = field(
        default=None, metadata={"help": "policy directory, training run or artifact; the shipped one by default"}
    )
    suite: str = field(default="tabletop", metadata={"help": "tasks to evaluate on"})
    tasks: tuple[str, ...] | None = field(default=None, metadata={"help": "any tasks by name; the suite's by default"})
    episodes: int = field(default=100, metadata={"help": "episodes of each task; at most, for stop=sequential"})
    seed: int = field(default=0, metadata={"help": "with task and number it decides each episode"})
    randomization: str = field(
        default="none",
        metadata={"help": "what varies beyond the layout: a preset or a .yaml; several, with commas, or all: each"},
    )
    robot: str = field(default="fr3", metadata={"help": "robot in the scene: fr3, ur5e, so101"})
    asset: str | None = field(default=None, metadata={"help": "menagerie:PATH, your own MJCF model of that robot"})
    wrong_instruction: bool = field(
        default=True, metadata={"help": "run every episode again, told another order: does it listen?"}
    )
    paraphrases: bool = field(
        default=False, metadata={"help": "run every episode again, told in a phrasing that no demonstration has"}
    )
    through: Literal["process", "ros2"] = field(
        default="process",
        metadata={"help": "ros2: every episode again through the controller node and a simulated arm's, in real time"},
    )
    stop: Literal["never", "sequential"] = field(
        default="never", metadata={"help": "sequential: end each task as soon as its interval is within margin"}
    )
    margin: float | None = field(
        default=None, metadata={"help": "for stop=sequential: half an interval, 0.1 by default; it errs in 5 %"}
    )
    checkpoints: Literal["last", "all"] = field(
        default="last", metadata={"help": "all: every checkpoint of the training run too, for a learning curve"}
    )
    latency_ms: float = field(default=20.0, metadata={"help": "from observation to actions, on the virtual clock"})
    max_steps: int | None = field(default=None, metadata={"help": "longest episode, in policy steps; the task's own"})
    videos: int = field(default=2, metadata={"help": "films of each task in the report"})
    workers: int | None = field(default=None, metadata={"help": "processes; one a core by default"})
    output: Path = field(default=Path("runs/evaluation"), metadata={"help": "folder for the results"})
    check: bool = field(
        default=False, metadata={"help": "say whether policy, robot and tasks fit together, and run nothing"}
    )
    resume: bool = field(default=False, metadata={"help": "continue, or extend, the evaluation in output"})
    overwrite: bool = field(default=False, metadata={"help": "replace an evaluation in output"})

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("seed", 0), ("latency_ms", 0), ("videos", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in ("workers", "max_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.margin is not None and not 0 < self.margin < 0.5:
            raise ValueError(f"margin={self.margin} must be between 0 and 0.5")
        if self.margin is not None and self.stop != "sequential":
            raise UsageError(f"margin={self.margin} is for stop=sequential")
        if self.through == "ros2" and self.stop == "sequential":
            raise UsageError("through=ros2 compares the same episodes, and stop=sequential ends early: give one")
        if self.resume and self.overwrite:
            raise ValueError("resume=true continues an evaluation, overwrite=true replaces it: give one")
        assert self.randomizations  # read now, so that what is wrong with them is a usage error

    @property
    def model(self) -> str:
        """What `load_robot` takes: the robot, with the user's model of it if one is given."""
        return robot_name(self.robot, self.asset)

    @cached_property
    def randomizations(self) -> tuple[str, ...]:
        """The standard condition's, then those that are run beside it. Raises as `conditions.randomizations`."""
        from volar.sim.conditions import randomizations

        return randomizations(self.randomization)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Everything that the same episodes are run under, the standard condition first."""
        from volar.sim import conditions

        told = {conditions.WRONG_INSTRUCTION: self.wrong_instruction, conditions.HELD_OUT_INSTRUCTION: self.paraphrases}
        others = map(conditions.under_randomization, self.randomizations[1:])
        nodes = (conditions.THROUGH_ROS2,) if self.through == "ros2" else ()
        return conditions.STANDARD, *(name for name, wanted in told.items() if wanted), *others, *nodes


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Runs what is missing and writes the results, which it also returns; none with `check`, which writes nothing.

    Raises `ContractError` listing every field in which the policy does not fit the robot, `Unknown` for a suite,
    task or robot, `VolarError` when the output folder holds something else or no episode could be run.
    """
    from volar.robots.contract import require
    from volar.robots.policies import default_policy, find_policy, read_contract
    from volar.robots.policy_source import artifact_folder
    from volar.robots.spec import load_robot
    from volar.sim import evaluation, evaluation_folder, evaluation_results, films
    from volar.sim.evaluation_plan import Plan
    from volar.sim.randomizer import require_possible

    tasks = _task_names(config)
    robot = load_robot(config.model)
    folder = find_policy(config.policy or default_policy())
    if config.through == "ros2":
        from volar.sim.through_ros2 import require_ros2

        require_ros2()
        artifact_folder(str(folder))  # what a controller runs, or the reason why not
    contract = read_contract(folder)
    require(contract, robot)
    require_possible(config.randomizations, tasks, config.model)
    if config.check:
        print(f"{folder} fits robot {config.model} and can be evaluated on {', '.join(tasks)}", flush=True)
        return {}
    identity = _identity(config, tasks, folder)
    others = _other_checkpoints(config, identity["policy_sha256"])
    bench = evaluation.Bench(
        policy=str(folder.resolve()),
        robot=config.model,
        latency_s=config.latency_ms / 1e3,
        randomization=config.randomizations[0],
        max_steps=config.max_steps,
        world_seed=config.seed,
    )
    if config.overwrite and (config.output / evaluation_folder.SETTINGS).is_file():
        evaluation.require_runs(bench, tasks[0])  # before what it replaces is gone
    records = evaluation_folder.prepare(config.output, identity, config.resume, config.overwrite)
    margin = (config.margin or _MARGIN) if config.stop == "sequential" else None
    plan = Plan(tasks, config.conditions, config.episodes, config.seed, config.output, margin)
    records = plan.own(_run(config, bench, plan, records))
    _require_some(records)
    results = evaluation_results.results_of(config, plan, folder, contract, identity, records)
    evaluation_results.save(config, results)  # what comes now may take long, or fail
    results["learning_curve"] = _learning_curve(config, others, results)
    results["videos"], results["replay"] = films.make_films(
        config.output, bench, records, config.videos, _workers(config)
    )
    evaluation_results.write(config, results, contract)
    return results


def _run(config: EvaluateConfig, bench: "Bench", plan: "Plan", records: "list[EpisodeRecord]") -> "list[EpisodeRecord]":
    """What is missing: first, on every core, what runs on a virtual clock; then what needs the cores in real time."""
    from volar.sim.conditions import THROUGH_ROS2
    from volar.sim.evaluation_plan import Plan
    from volar.sim.evaluation_progress import run_plan

    if config.through == "ros2":
        alone = tuple(name for name in plan.conditions if name != THROUGH_ROS2)
        virtual = Plan(plan.tasks, alone, plan.episodes, plan.seed, plan.output, plan.margin)
        records = run_plan(bench, virtual, records, _workers(config))
        return run_plan(bench, plan, records, 1)
    return run_plan(bench, plan, records, _workers(config))


def _task_names(config: EvaluateConfig) -> tuple[str, ...]:
    """Those of the suite, or the named ones of any. Raises `Unknown` for a suite or task that does not exist."""
    from volar.sim.tasks import TASKS, load_suite, load_task

    suite = tuple(task.name for task in load_suite(config.suite))
    if config.tasks is None:
        return suite
    if not config.tasks:
        raise UsageError(f"tasks is empty (choices: {', '.join(TASKS)})")
    wanted = {load_task(name).name for name in config.tasks}
    return tuple(name for name in TASKS if name in wanted)


def _identity(config: EvaluateConfig, tasks: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """What decides every episode, the policy by content; other settings only say which episodes there are."""
    from volar.robots.config_values import plain
    from volar.robots.mjcf_arm import asset_fingerprint
    from volar.robots.spec import load_robot
    from volar.sim.evaluation import folder_sha256, versions
    from volar.sim.randomization import PRESETS, fingerprint

    settings = {key: plain(config)[key] for key in ("suite", "seed", "robot", "latency_ms", "max_steps")}
    model = asset_fingerprint(load_robot(config.model)) if config.asset else None
    files = {f"randomization {name}": fingerprint(name) for name in config.randomizations if name not in PRESETS}
    standard = fingerprint(config.randomizations[0])
    own = {"asset": model, "randomization": standard, "tasks": list(tasks), "policy_sha256": folder_sha256(folder)}
    found = versions()
    software = {f"version of {name}": found.get(name) for name in ("volar", "mujoco", "numpy")}
    return settings | own | files | software


def _workers(config: EvaluateConfig) -> int:
    return config.workers or usable_cpus()


def _require_some(records: "list[EpisodeRecord]") -> None:
    lost = [record for record in records if record.broken or not record.valid]
    if len(lost) == len(records):
        raise VolarError(f"no episode could be run; the first: {lost[0].reason}")


def _other_checkpoints(config: EvaluateConfig, policy_sha256: str) -> dict[int, Path | None]:
    """Training step -> checkpoint, None for the one that is evaluated itself. Raises `VolarError` without any."""
    from volar.robots.policies import default_policy
    from volar.sim.checkpoints import checkpoint_policies
    from volar.sim.evaluation import folder_sha256

    if config.checkpoints == "last":
        return {}
    found = checkpoint_policies(config.policy or default_policy())
    return {step: None if folder_sha256(path) == policy_sha256 else path for step, path in found.items()}


def _learning_curve(
    config: EvaluateConfig, checkpoints: dict[int, Path | None], results: dict[str, Any]
) -> list[dict[str, Any]]:
    """Success against the training step; each checkpoint on the same episodes, in a folder of its own."""
    curve = []
    for step, path in checkpoints.items():
        found = results
        if path is not None:
            print(f"checkpoint {step}")
            output = config.output / "checkpoints" / f"{step:06d}"
            alone = replace(config, checkpoints="last", wrong_instruction=False, paraphrases=False, videos=0)
            alone = replace(alone, through="process")
            alone = replace(alone, randomization=config.randomizations[0], resume=True, overwrite=False)
            found = evaluate(replace(alone, policy=path, output=output))
        curve.append({"step": step, **found["overall"]})
    return curve


def _main(config: EvaluateConfig) -> None:
    evaluate(config)


def main() -> int:
    if sys.argv[1:2] == ["compare"]:
        from volar.sim import compare

        return compare.main(sys.argv[2:])
    if sys.argv[1:2] == ["replay"]:
        from volar.sim import replay

        return replay.main(sys.argv[2:])
    return run("volar-evaluate", EvaluateConfig, _main, doc=__doc__, examples=EXAMPLES)


if __name__ == "__main__":
    raise SystemExit(main())
