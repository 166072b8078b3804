"""Demonstrations of a policy of state, for policies that see: the same dataset as volar-collect's.

    python -m volar.rl.state_baselines task=reach algorithm=sac steps=15000 output=runs/state-reach
    python -m volar.rl.distill teacher=runs/state-reach episodes=100 output=runs/demos
    volar-train dataset=runs/demos minutes=5 output=runs/policy

The teacher acts where volar-collect has its scripted expert; images, instructions, point labels, disturbances, resuming
and the choice of successful episodes are volar-collect's own. Task and robot are the teacher's. Of a layout in which it
fails there is another attempt in another layout, so the data of a poor teacher leans towards what it can do.
"""

from dataclasses import dataclass, field
from pathlib import Path

from volar.robots.command_line import run
from volar.robots.errors import VolarError
from volar.robots.usable_cpus import usable_cpus
from volar.sim.collect import CollectConfig, collect_demonstrations

EXAMPLES = (
    "python -m volar.rl.distill teacher=runs/state-reach episodes=100 output=runs/demos",
    "python -m volar.rl.distill teacher=runs/state-reach episodes=400 output=runs/demos resume=true",
    "python -m volar.rl.distill teacher=runs/state-reach episodes=100 randomization=visual output=runs/varied",
)


@dataclass(frozen=True)
class DistillConfig:
    """Settings of `python -m volar.rl.distill`; all but `teacher` as in `CollectConfig`."""

    teacher: Path = field(metadata={"help": "folder of python -m volar.rl.state_baselines"})
    output: Path = field(metadata={"help": "folder for the dataset"})
    episodes: int = field(default=100, metadata={"help": "demonstrations, each of them successful"})
    seed: int = field(default=0, metadata={"help": "decides layouts, orders and disturbances"})
    cameras: tuple[str, ...] = field(default=("front", "wrist"), metadata={"help": "cameras to record, front first"})
    image_size: int = field(default=96, metadata={"help": "pixels, square, a multiple of 8"})
    noise: float = field(default=1.0, metadata={"help": "scale of the disturbances (DART)"})
    randomization: str = field(default="none", metadata={"help": "what varies: a preset, or a YAML file"})
    workers: int = field(default=0, metadata={"help": "processes; 0: one for each CPU"})
    resume: bool = field(default=False, metadata={"help": "continue what an interruption left in output"})
    overwrite: bool = field(default=False, metadata={"help": "replace what is in output"})


def distill(config: DistillConfig) -> None:
    """Records the teacher. Raises `VolarError` for one that cannot teach, with its success rate."""
    from volar.rl.state_teacher import StateTeacher
    from volar.sim.demonstration import NeverSucceeded

    teacher = StateTeacher.load(config.teacher)
    wanted = CollectConfig(
        config.output,
        tasks=(teacher.task,),
        robot=teacher.robot,
        episodes=config.episodes,
        seed=config.seed,
        cameras=config.cameras,
        image_size=config.image_size,
        noise=config.noise,
        randomization=config.randomization,
        workers=config.workers,
        resume=config.resume,
        overwrite=config.overwrite,
    )
    try:
        collect_demonstrations(wanted, config.workers or usable_cpus(), teacher)
    except NeverSucceeded as error:
        raise VolarError(f"{error}. When {config.teacher} was evaluated, {teacher.rate}") from error


def main() -> int:
    return run("python -m volar.rl.distill", DistillConfig, distill, doc=__doc__, examples=EXAMPLES)


if __name__ == "__main__":
    raise SystemExit(main())
