"""What an evaluation says in the end: results.json, report.html, and the table on the screen."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volar.robots.contract import PolicyContract
from volar.robots.provenance import made
from volar.sim.comparison import compare, sentence
from volar.sim.conditions import STANDARD, THROUGH_ROS2
from volar.sim.episode_record import EpisodeRecord
from volar.sim.episode_times import time_taken
from volar.sim.evaluation import versions
from volar.sim.evaluation_folder import RESULTS, write_whole
from volar.sim.evaluation_plan import Plan
from volar.sim.instruction_gaps import gaps
from volar.sim.report import write_report
from volar.sim.report_terminal import print_table
from volar.sim.results import worst_margins
from volar.sim.sensitivity import sensitivities

if TYPE_CHECKING:
    from volar.sim.evaluate import EvaluateConfig


def results_of(
    config: "EvaluateConfig",
    plan: Plan,
    folder: Path,
    contract: PolicyContract,
    identity: dict[str, Any],
    records: list[EpisodeRecord],
) -> dict[str, Any]:
    """results.json, but for the learning curve and the films.

    `made`: how, when and on what machine (see `volar.robots.provenance`; `time`: of `volar.sim.episode_times`), of the
    run that wrote it. It differs between two runs of the same evaluation, so that no comparison looks at it.
    `grounding_gap`, `phrasing_gap`: of `volar.sim.instruction_gaps`; not where episodes were stopped early, which are
    not the same ones under each condition.
    """
    _, *others = config.conditions
    summaries = {condition: plan.summary(records, condition) for condition in config.conditions}
    return {
        "policy": str(folder),
        "policy_sha256": identity["policy_sha256"],
        "contract_sha256": contract.sha256,
        "suite": config.suite,
        "robot": config.robot,
        "asset": f"{config.asset} {identity['asset']}" if config.asset else None,
        "seed": config.seed,
        "randomization": config.randomizations[0],
        "randomization_fingerprint": identity["randomization"],
        "latency_ms": config.latency_ms,
        "max_steps": config.max_steps,
        "stop": config.stop,
        "versions": versions(),
        "made": made("volar-evaluate", config, datetime.now(UTC)) | {"time": time_taken(config.output)},
        **summaries[STANDARD],
        "margins": worst_margins(records),
        "conditions": others,
        **{condition: summaries[condition] for condition in others},
        **({} if config.stop == "sequential" else gaps(summaries)),
        "sensitivity": sensitivities(records),
        "learning_curve": [],
        "videos": [],
        "replay": {"episodes": 0, "identical": 0},
    }


def write(config: "EvaluateConfig", results: dict[str, Any], contract: PolicyContract) -> None:
    """results.json and report.html; the table on the screen."""
    save(config, results)
    report = write_report(config.output, results, contract)
    print_table(results)
    if config.through == "ros2":
        print(_beside(results))
    print(f"report: {report}")


def save(config: "EvaluateConfig", results: dict[str, Any]) -> None:
    """results.json."""
    write_whole(config.output / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")


def _beside(results: dict[str, Any]) -> str:
    """What the two ways to the arm say about each other, in words."""
    judged = compare(results, [results[THROUGH_ROS2]])[0]["overall"]
    return f"the same episodes: {sentence(judged, 'in process', 'through ROS 2')}"
