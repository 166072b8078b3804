"""volar-finetune: a cloned policy tries things out in the simulator and keeps what succeeds.

Episodes run through the control loop and the safety filter that evaluation and a real arm have. The reward is success
in what the instruction asks for. Leaves checkpoints as volar-train does, the best by held-out evaluation in best/,
metrics.jsonl, tensorboard/, and report.html with the success before and after, on the same episodes.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from volar.robots.command_line import run
from volar.robots.errors import Unknown, UsageError

Training = Literal["frozen", "lora", "full"]
_POSITIVE = ("minutes", "updates", "learning_rate", "target_kl", "max_kl", "execute_steps")
_COUNTS = ("lora_rank", "episodes", "evaluate_every", "evaluation_episodes", "save_every", "keep")
_COUNTS_FROM_0 = ("seed", "workers", "critic_updates", "fade_updates", "report_episodes")
_WEIGHTS = ("pointing_weight", "imitation_weight", "reward_weight", "reference_weight")
EXAMPLES = (
    "volar-finetune policy=runs/policy tasks=reach,lift minutes=30 output=runs/finetuned",
    "volar-finetune policy=runs/policy suite=starter randomization=full minutes=60 output=runs/robust",
    "volar-finetune policy=runs/policy suite=starter randomization=full minutes=60 output=runs/robust resume=true",
    "volar-finetune policy=runs/policy tasks=push_to algorithm=grpo minutes=30 output=runs/grpo",
    "volar-finetune policy=runs/policy tasks=lift critic=pooled minutes=30 output=runs/pooled",
    "volar-finetune policy=runs/policy tasks=lift reward=classifier classifier=runs/success minutes=9 output=runs/b",
    "volar-finetune policy=runs/policy tasks=lift trains=all vision=frozen language=lora minutes=30 output=runs/lora",
    "volar-evaluate policy=runs/finetuned/best tasks=reach,lift output=runs/evaluation",
)


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of `volar-finetune`."""

    policy: Path = field(metadata={"help": "policy directory or training run to start from"})
    output: Path = field(metadata={"help": "folder for checkpoints/, best/, metrics.jsonl, report.html"})
    suite: str = field(default="tabletop", metadata={"help": "tasks to practise"})
    tasks: tuple[str, ...] = field(default=(), metadata={"help": "some of the suite's; all by default"})
    robot: str = field(default="fr3", metadata={"help": "robot in the scene: fr3, ur5e, so101"})
    randomization: str = field(default="none", metadata={"help": "what varies: a preset or a .yaml"})
    seed: int = field(default=0, metadata={"help": "decides scenes and what is tried out"})
    minutes: float | None = field(default=None, metadata={"help": "time for all but the report; this or updates"})
    updates: int | None = field(default=None, metadata={"help": "updates of the policy"})
    algorithm: Literal["ppo", "grpo"] = field(
        default="ppo", metadata={"help": "with a critic, or relative to episodes from the same start"}
    )
    critic: Literal["state", "pooled"] = field(
        default="state",
        metadata={
            "help": "what the critic of algorithm=ppo sees, a network of its own: the simulator's state, as no robot "
            "could, or pooled, the mean of the policy's queries (detached)"
        },
    )
    reward: str = field(
        default="sparse",
        metadata={"help": "sparse: success; dense: also the way there; classifier: what a learned one takes for it"},
    )
    classifier: Path | None = field(
        default=None, metadata={"help": "folder of python -m volar.rl.success_classifier, for reward=classifier"}
    )
    episodes: int = field(default=64, metadata={"help": "for each update, over all tasks"})
    group: int = field(default=8, metadata={"help": "of these from the same start, for algorithm=grpo"})
    gamma: float = field(default=0.99, metadata={"help": "discount of one step"})
    gae_lambda: float = field(default=0.95, metadata={"help": "of advantages, for algorithm=ppo"})
    critic_updates: int = field(default=1, metadata={"help": "first updates that train the critic alone"})
    trains: Literal["head", "all"] = field(
        default="head", metadata={"help": "the action head, or everything; a frozen trunk is computed once"}
    )
    vision: Training = field(
        default="full", metadata={"help": "how the vision tower learns, with trains=all; queries and projections do"}
    )
    connector: Training = field(default="full", metadata={"help": "between vision tower and language model"})
    language: Training = field(default="full", metadata={"help": "the language model, its embeddings and head"})
    lora_rank: int = field(default=16, metadata={"help": "of low-rank updates, for parts that are lora"})
    execute_steps: int | None = field(
        default=None, metadata={"help": "of a chunk, executed before looking again; the policy's own by default"}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "of the policy"})
    target_kl: float = field(default=0.015, metadata={"help": "divergence of a token in one update, at most about"})
    reference_weight: float = field(default=0.003, metadata={"help": "of the divergence that max_kl is about"})
    reward_weight: float = field(
        default=1.0,
        metadata={"help": "of what was earned; 0: no RL, what demonstrations= and pointing_weight= do alone"},
    )
    max_kl: float = field(
        default=3.0,
        metadata={"help": "divergence of a token, as tried out, from the cloned policy's that ends the run"},
    )
    temperature: float = field(default=0.3, metadata={"help": "of the tokens that are tried out"})
    kernel_bins: float = field(default=3.0, metadata={"help": "how much wider than the policy's own tokens they are"})
    correlation: float = field(default=0.8, metadata={"help": "of what is tried out, from decision to decision"})
    fade_updates: int = field(
        default=30, metadata={"help": "after which kernel_bins is half of it, down to a quarter; 0: it stays"}
    )
    precision: Literal["auto", "fp32", "bf16"] = field(
        default="auto", metadata={"help": "of the trunk in an update; auto: bf16 where this machine is faster in it"}
    )
    demonstrations: Path | None = field(default=None, metadata={"help": "dataset to go on imitating"})
    imitation_weight: float = field(default=0.1, metadata={"help": "of its loss, with demonstrations="})
    pointing_weight: float = field(
        default=0.0, metadata={"help": "of learning to point in the rollouts' images, with trains=all; no RL"}
    )
    evaluate_every: int = field(default=10, metadata={"help": "updates between held-out evaluations"})
    evaluation_episodes: int = field(default=50, metadata={"help": "of each task in them"})
    save_every: int = field(default=5, metadata={"help": "updates between checkpoints"})
    keep: int = field(default=2, metadata={"help": "newest checkpoints to keep"})
    report_episodes: int = field(default=50, metadata={"help": "of each task, before and after; 0: no report"})
    report_randomizations: str = field(
        default="none,full,unseen", metadata={"help": "presets of the report, and the one that was practised"}
    )
    rollouts: Literal["processes", "ray"] = field(default="processes", metadata={"help": "where episodes run"})
    workers: int = field(default=0, metadata={"help": "of rollouts; 0: one for each CPU"})
    ray_address: str | None = field(default=None, metadata={"help": "of a Ray cluster (auto); this machine alone"})
    resume: bool = field(default=False, metadata={"help": "continue from checkpoints/last"})
    overwrite: bool = field(default=False, metadata={"help": "replace a run in output"})

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.updates is None):
            raise UsageError("give minutes=M or updates=N, one of the two")
        if self.resume and self.overwrite:
            raise UsageError("resume=true continues a run, overwrite=true replaces it: give one")
        self._check_numbers()
        self._check_together()
        self._check_names()

    def _check_numbers(self) -> None:
        from volar.rl.exploration import Exploration

        for name in _POSITIVE:
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UsageError(f"{name} must be above 0, is {getattr(self, name)}")
        for name, least in (*((name, 1) for name in _COUNTS), *((name, 0) for name in (*_COUNTS_FROM_0, *_WEIGHTS))):
            if not getattr(self, name) >= least:
                raise UsageError(f"{name} must be at least {least}, is {getattr(self, name)}")
        for name in ("learning_rate", *_WEIGHTS, "temperature", "kernel_bins"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"{name} must be finite, is {getattr(self, name)}")
        for name in ("gamma", "gae_lambda"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"{name} must be in (0, 1], is {getattr(self, name)}")
        try:
            Exploration(self.temperature, self.kernel_bins, self.correlation)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def _check_together(self) -> None:
        defaults = {item.name: item.default for item in fields(self)}
        for names, needed, is_there in _ONLY_WITH:
            for name in names:
                if getattr(self, name) != defaults[name] and not is_there(self):
                    raise UsageError(
                        f"{name}={getattr(self, name)} acts only with {needed}; leave it away, or give that"
                    )
        if self.algorithm == "grpo" and not 2 <= self.group <= self.episodes:
            raise UsageError(f"group={self.group} must be from 2 to episodes={self.episodes}")
        if self.algorithm == "grpo" and self.episodes % self.group:
            raise UsageError(f"episodes={self.episodes} do not divide into groups of group={self.group}")
        if self.demonstrations is not None and not self.imitation_weight:
            raise UsageError(f"imitation_weight=0 leaves demonstrations={self.demonstrations} out; leave them away")
        if not self.reward_weight and not self.pointing_weight and self.demonstrations is None:
            raise UsageError("reward_weight=0 leaves nothing to learn from: give demonstrations= or pointing_weight=")

    def _check_names(self) -> None:
        from volar.rl.rewards import CLASSIFIER, REWARDS
        from volar.sim.randomization import Randomization

        if self.reward not in (*REWARDS, CLASSIFIER):
            raise Unknown("reward", self.reward, (*REWARDS, CLASSIFIER))
        if (self.reward == CLASSIFIER) != (self.classifier is not None):
            raise UsageError(f"reward={self.reward}, classifier={self.classifier}: reward=classifier needs its folder")
        for name in self.tasks:
            if self.tasks.count(name) > 1:
                raise UsageError(f"tasks={','.join(self.tasks)}: {name} is there {self.tasks.count(name)} times")
        for name in (self.randomization, *self.report_presets):
            Randomization.of(name)

    @property
    def report_presets(self) -> tuple[str, ...]:
        """What is reported: the wanted ones, and the one that was practised; nothing without a report."""
        if not self.report_episodes:
            return ()
        wanted = [name.strip() for name in self.report_randomizations.split(",") if name.strip()]
        return tuple(dict.fromkeys([*wanted, self.randomization]))

    @property
    def task_names(self) -> tuple[str, ...]:
        """What is practised. Raises `Unknown` for a suite or task that does not exist."""
        from volar.sim.tasks import load_suite, load_task

        suite = tuple(task.name for task in load_suite(self.suite))
        return tuple(load_task(name).name for name in self.tasks) or suite


# Settings that act only with others, what these are, and whether they are there; without them, only defaults are taken.
_ONLY_WITH: tuple[tuple[tuple[str, ...], str, Callable[[FinetuneConfig], bool]], ...] = (
    (("group",), "algorithm=grpo", lambda c: c.algorithm == "grpo"),
    (("critic", "gae_lambda", "critic_updates"), "algorithm=ppo", lambda c: c.algorithm == "ppo"),
    (("vision", "connector", "language", "pointing_weight"), "trains=all", lambda c: c.trains == "all"),
    (
        ("lora_rank",),
        "vision=lora, connector=lora or language=lora",
        lambda c: "lora" in (c.vision, c.connector, c.language),
    ),
    (("imitation_weight",), "demonstrations=", lambda c: c.demonstrations is not None),
    (("precision",), "trains=all or demonstrations=", lambda c: c.trains == "all" or c.demonstrations is not None),
    (("fade_updates",), "kernel_bins above 0", lambda c: c.kernel_bins != 0),
    (("report_randomizations",), "report_episodes above 0", lambda c: c.report_episodes != 0),
    (("ray_address",), "rollouts=ray", lambda c: c.rollouts == "ray"),
)


def finetune(config: FinetuneConfig) -> None:
    """Runs to the end, from the start or from the last checkpoint, and writes the report.

    Raises `ContractError` listing every field in which the policy does not fit the robot, `VolarError` when output
    holds something else.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait sleep: workers need the cores
    from volar.rl.finetuning import finetune as run_all

    run_all(config)


def main() -> int:
    return run("volar-finetune", FinetuneConfig, finetune, doc=__doc__, examples=EXAMPLES)


if __name__ == "__main__":
    raise SystemExit(main())
