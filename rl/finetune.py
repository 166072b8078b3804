"""volar-finetune: a cloned policy tries things out in the simulator and keeps what succeeds.

Episodes run through the control loop and the safety filter that evaluation and a real arm have. The reward is success
in what the instruction asks for. Leaves checkpoints as volar-train does, the best by held-out evaluation in best/,
metrics.jsonl, tensorboard/, and report.html with the success before and after, on the same episodes.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from volar.robots.command_line import run
from volar.robots.errors import Unknown, UsageError

Training = Literal["frozen", "lora", "full"]
_LORA_RANK = 16
EXAMPLES = (
    "volar-finetune policy=runs/policy tasks=reach,lift minutes=30 output=runs/finetuned",
    "volar-finetune policy=runs/policy suite=starter randomization=full minutes=60 output=runs/robust",
    "volar-finetune policy=runs/policy suite=starter randomization=full minutes=60 output=runs/robust resume=true",
    "volar-finetune policy=runs/policy tasks=push_to algorithm=grpo minutes=30 output=runs/grpo",
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
    vision: Training = field(default="full", metadata={"help": "how the vision tower learns, with trains=all"})
    connector: Training = field(default="full", metadata={"help": "between vision tower and language model"})
    language: Training = field(default="full", metadata={"help": "the language model, its embeddings and head"})
    lora_rank: int = field(default=_LORA_RANK, metadata={"help": "of low-rank updates, for parts that are lora"})
    execute_steps: int | None = field(
        default=None, metadata={"help": "of a chunk, executed before looking again; the policy's own by default"}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "of the policy"})
    target_kl: float = field(default=0.015, metadata={"help": "divergence of a token in one update, at most about"})
    reference_weight: float = field(default=0.003, metadata={"help": "of the divergence from the cloned policy"})
    reward_weight: float = field(
        default=1.0,
        metadata={"help": "of what was earned; 0: no RL, what demonstrations= and pointing_weight= do alone"},
    )
    max_kl: float = field(default=3.0, metadata={"help": "divergence of a token from the cloned policy that ends it"})
    temperature: float = field(default=0.3, metadata={"help": "of the tokens that are tried out"})
    kernel_bins: float = field(default=3.0, metadata={"help": "how much wider than the policy's own tokens they are"})
    correlation: float = field(default=0.8, metadata={"help": "of what is tried out, from decision to decision"})
    fade_updates: int = field(
        default=30, metadata={"help": "after which kernel_bins is half of it, down to a quarter; 0: it stays"}
    )
    precision: Literal["auto", "fp32", "bf16"] = field(
        default="auto", metadata={"help": "of the trunk while learning; auto: bf16 where this machine is faster in it"}
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
        from volar.rl.exploration import Exploration
        from volar.rl.rewards import CLASSIFIER, REWARDS
        from volar.sim.randomization import Randomization

        if (self.minutes is None) == (self.updates is None):
            raise UsageError("give minutes=M or updates=N, one of the two")
        for name in ("minutes", "updates", "learning_rate", "target_kl", "max_kl", "execute_steps"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UsageError(f"{name} must be above 0, is {getattr(self, name)}")
        for name in ("lora_rank", "episodes", "evaluate_every", "evaluation_episodes", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, is {getattr(self, name)}")
        counts = ("seed", "workers", "critic_updates", "fade_updates", "report_episodes")
        for name in (*counts, "pointing_weight", "imitation_weight", "reward_weight", "reference_weight"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be at least 0, is {getattr(self, name)}")
        for name in ("gamma", "gae_lambda"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"{name} must be in (0, 1], is {getattr(self, name)}")
        if self.algorithm == "grpo" and not 2 <= self.group <= self.episodes:
            raise UsageError(f"group={self.group} must be from 2 to episodes={self.episodes}")
        if self.algorithm == "grpo" and self.episodes % self.group:
            raise UsageError(f"episodes={self.episodes} do not divide into groups of group={self.group}")
        if self.pointing_weight and self.trains != "all":
            raise UsageError(f"pointing_weight={self.pointing_weight} needs trains=all: pointing is the trunk's")
        for name in ("vision", "connector", "language"):
            if getattr(self, name) != "full" and self.trains != "all":
                raise UsageError(f"{name}={getattr(self, name)} needs trains=all: trains=head freezes every part")
        if self.lora_rank != _LORA_RANK and "lora" not in (self.vision, self.connector, self.language):
            raise UsageError(f"lora_rank={self.lora_rank} is for vision=lora, connector=lora or language=lora")
        if self.demonstrations is not None and not self.imitation_weight:
            raise UsageError(f"imitation_weight=0 leaves demonstrations={self.demonstrations} out; leave them away")
        if not self.reward_weight and not self.pointing_weight and self.demonstrations is None:
            raise UsageError("reward_weight=0 leaves nothing to learn from: give demonstrations= or pointing_weight=")
        if self.ray_address and self.rollouts != "ray":
            raise UsageError(f"ray_address={self.ray_address} is for rollouts=ray")
        if self.resume and self.overwrite:
            raise UsageError("resume=true continues a run, overwrite=true replaces it: give one")
        if self.reward not in (*REWARDS, CLASSIFIER):
            raise Unknown("reward", self.reward, (*REWARDS, CLASSIFIER))
        if (self.reward == CLASSIFIER) != (self.classifier is not None):
            raise UsageError(f"reward={self.reward}, classifier={self.classifier}: reward=classifier needs its folder")
        for name in (self.randomization, *self.report_presets):
            Randomization.of(name)
        try:
            Exploration(self.temperature, self.kernel_bins, self.correlation)
        except ValueError as error:
            raise UsageError(str(error)) from error

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
