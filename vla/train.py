"""volar-train: a policy from demonstrations, by behaviour cloning; or its grounding stage before that.

Grounding teaches the network to point at what an instruction names, on generated scenes (`volar-collect
kind=scenes`). Cloning starts from it (`init=`), learns the demonstrations' actions and keeps pointing; with
`questions=` (`volar-collect kind=questions`) it also answers questions about scenes, as RT-2 does.

One process, or many: torchrun --nproc_per_node 8 -m volar.vla.train ..., or accelerate launch --multi_gpu. batch_size
is that of a step over all of them. Too little memory: accumulate=2 takes the same samples in each step.
"""

import json
import math
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from volar.datasets.augmentation import Augmentation
from volar.datasets.durable_file import write_durably
from volar.datasets.mixture_contract import MixtureRules
from volar.robots.command_line import run
from volar.robots.errors import UsageError, VolarError
from volar.robots.usable_cpus import processes_here, usable_cpus
from volar.vla.run_folder import check_output

RECORD = "train.json"  # the settings of the run in a folder
# Of a policy's contract and tokens, where neither the settings nor init say otherwise.
DEFAULTS = {"chunk_length": 8, "execute_steps": 2, "normalization": "q01_q99", "tokenizer": "bins"}
EXAMPLES = (
    "volar-train stage=grounding dataset=runs/scenes minutes=3 output=runs/grounding",
    "volar-train dataset=runs/demos scenes=runs/scenes init=runs/grounding minutes=5 output=runs/policy",
    "volar-train dataset=runs/demos scenes=runs/scenes init=runs/grounding minutes=5 output=runs/policy resume=true",
    "volar-train dataset=runs mixture=demos:0.7,hover:0.3 augmentation.crop=0.9 minutes=5 output=runs/policy",
    "volar-train dataset=runs/demos backbone=models/SmolVLM2-500M language=lora vision=frozen decoder=flow steps=20000 "
    "learning_rate=1e-4 output=runs/vla",
    "volar-train dataset=runs/demos questions=runs/questions validation=0.05 evaluate_every_steps=2000 steps=10000 "
    "output=runs/cotrained",
    "torchrun --nproc_per_node 8 -m volar.vla.train dataset=runs/demos batch_size=512 steps=20000 output=runs/large",
    "volar-train inspect_tokenizer dataset=runs/demos chunk_length=16",
)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `volar-train`."""

    dataset: Path = field(metadata={"help": "a LeRobotDataset v3 with meta/volar_contract.json, or generated scenes"})
    output: Path = field(metadata={"help": "folder for checkpoints/ and metrics.jsonl"})
    mixture: str | None = field(
        default=None, metadata={"help": "several datasets in the folder dataset=: NAME:WEIGHT,..., or a mixture's YAML"}
    )
    mix: MixtureRules = field(default_factory=MixtureRules)
    frames: Literal["auto", "decoded", "encoded"] = field(
        default="auto", metadata={"help": "decoded: mapped from the disk; encoded: in memory, slower; auto: what fits"}
    )
    stage: Literal["cloning", "grounding"] = field(default="cloning", metadata={"help": "what is learned"})
    scenes: Path | None = field(default=None, metadata={"help": "generated scenes that cloning keeps pointing on"})
    scenes_fraction: float = field(default=0.25, metadata={"help": "their share of each batch"})
    questions: Path | None = field(default=None, metadata={"help": "questions about scenes to train on as well"})
    questions_fraction: float = field(default=0.1, metadata={"help": "their share of each batch"})
    init: Path | None = field(default=None, metadata={"help": "policy directory or run to start the weights from"})
    backbone: str | None = field(
        default=None, metadata={"help": "tiny, a pretrained model's folder or Hub id; tiny, or that of init"}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "pixels its images are resized to; null: its own, else the camera's"}
    )
    camera_tokens: tuple[int, ...] | None = field(
        default=None,
        metadata={"help": "of each camera, along a side of its image, as 8,4: averages; null: all, of tiny 8,4,.."},
    )
    backbone_dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "of a pretrained model's weights where they are frozen or lora"}
    )
    vision: Literal["frozen", "lora", "full"] | None = field(
        default=None, metadata={"help": "how the vision tower trains; full, or as in init"}
    )
    connector: Literal["frozen", "lora", "full"] | None = field(
        default=None, metadata={"help": "how what joins it to the language model trains; full, or as in init"}
    )
    language: Literal["frozen", "lora", "full"] | None = field(
        default=None, metadata={"help": "how the language model trains; full, or as in init"}
    )
    lora_rank: int | None = field(default=None, metadata={"help": "of low-rank updates; 16, or as in init"})
    decoder: Literal["parallel", "autoregressive", "flow"] | None = field(
        default=None, metadata={"help": "how actions come out; parallel, or that of init"}
    )
    expert_width: int | None = field(
        default=None, metadata={"help": "hidden size of the action expert of decoder=flow; 256, or that of init"}
    )
    flow_steps: int | None = field(
        default=None, metadata={"help": "Euler steps in which decoder=flow makes a chunk; 10, or those of init"}
    )
    state_as: Literal["projected", "tokens"] | None = field(
        default=None, metadata={"help": "proprioception: one embedding, or a token a number; projected, or as in init"}
    )
    points: Literal["base", "hand"] | None = field(
        default=None,
        metadata={
            "help": "pointed positions as decoder=parallel sees them: from the base, or from the hand, too; hand where "
            "the state has one, or as in init"
        },
    )
    finds_hand: bool | None = field(
        default=None,
        metadata={
            "help": "pointing finds the robot's own hand, too, which tells how the camera stands; true where "
            "the state has one and data label it, or as in init"
        },
    )
    action_ids: Literal["last", "added"] = field(
        default="last", metadata={"help": "a pretrained model's last words, as OpenVLA, or new ids behind all"}
    )
    width: int | None = field(default=None, metadata={"help": "hidden size of tiny; 128, or that of init"})
    layers: int | None = field(default=None, metadata={"help": "its language model's layers; 4, or those of init"})
    recipe: str | None = field(default=None, metadata={"group": True, "help": "named settings, before the others"})
    tokenizer: str | None = field(
        default=None, metadata={"help": "of actions: bins, or fast for decoder=autoregressive; bins, or that of init"}
    )
    chunk_length: int | None = field(default=None, metadata={"help": "actions predicted at once; 8, or as init"})
    execute_steps: int | None = field(
        default=None, metadata={"help": "of which executed before looking again; 2, or as init"}
    )
    normalization: Literal["q01_q99", "min_max"] | None = field(
        default=None,
        metadata={"help": "what -1 and 1 are in the data, which goes with the policy; q01_q99, or as in init"},
    )
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = field(default=0, metadata={"help": "initial weights and order of the data"})
    steps: int | None = field(default=None, metadata={"help": "optimizer steps; this or minutes"})
    minutes: float | None = field(default=None, metadata={"help": "training time; the schedule fits itself to it"})
    batch_size: int = field(default=64, metadata={"help": "samples a step, over all processes"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak of the cosine schedule"})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's"})
    warmup_steps: int = field(default=100, metadata={"help": "linear warm-up"})
    ema_decay: float = field(default=0.998, metadata={"help": "of the averaged weights, which are the policy"})
    precision: Literal["auto", "fp32", "bf16"] = field(
        default="auto", metadata={"help": "auto: bf16 on a GPU that has it, or a CPU that multiplies it faster"}
    )
    threads: int = field(default=0, metadata={"help": "CPU threads of a process; 0: all CPUs, shared out"})
    parallel: Literal["ddp", "fsdp"] = field(
        default="ddp", metadata={"help": "of several processes, each has the network, or (fsdp) a share of its weights"}
    )
    accumulate: int = field(default=1, metadata={"help": "parts that a process computes its samples of a step in"})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "compute layers twice instead of keeping what they made: less memory"}
    )
    validation: float = field(default=0.0, metadata={"help": "share of the episodes to measure on, not to train on"})
    validate_every_steps: int = field(default=500, metadata={"help": "steps between measurements of what is held out"})
    evaluate_every_steps: int | None = field(
        default=None, metadata={"help": "steps between evaluations in closed loop (volar-evaluate); never by default"}
    )
    evaluate_episodes: int = field(default=20, metadata={"help": "of each task, in such an evaluation"})
    evaluate_tasks: tuple[str, ...] = field(default=(), metadata={"help": "tasks of it; [] for all of the suite"})
    wandb: str | None = field(default=None, metadata={"help": "project of Weights & Biases to log to as well"})
    save_every_s: float = field(default=120.0, metadata={"help": "seconds between checkpoints"})
    save_every_steps: int | None = field(default=None, metadata={"help": "steps between checkpoints, instead"})
    keep: int = field(default=2, metadata={"help": "newest checkpoints to keep"})
    resume: bool = field(default=False, metadata={"help": "continue from checkpoints/last"})
    overwrite: bool = field(default=False, metadata={"help": "replace what is in output"})

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise UsageError("give steps=N or minutes=M, one of the two")
        sizes = ("steps", "minutes", "width", "layers", "chunk_length", "execute_steps", "batch_size", "image_size")
        rates = ("learning_rate", "warmup_steps", "lora_rank", "expert_width", "flow_steps", "accumulate", "keep")
        times = ("save_every_s", "save_every_steps", "validate_every_steps", "evaluate_every_steps")
        positive = (*sizes, *rates, *times, "evaluate_episodes")
        for name in (*positive, "weight_decay", "threads", "seed"):
            value, may_be_0 = getattr(self, name), name not in positive
            if value is not None and not (0 < value < math.inf or (may_be_0 and value == 0)):
                raise UsageError(f"{name} must be {'0 or more' if may_be_0 else 'above 0'}, is {value}")
        for name in ("scenes", "questions"):
            fraction = getattr(self, f"{name}_fraction")
            if not 0 < fraction < 1:
                raise UsageError(f"{name}_fraction {fraction} is not in (0, 1); leave {name}= away for none")
        self._check_how()
        execute, chunk = self.execute_steps, self.chunk_length
        if execute is not None and chunk is not None and execute > chunk:
            have = f"execute_steps {execute} is above chunk_length {chunk}"
            raise UsageError(f"{have}: give both (left away, each is that of init, or 2 of 8)")
        if self.backbone_dtype != "float32" and (self.backbone in (None, "tiny") or self.init is not None):
            raise UsageError(f"backbone_dtype={self.backbone_dtype} is for backbone=FOLDER, a pretrained model")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"ema_decay {self.ema_decay} is not in [0, 1)")
        if (
            self.lora_rank is not None
            and self.init is None
            and "lora" not in (self.vision, self.connector, self.language)
        ):
            raise UsageError("lora_rank is for vision=lora, connector=lora or language=lora")
        for name in ("expert_width", "flow_steps"):
            if getattr(self, name) is not None and self.decoder != "flow" and (self.init is None or self.decoder):
                raise UsageError(f"{name} is for decoder=flow")
        if self.points is not None and self.decoder not in (None, "parallel"):
            raise UsageError(f"points={self.points} is for decoder=parallel, not {self.decoder}")
        if self.finds_hand or self.points == "hand":
            self.mix.require_one_state("finds_hand=true" if self.finds_hand else "points=hand")
        pretrained = self.backbone not in (None, "tiny") and self.init is None
        if self.action_ids == "added" and not (self.decoder == "autoregressive" and pretrained):
            raise UsageError("action_ids=added is for decoder=autoregressive of a new run around backbone=FOLDER")
        for name in ("weights", "statistics", "allow"):
            if self.mixture is None and getattr(self.mix, name) != getattr(MixtureRules(), name):
                raise UsageError(f"mix.{name} is for several datasets: give mixture=NAME:WEIGHT,...")
        if self.scenes is not None and self.stage == "grounding":
            raise UsageError("scenes= is for cloning; stage=grounding takes them as dataset=")
        if self.resume and self.overwrite:
            raise UsageError("resume=true continues a run, overwrite=true replaces it: give one")
        output = self.output.resolve()
        for path in (self.dataset, self.scenes, self.questions, self.init):
            if path is not None and output in (path.resolve(), *path.resolve().parents):
                raise UsageError(f"output {self.output} holds {path}, which this run reads; give another output")

    def _check_how(self) -> None:
        """Of what is measured, and how it is computed."""
        if not 0 <= self.validation < 1:
            raise UsageError(f"validation {self.validation} is not in [0, 1)")
        if self.validation and self.stage == "grounding":
            raise UsageError("validation= is for stage=cloning: it measures actions")
        if self.evaluate_every_steps is not None and self.stage == "grounding":
            raise UsageError("evaluate_every_steps= is for stage=cloning: it measures what the arm does")
        for names, needed, there in (
            (("scenes_fraction",), "scenes=", self.scenes is not None),
            (("questions_fraction",), "questions=", self.questions is not None),
            (("evaluate_episodes", "evaluate_tasks"), "evaluate_every_steps=", self.evaluate_every_steps is not None),
            # Some questions are always held out.
            (("validate_every_steps",), "validation= or questions=", self.validation or self.questions is not None),
        ):
            for name in names:
                if not there and getattr(self, name) != getattr(TrainConfig, name):
                    raise UsageError(f"{name} is for {needed}: give that, or leave {name} away")
        if self.parallel == "fsdp" and self.backbone_dtype != "float32":
            raise UsageError("parallel=fsdp shards weights of one precision: backbone_dtype=float32")
        if self.parallel == "fsdp" and self.validation and self.tokenizer is not None:
            from volar.vla.action_tokenizers import tokenizer_class

            if not tokenizer_class(self.tokenizer).one_token_a_number:
                raise UsageError("parallel=fsdp cannot decode sequences of varying length: leave validation= away")


def train(config: TrainConfig) -> None:
    """Runs a stage to its end, from the start or from the last checkpoint; leaves `checkpoints/last`.

    In each of the processes that a launcher may have started; the first one writes.
    """
    _check_launcher(config)
    first = int(os.environ.get("RANK", "0")) == 0
    goes_on = first and check_output(
        config.output, RECORD, "training run", settings(config), config.resume, config.overwrite, defaults=DEFAULTS
    )
    for name in ("dataset", "scenes", "questions", "init"):  # before torch starts, which takes seconds
        path = getattr(config, name)
        if path is not None and not path.exists():
            raise VolarError(f"{name}={path}: there is no such folder")
    # Read when torch starts: threads that wait sleep, instead of spinning on cores that other processes need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from volar.vla.closed_loop_success import require_evaluable
    from volar.vla.metrics_log import require_wandb
    from volar.vla.training_loop import out_of_memory, run_to_the_end
    from volar.vla.training_run import TrainingRun

    if config.wandb:
        require_wandb()
    torch.set_num_threads(config.threads or max(1, usable_cpus() // processes_here()))
    try:
        training = TrainingRun.start(config)
    except (MemoryError, RuntimeError) as error:  # the network, its gradients to be and averages are larger than memory
        if not out_of_memory(error):
            raise
        raise VolarError(
            f"out of memory before the first step ({str(error).strip()[:160]}): train less of the network "
            "(vision=frozen, language=lora, ...), share it out (torchrun ... parallel=fsdp) or take a smaller backbone="
        ) from error
    if first:
        require_evaluable(config, training)
        if not goes_on:
            prepare_output(config)
        print(training.summary(), flush=True)
    run_to_the_end(config, training)
    if first:
        print(f"policy: {config.output / 'checkpoints' / 'last' / 'pretrained_model'}")


def _check_launcher(config: TrainConfig) -> None:
    """Raises `UsageError` where what started this process was told something that the settings do not say."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # as accelerate launch leaves it
    if asked not in ("no", config.precision):
        raise UsageError(
            f"accelerate launch was told --mixed_precision {asked}, the run precision={config.precision}: leave the "
            "former away and give precision=bf16 or fp32"
        )
    if config.parallel == "fsdp" and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise UsageError(
            "parallel=fsdp shares weights out among processes, and there is one: start with torchrun "
            "--nproc_per_node N -m volar.vla.train, or leave it away"
        )


def settings(config: TrainConfig) -> dict[str, str]:
    """What makes a run this one and no other; how long, how it is computed and saved may change when it resumes."""
    free = {"steps", "minutes", "keep", "threads", "save_every_s", "save_every_steps", "validate_every_steps", "wandb"}
    free |= {"parallel", "accumulate", "gradient_checkpointing", "frames"}  # the same run by other means
    free |= {"evaluate_every_steps", "evaluate_episodes", "evaluate_tasks"}
    free |= {"output", "resume", "overwrite", "recipe"}
    return {key: str(value) for key, value in sorted(asdict(config).items()) if key not in free}


def prepare_output(config: TrainConfig) -> None:
    """Makes the folder of a new run, once its input is known to be usable."""
    if config.output.exists():
        shutil.rmtree(config.output)
    config.output.mkdir(parents=True)
    write_durably(config.output / RECORD, (json.dumps(settings(config), indent=1) + "\n").encode())


def main() -> int:
    if sys.argv[1:2] == ["inspect_tokenizer"]:
        from volar.vla import inspect_tokenizer as inspect

        return run(
            "volar-train inspect_tokenizer",
            inspect.InspectTokenizerConfig,
            inspect.inspect_tokenizer,
            doc=inspect.__doc__,
            examples=inspect.EXAMPLES,
            argv=sys.argv[2:],
        )
    configs = Path(__file__).parent / "configs"
    return run("volar-train", TrainConfig, train, doc=__doc__, examples=EXAMPLES, config_dir=configs)


if __name__ == "__main__":
    raise SystemExit(main())
