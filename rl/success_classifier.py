"""Learns to see success: a classifier of images and instruction on the policy's own trunk, measured against the truth.

    python -m volar.rl.success_classifier policy=runs/policy tasks=reach,lift output=runs/success
    volar-finetune policy=runs/policy tasks=reach,lift reward=classifier classifier=runs/success minutes=30 output=...

Collects labelled episodes, trains, chooses for each task the threshold that validation episodes want, and reports
precision and recall on held-out ones. Leaves classifier.json, head.safetensors, trunk/ (a policy folder), episodes/ and
results.json. resume=true continues an interrupted collection.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from volar.robots.command_line import run
from volar.robots.errors import UsageError, VolarError
from volar.robots.usable_cpus import usable_cpus

VERB = "python -m volar.rl.success_classifier"
EXAMPLES = (
    f"{VERB} policy=runs/policy tasks=reach,lift output=runs/success",
    f"{VERB} policy=runs/policy tasks=lift randomization=full episodes=200 output=runs/success-full",
    f"{VERB} policy=runs/policy tasks=reach,lift output=runs/success resume=true",
)
RECORD, RESULTS, EPISODES = "success.json", "results.json", "episodes"
_FREE = {"output", "workers", "resume", "overwrite"}  # of these the result does not depend


@dataclass(frozen=True)
class ClassifierConfig:
    """Settings of `python -m volar.rl.success_classifier`."""

    policy: Path = field(metadata={"help": "policy directory or training run whose trunk sees"})
    output: Path = field(metadata={"help": "folder for the classifier and results.json"})
    tasks: tuple[str, ...] = field(metadata={"help": "whose success to learn"})
    robot: str = field(default="fr3", metadata={"help": "robot in the scene: fr3, ur5e, so101"})
    randomization: str = field(default="none", metadata={"help": "what varies: a preset or a .yaml"})
    episodes: int = field(default=100, metadata={"help": "of each task to learn from"})
    validation_episodes: int = field(default=50, metadata={"help": "of each task to choose thresholds on"})
    held_out_episodes: int = field(default=50, metadata={"help": "of each task to measure on"})
    consecutive: int = field(default=3, metadata={"help": "steps in a row that make a success"})
    precision: float = field(default=0.99, metadata={"help": "wanted of thresholds, on the validation episodes"})
    seed: int = field(default=0, metadata={"help": "decides scenes, what is tried out, and weights"})
    workers: int = field(default=0, metadata={"help": "of episodes; 0: one for each CPU"})
    resume: bool = field(default=False, metadata={"help": "continue what an interruption left in output"})
    overwrite: bool = field(default=False, metadata={"help": "replace a classifier in output"})

    def __post_init__(self) -> None:
        from volar.sim.randomization import Randomization

        for name in ("episodes", "validation_episodes", "held_out_episodes", "consecutive"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, is {getattr(self, name)}")
        for name in ("seed", "workers"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be at least 0, is {getattr(self, name)}")
        if not 0 < self.precision <= 1:
            raise UsageError(f"precision must be in (0, 1], is {self.precision}")
        if not self.tasks:
            raise UsageError("give tasks=, such as tasks=reach,lift")
        if self.resume and self.overwrite:
            raise UsageError("resume=true continues, overwrite=true replaces: give one")
        Randomization.of(self.randomization)


def train_classifier(config: ClassifierConfig) -> dict[str, Any]:
    """Collects, trains and measures; returns what results.json says.

    Raises `Unknown` for a task that does not exist, `ContractError` listing the fields in which the policy does not fit
    the robot, `VolarError` when output holds something else or nothing succeeds.
    """
    from volar.rl.success_episodes import HELD_OUT, TRAINING, VALIDATION, Source, Wanted, make_episodes, read_episodes
    from volar.robots.contract import require
    from volar.robots.policies import find_policy
    from volar.robots.spec import load_robot
    from volar.sim.randomizer import require_possible
    from volar.sim.tasks import load_task
    from volar.vla.checkpoint_policy import load_parts

    tasks = tuple(load_task(name).name for name in config.tasks)
    require_possible((config.randomization,), tasks, config.robot)
    folder = find_policy(config.policy)
    if not (folder / "config.json").is_file():
        raise VolarError(f"{config.policy} is an exported artifact; give the policy directory, whose trunk is torch's")
    require(load_parts(folder)[1], load_robot(config.robot))
    _prepare(config, folder)
    counts = {TRAINING: config.episodes, VALIDATION: config.validation_episodes, HELD_OUT: config.held_out_episodes}
    wanted = {split: [Wanted(split, t, i) for i in range(n) for t in tasks] for split, n in counts.items()}
    source = Source(folder, tasks, config.robot, config.randomization, config.seed)
    workers = config.workers or usable_cpus()
    make_episodes(source, [w for some in wanted.values() for w in some], config.output / EPISODES, workers)
    found = {split: read_episodes(config.output / EPISODES, some) for split, some in wanted.items()}
    return _learn(config, folder, tasks, *(found[split] for split in counts))


def _prepare(config: ClassifierConfig, folder: Path) -> None:
    from volar.vla.run_folder import check_output

    settings = {key: str(value) for key, value in sorted(asdict(config).items()) if key not in _FREE}
    settings["policy"] = str(folder.resolve())  # a training run that has gone on since is another policy
    goes_on = check_output(
        config.output, RECORD, "success classifier", settings, resume=config.resume, overwrite=config.overwrite
    )
    if not goes_on:
        output = config.output.resolve()
        if output in (config.policy.resolve(), *config.policy.resolve().parents):
            raise VolarError(f"output {config.output} holds {config.policy}; give another output")
        shutil.rmtree(config.output, ignore_errors=True)
        config.output.mkdir(parents=True)
        (config.output / RECORD).write_text(json.dumps(settings, indent=1) + "\n")


def _learn(config: ClassifierConfig, folder: Path, tasks: tuple[str, ...], *splits: Any) -> dict[str, Any]:
    """From episodes to learn from, to choose by and to measure on."""
    import torch

    from volar.rl.success_network import Facts, SuccessNetwork, save_classifier
    from volar.rl.success_training import choose_threshold, fit, judge_all, measure
    from volar.vla.checkpoint_policy import load_parts

    training, validation, held_out = splits
    for name, episodes in (("validation", validation), ("held-out", held_out)):
        if lacking := set(tasks) - {episode.task for episode in episodes}:
            raise VolarError(f"no {name} episode of {', '.join(sorted(lacking))} could be run; take more episodes")
    model, contract, tokenizer = load_parts(folder)
    torch.manual_seed(config.seed)  # initial weights and dropout
    network = SuccessNetwork(model, contract, tokenizer).eval()
    fitted = fit(network, training, validation, config.seed)
    judged = judge_all(network, validation)
    thresholds = {
        task: choose_threshold([j for j in judged if j.task == task], config.consecutive, config.precision)
        for task in tasks
    }
    result = {
        "policy": str(config.policy),
        "contract_sha256": contract.sha256,
        "randomization": config.randomization,
        "consecutive": config.consecutive,
        "fit": fitted,
        "validation": measure(judged, thresholds, config.consecutive),
        "held_out": measure(judge_all(network, held_out), thresholds, config.consecutive),
    }
    save_classifier(
        config.output, network, Facts(contract.sha256, thresholds, config.consecutive, config.randomization)
    )
    (config.output / RESULTS).write_text(json.dumps(result, indent=1) + "\n")
    return result


def summary(result: dict[str, Any]) -> str:
    """A line for each task, about the held-out episodes."""
    lines = []
    for task, found in result["held_out"].items():
        whole, steps, other = found["episodes"], found["steps"], found["wrong_order"]
        lines.append(
            f"{task}: precision {_rate(whole, 'precision')}, recall {_rate(whole, 'recall')} of episodes; of steps "
            f"{_rate(steps, 'precision')}, {_rate(steps, 'recall')}; told another order {other['false_yes']} of "
            f"{other['episodes']} false successes, precision over both {_rate(found['both_orders'], 'precision')} "
            f"(threshold {found['threshold']})"
        )
    return "\n".join(lines)


def _rate(found: dict[str, Any], name: str) -> str:
    if found[name] is None:
        return "unknown"
    low, high = found[f"{name}_wilson95"]
    return f"{100 * found[name]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _main(config: ClassifierConfig) -> None:
    print(summary(train_classifier(config)))


def main() -> int:
    return run(VERB, ClassifierConfig, _main, doc=__doc__, examples=EXAMPLES)


if __name__ == "__main__":
    raise SystemExit(main())
