"""volar-evaluate replay: runs a broken episode again, bit for bit, and says whether it breaks again.

With the policy still where it was, the policy decides again; without it, or with another in its place, the recorded
commands are played. The file is OUTPUT/replays/TASK_INDEX_CONDITION.npz of an evaluation.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from volar.robots.command_line import run
from volar.robots.errors import VolarError

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
    """Raises `VolarError` when the file cannot be read, or when there is nothing to film or to play."""
    from volar.robots.policies import find_policy
    from volar.sim.evaluation import folder_sha256
    from volar.sim.replay_file import read_replay

    found = read_replay(config.file)
    folder = find_policy(config.policy) if config.policy else Path(found.facts["policy"])
    if folder.is_dir() and (config.policy or folder_sha256(folder) == found.facts["policy_sha256"]):
        return _with_policy(config, folder)
    if config.policy is not None or config.video is not None or not found.periods:
        raise VolarError(f"the policy is no longer at {folder}, or has changed; say where it is with policy=")
    return _commands_only(config.file)


def _with_policy(config: ReplayConfig, folder: Path) -> Verdict:
    """The episode once more in a worker process, which may die of it."""
    from volar.sim.evaluation import Bench, Job, run_jobs
    from volar.sim.replay_file import read_replay

    before = read_replay(config.file)
    facts, old = before.facts, before.record
    bench = Bench(str(folder), facts["robot"], facts["latency_s"], facts["randomization"], facts["max_steps"])
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


def _commands_only(file: Path) -> Verdict:
    """The recorded commands in the same scene, without a policy."""
    from volar.robots.body import JointCommand
    from volar.sim.conditions import randomization_of
    from volar.sim.replay_file import read_replay
    from volar.sim.sim_robot import SimulationDiverged
    from volar.sim.world import CONTROL_PERIOD_S, TaskWorld

    found = read_replay(file)
    record, arrays = found.record, found.arrays
    randomization = randomization_of(record.condition, found.facts["randomization"])
    world = TaskWorld(record.task, found.facts["robot"], cameras=(), randomization=randomization)
    world.reset(record.seed, record.draws or None)
    played = 0
    try:
        for q, dq, ddq, width_m in zip(*(arrays[name] for name in ("q", "dq", "ddq", "gripper_width_m")), strict=True):
            played += 1
            world.body.send(JointCommand(q, dq, ddq, float(width_m)))
            world.advance(CONTROL_PERIOD_S)
    except SimulationDiverged as error:
        return Verdict(True, played == found.periods, f"the commands break it in control period {played}: {error}")
    finally:
        world.close()
    now = {"qpos": world.data.qpos, "qvel": world.data.qvel}
    same = all(len(arrays[name]) > 0 and np.array_equal(arrays[name][-1], value) for name, value in now.items())
    bits = "end in the same bits" if same else "end in other bits"
    return Verdict(False, same, f"the policy is not here; its {played} commands {bits}; then came: {record.reason}")


def _main(config: ReplayConfig) -> None:
    print(replay(config).text)


def main(argv: list[str]) -> int:
    return run(
        "volar-evaluate replay", ReplayConfig, _main, doc=__doc__, examples=EXAMPLES, positional=("file",), argv=argv
    )
