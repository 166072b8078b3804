"""volar-evaluate replay: runs a broken episode again, bit for bit, and says whether it breaks again.

The file is OUTPUT/replays/TASK_INDEX_CONDITION.npz of an evaluation. It holds seed, what randomization drew,
instruction, commands, the last second's states and the traceback, and the hashes of the files that the episode depends
on beside these: the policy, a YAML file of randomization, a user's robot model. Where one has changed it says so.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volar.robots.command_line import run
from volar.robots.errors import VolarError

if TYPE_CHECKING:
    from volar.sim.replay_file import ReplayFile

EXAMPLES = (
    "volar-evaluate replay runs/evaluation/replays/lift_0007_standard.npz",
    "volar-evaluate replay runs/evaluation/replays/lift_0007_standard.npz video=runs/broken.mp4",
)


@dataclass(frozen=True)
class ReplayConfig:
    """Settings of `volar-evaluate replay`."""

    file: Path = field(metadata={"help": "what the broken episode left in OUTPUT/replays"})
    policy: Path | None = field(default=None, metadata={"help": "where the policy is now; by default where it was"})
    video: Path | None = field(default=None, metadata={"help": "film the episode into this .mp4"})

    def __post_init__(self) -> None:
        if self.video is not None and self.video.suffix != ".mp4":
            raise ValueError(f"video={self.video} must end in .mp4")


@dataclass(frozen=True)
class Verdict:
    """`broken`: the episode broke again; `identical`: with the same bits, up to the same control period."""

    broken: bool
    identical: bool
    text: str


def replay(config: ReplayConfig) -> Verdict:
    """Raises `VolarError` when the file cannot be read, or when the policy is not where it was."""
    from volar.robots.policies import find_policy
    from volar.sim.evaluation import folder_sha256
    from volar.sim.replay_file import read_replay

    found = read_replay(config.file)
    folder = find_policy(config.policy) if config.policy else Path(found.facts["policy"])
    if not folder.is_dir() or not (config.policy or folder_sha256(folder) == found.facts["policy_sha256"]):
        raise VolarError(f"the policy is no longer at {folder}, or has changed; say where it is with policy=")
    return _again(config, found, folder)


def _again(config: ReplayConfig, before: "ReplayFile", folder: Path) -> Verdict:
    """The episode once more in a worker process, which may die of it."""
    from volar.sim.evaluation import Bench, Job, fingerprints, run_jobs
    from volar.sim.replay_file import read_replay

    facts, old = before.facts, before.record
    settings = ("robot", "latency_s", "randomization", "max_steps", "world_seed")
    bench = Bench(str(folder), **{name: facts[name] for name in settings})
    now = fingerprints(bench, old.condition)
    changed = [
        f"{name} was {was}, is {now.get(name)}" for name, was in facts["fingerprints"].items() if now[name] != was
    ]
    if changed:
        raise VolarError(f"what the episode depends on has changed: {'; '.join(changed)}")
    with tempfile.TemporaryDirectory() as output:
        video = "" if config.video is None else str(config.video)
        job = Job(old.task, old.condition, old.index, old.seed, video, output, old.draws or None)
        record = next(run_jobs(bench, [job], workers=1))
        if not record.broken:
            ended = "success" if record.success else "without success"
            return Verdict(False, False, f"does not break any more: {record.steps} steps, {ended}")
        after = read_replay(Path(output) / record.replay)
    if (record.episode_sha256, after.periods) == (old.episode_sha256, before.periods):
        return Verdict(True, True, f"breaks again, bit for bit, in control period {after.periods}: {record.reason}")
    shared = min(before.periods, after.periods)
    differ = (before.arrays["q"][:shared] != after.arrays["q"][:shared]).any(axis=-1) if shared else np.zeros(0, bool)
    agree = int(np.argmax(differ)) if differ.any() else shared
    return Verdict(
        True,
        False,
        f"breaks again, but in control period {after.periods} instead of {before.periods} (the commands agree in the "
        f"first {agree}): {record.reason}",
    )


def _main(config: ReplayConfig) -> None:
    print(replay(config).text)


def main(argv: list[str]) -> int:
    return run(
        "volar-evaluate replay", ReplayConfig, _main, doc=__doc__, examples=EXAMPLES, positional=("file",), argv=argv
    )
