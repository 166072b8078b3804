"""volar-evaluate: the success rate of a policy, with its interval, on episodes that anyone can replay.

Every episode runs through the control loop and the safety filter that drive a real arm, on a virtual clock. Its
seed follows from seed, task and number alone, so that two policies meet the same scenes. Leaves results.json,
episodes.jsonl, videos/ and report.html, which needs nothing else to be looked at.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volar.robots.command_line import run
from volar.robots.errors import Unknown, UsageError, VolarError

if TYPE_CHECKING:
    from volar.robots.contract import PolicyContract
    from volar.sim.closed_loop import EpisodeRecord
    from volar.sim.evaluation import Bench, Job

EXAMPLES = (
    "volar-evaluate",
    "volar-evaluate policy=runs/policy tasks=reach,lift episodes=50 output=runs/evaluation",
    "volar-evaluate policy=runs/policy output=runs/evaluation resume=true",
)
# What an evaluation writes; nothing else in a folder is ever touched.
_FILES = ("evaluation.json", "episodes.jsonl", "results.json", "report.html", "videos")
_SETTINGS, _EPISODES = _FILES[:2]
# Settings that may differ between an evaluation and its continuation: they change no episode.
_FREE = ("workers", "videos", "output", "resume", "overwrite", "policy", "paraphrases")


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `volar-evaluate`."""

    policy: Path | None = field(
        default=None, metadata={"help": "policy directory, training run or artifact; the shipped one by default"}
    )
    suite: str = field(default="tabletop", metadata={"help": "tasks to evaluate on"})
    tasks: tuple[str, ...] | None = field(default=None, metadata={"help": "some of the suite's; all by default"})
    episodes: int = field(default=100, metadata={"help": "episodes of each task"})
    seed: int = field(default=0, metadata={"help": "with task and number it decides each episode"})
    randomization: str = field(default="none", metadata={"help": "what varies beyond the layout: none"})
    robot: str = field(default="fr3", metadata={"help": "robot in the scene"})
    wrong_instruction: bool = field(
        default=True, metadata={"help": "run every episode again, told another colour: does it listen?"}
    )
    paraphrases: bool = field(
        default=False, metadata={"help": "run every episode again, told in a phrasing that no demonstration has"}
    )
    latency_ms: float = field(default=20.0, metadata={"help": "from observation to actions, on the virtual clock"})
    videos: int = field(default=2, metadata={"help": "films of each task in the report"})
    workers: int | None = field(default=None, metadata={"help": "processes; one a core by default"})
    output: Path = field(default=Path("runs/evaluation"), metadata={"help": "folder for the results"})
    resume: bool = field(default=False, metadata={"help": "continue an interrupted evaluation in output"})
    overwrite: bool = field(default=False, metadata={"help": "replace an evaluation in output"})

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("seed", 0), ("latency_ms", 0), ("videos", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers={self.workers} must be at least 1")
        from volar.sim.world import RANDOMIZATIONS

        if self.randomization not in RANDOMIZATIONS:
            raise Unknown("randomization", self.randomization, RANDOMIZATIONS)
        if self.resume and self.overwrite:
            raise ValueError("resume=true continues an evaluation, overwrite=true replaces it: give one")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Runs what is missing and writes the results, which it also returns (see DESIGN.md, "Command line").

    Raises `ContractError` listing every field in which the policy does not fit the robot, `Unknown` for a suite,
    task or robot, `VolarError` when the output folder holds something else or no episode could be run.
    """
    from volar.robots.contract import require
    from volar.robots.policies import default_policy, find_policy
    from volar.robots.spec import load_robot
    from volar.sim import evaluation

    tasks = _task_names(config)
    robot = load_robot(config.robot)
    folder = find_policy(config.policy or default_policy())
    contract = evaluation.read_contract(folder)
    require(contract, robot)
    identity = _identity(config, tasks, folder)
    records = _prepare_output(config, identity)
    bench = evaluation.Bench(str(folder.resolve()), config.robot, config.latency_ms / 1e3)
    records = _run_missing(config, bench, _jobs(config, tasks), records)
    broken = [record for record in records if not record.valid]
    if len(broken) == len(records):
        raise VolarError(f"no episode could be run; the first: {broken[0].reason}")
    results = _results(config, tasks, folder, contract, identity, records)
    results["videos"], results["replay"] = _videos(config, bench, records)
    _write(config, results, contract)
    return results


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
    """The settings that decide the episodes, and the policy by content."""
    from volar.robots.config_values import plain
    from volar.sim.evaluation import folder_sha256

    settings = {key: value for key, value in plain(config).items() if key not in _FREE}
    return settings | {"tasks": list(tasks), "policy_sha256": folder_sha256(folder)}


def _prepare_output(config: EvaluateConfig, identity: dict[str, Any]) -> "list[EpisodeRecord]":
    """Makes the output folder; returns the episodes already in it. Raises `VolarError` when it is taken."""
    from volar.sim.evaluation import read_records

    output = config.output
    if output.exists() and not output.is_dir():
        raise VolarError(f"output {output} is a file; give a folder")
    found = sorted(item.name for item in output.iterdir()) if output.exists() else []
    settings = output / _SETTINGS
    records: list[EpisodeRecord] = []
    if config.resume and settings.is_file():
        before = json.loads(settings.read_text())
        changed = [f"{key} was {before.get(key)}, is {now}" for key, now in identity.items() if before.get(key) != now]
        if changed:
            raise VolarError(f"{output} holds another evaluation ({'; '.join(changed)}); give another output=")
        records = read_records(output / _EPISODES)
    elif found and _SETTINGS not in found:
        raise VolarError(f"output {output} holds something else ({', '.join(found[:4])}); give another output=")
    elif found and not config.overwrite:
        raise VolarError(
            f"output {output} holds an evaluation; resume=true continues it, overwrite=true replaces it, "
            "or give another output="
        )
    elif found:
        for name in _FILES:
            path = output / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(identity, indent=1) + "\n")
    return records


def _jobs(config: EvaluateConfig, tasks: tuple[str, ...]) -> "list[Job]":
    from volar.sim.closed_loop import episode_seed
    from volar.sim.evaluation import Job

    return [
        Job(task, condition, index, episode_seed(config.seed, task, index))
        for condition in ("standard", *_other_conditions(config))
        for task in tasks
        for index in range(config.episodes)
    ]


def _other_conditions(config: EvaluateConfig) -> tuple[str, ...]:
    from volar.sim.closed_loop import HELD_OUT_INSTRUCTION, WRONG_INSTRUCTION

    wanted = {WRONG_INSTRUCTION: config.wrong_instruction, HELD_OUT_INSTRUCTION: config.paraphrases}
    return tuple(condition for condition, run_it in wanted.items() if run_it)


def _workers(config: EvaluateConfig) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.workers or cores


def _run_missing(
    config: EvaluateConfig, bench: "Bench", jobs: "list[Job]", records: "list[EpisodeRecord]"
) -> "list[EpisodeRecord]":
    """Runs the jobs that have no record yet, keeping each record as soon as it is there."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from volar.sim.evaluation import append_record, run_jobs

    done = {(record.task, record.condition, record.index) for record in records}
    missing = [job for job in jobs if job.key not in done]
    if not missing:
        return records
    columns = (TextColumn("episodes"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn()) as bar:
        shown = bar.add_task("", total=len(jobs), completed=len(jobs) - len(missing))
        successes = sum(record.success for record in records if record.condition == "standard")
        trials = sum(record.condition == "standard" for record in records)
        for record in run_jobs(bench, missing, _workers(config)):
            append_record(config.output / _EPISODES, record)
            records.append(record)
            if record.condition == "standard":
                successes, trials = successes + record.success, trials + 1
            note = f"success {successes}/{trials}" if record.condition == "standard" else record.condition
            bar.update(shown, advance=1, description=note)
    return records


def _results(
    config: EvaluateConfig,
    tasks: tuple[str, ...],
    folder: Path,
    contract: "PolicyContract",
    identity: dict[str, Any],
    records: "list[EpisodeRecord]",
) -> dict[str, Any]:
    from volar.sim.evaluation import summarize, versions

    results = {
        "policy": str(folder),
        "policy_sha256": identity["policy_sha256"],
        "contract_sha256": contract.sha256,
        "suite": config.suite,
        "robot": config.robot,
        "seed": config.seed,
        "randomization": config.randomization,
        "latency_ms": config.latency_ms,
        "versions": versions(),
        **summarize([r for r in records if r.condition == "standard"], tasks),
        "margins": asdict(_worst(records)),
    }
    for condition in _other_conditions(config):
        results[condition] = summarize([r for r in records if r.condition == condition], tasks)
    return results


def _worst(records: "list[EpisodeRecord]") -> Any:
    from volar.robots.limit_margins import LimitMargins

    margins = LimitMargins()
    for record in records:
        margins = margins.worst(record.margins)
    return margins


def _videos(
    config: EvaluateConfig, bench: "Bench", records: "list[EpisodeRecord]"
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Films of chosen episodes, by running these again; says how many gave the same bits as before."""
    from volar.sim.evaluation import Job, run_jobs

    chosen = {(r.task, r.index): r for r in select_for_film(records, config.videos)}
    files = {key: f"videos/{film_name(record)}" for key, record in chosen.items()}
    jobs = [Job(r.task, r.condition, r.index, r.seed, str(config.output / files[key])) for key, r in chosen.items()]
    again = {(r.task, r.index): r for r in run_jobs(bench, jobs, _workers(config))} if jobs else {}
    identical = sum(again[key].episode_sha256 == record.episode_sha256 for key, record in chosen.items())
    films = [
        {"task": r.task, "seed": r.seed, "instruction": r.instruction, "success": r.success, "file": files[key]}
        for key, r in chosen.items()
    ]
    return films, {"episodes": len(chosen), "identical": identical}


def select_for_film(records: "list[EpisodeRecord]", count: int) -> "list[EpisodeRecord]":
    """`count` episodes of each task, failures first, but half of them successes where there are such."""
    standard = [record for record in records if record.condition == "standard" and record.valid]
    chosen: list[EpisodeRecord] = []
    for task in dict.fromkeys(record.task for record in standard):
        found = sorted((record for record in standard if record.task == task), key=lambda record: record.index)
        good, bad = [r for r in found if r.success], [r for r in found if not r.success]
        failures = bad[: max(count - len(good), count - count // 2)]
        chosen += failures + good[: count - len(failures)]
    return chosen


def film_name(record: "EpisodeRecord") -> str:
    return f"{record.task}_{record.index:04d}_{'success' if record.success else 'failure'}.mp4"


def _write(config: EvaluateConfig, results: dict[str, Any], contract: "PolicyContract") -> None:
    """results.json and report.html, each complete or not there at all; the table on the screen."""
    from volar.sim.report import print_table, write_report

    temporary = config.output / ".results.json"
    temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    temporary.rename(config.output / "results.json")
    report = write_report(config.output, results, contract)
    print_table(results)
    print(f"report: {report}")


def _main(config: EvaluateConfig) -> None:
    evaluate(config)


def main() -> int:
    return run("volar-evaluate", EvaluateConfig, _main, doc=__doc__, examples=EXAMPLES)


if __name__ == "__main__":
    raise SystemExit(main())
