"""Episodes in which a classifier of success can learn what is true, and be measured: one file each, made side by side.

Each is looked at under two orders: the one that the arm follows, and one about another thing, which what the arm does
hardly ever fulfils. Both are labelled by their own predicate. Those to learn from are the policy's attempts and, every
second one, the scripted expert's under disturbances, since a weak policy shows little success; they end soon after it.
Those to measure on are the policy's alone, as it practises, and go on until the clock ends them.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.datasets.durable_file import write_durably
from volar.rl.episodes import EpisodeRunner, Job, Setting
from volar.rl.exploration import Exploration
from volar.rl.rewards import Told, told_goal
from volar.rl.success_network import Eyes, Look, SuccessNetwork
from volar.rl.token_policy import token_policy
from volar.robots.contract import PolicyContract
from volar.sim.demonstration import Disturbances, DisturbanceSampler
from volar.sim.sim_robot import SimulationDiverged
from volar.sim.tasks.layout import NoLayout
from volar.sim.worker_pool import worker_pool
from volar.sim.world import StepDriver, TaskWorld
from volar.vla.checkpoint_policy import load_parts

TRAINING, VALIDATION, HELD_OUT = SPLITS = ("training", "validation", "held_out")
_FIRST_SEED = 2**49  # above the scenes of fine-tuning
_SEEDS_A_RUN, _SEEDS_A_SPLIT = 2**30, 2**28
_HOLD = 10  # steps after success in an episode to learn from: the end being held


@dataclass(frozen=True)
class Wanted:
    """One episode: of which split and task, and its number there."""

    split: str
    task: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.task}-{self.number:05d}.safetensors"


@dataclass(frozen=True)
class Source:
    """What decides every episode, beside which it is."""

    policy: Path
    tasks: tuple[str, ...]
    robot: str
    randomization: str
    seed: int

    def seed_of(self, wanted: Wanted) -> int:
        return _FIRST_SEED + self.seed * _SEEDS_A_RUN + SPLITS.index(wanted.split) * _SEEDS_A_SPLIT + wanted.number


@dataclass(frozen=True)
class LabelledEpisode:
    """T steps under two orders, the followed one first. `features` (2, T, F) of `SuccessNetwork`; `success` (2, T)
    bool: what each asks for is true after the step. T is 0 for a scene that could not be run."""

    task: str
    instructions: tuple[str, ...]
    features: NDArray[np.float32]
    success: NDArray[np.bool_]


class Recorder:
    """A `Judge` that keeps what is seen and what is true; ends it `hold` steps after success, or never (None)."""

    def __init__(self, contract: PolicyContract) -> None:
        self._eyes = Eyes(contract)
        self.hold: int | None = None
        self.clear()

    def clear(self) -> None:
        self.instructions: tuple[str, ...] = ()
        self.looks: list[Look] = []
        self.true: list[list[bool]] = []
        self._told: list[Told] = []
        self._since: int | None = None  # success, in steps

    def begin(self, world: TaskWorld, instruction: str) -> None:
        self.clear()
        self.instructions = instruction, world.wrong_instruction()
        goals = [told_goal(world.task, text, world.goal, world.state) for text in self.instructions]
        self._told = [Told(world.task, goal) for goal in goals]

    def after_step(self, world: TaskWorld, success: bool) -> bool:
        state = world.state
        self.looks.append(self._eyes.look(world))
        self.true.append([told.success(state) for told in self._told])
        if self._since is not None or success:
            self._since = 0 if self._since is None else self._since + 1
        return self.hold is not None and self._since is not None and self._since >= self.hold


class Labeller:
    """Runs episodes one after the other in this process. Raises `ContractError` where the policy does not fit."""

    def __init__(self, source: Source) -> None:
        self._source = source
        model, contract, tokenizer = load_parts(source.policy)
        self._network = SuccessNetwork(model, contract, tokenizer).eval()
        setting = Setting(source.tasks, source.robot, source.randomization, world_seed=source.seed)
        policy = token_policy(model, contract, exploration=Exploration())
        self._recorder = Recorder(contract)
        self._runner = EpisodeRunner(setting, policy, contract, tokenizer, self._recorder)

    def episode(self, wanted: Wanted) -> LabelledEpisode:
        seed, recorder = self._source.seed_of(wanted), self._recorder
        recorder.clear()
        recorder.hold = _HOLD if wanted.split == TRAINING else None
        if wanted.split == TRAINING and wanted.number % 2:
            valid = self._demonstrate(wanted.task, seed)
        else:
            ran = self._runner.run(Job(wanted.task, seed, noise_seed=seed))
            if ran.broken:
                print(f"seed {seed} of {wanted.task} is left out, it broke: {ran.error}", file=sys.stderr, flush=True)
            valid = ran.valid
        count = len(recorder.looks) if valid else 0
        if not count:
            nothing = np.zeros((2, 0, self._network.mean.numel()), np.float32)
            return LabelledEpisode(wanted.task, recorder.instructions, nothing, np.zeros((2, 0), np.bool_))
        features = [self._network.features(recorder.looks, text) for text in recorder.instructions]
        return LabelledEpisode(wanted.task, recorder.instructions, np.stack(features), np.array(recorder.true).T)

    def close(self) -> None:
        """Frees the renderers."""
        self._runner.close()

    def _demonstrate(self, task: str, seed: int) -> bool:
        """The expert's attempt under disturbances; False for a scene that could not be run."""
        world = self._runner.world(task)
        driver = StepDriver(world)
        disturbances = DisturbanceSampler(Disturbances(), np.random.default_rng([seed, 1]))
        low, high = np.array(world.spec.action.low), np.array(world.spec.action.high)
        try:
            driver.reset(seed)
            self._recorder.begin(world, world.instruction)
            for _ in range(world.task.max_steps):
                action = disturbances.executed(np.clip(world.expert(), low, high))
                driver.step(np.clip(action, low, high).astype(np.float32))
                if self._recorder.after_step(world, world.success()):
                    break
        except (NoLayout, SimulationDiverged):
            return False
        return True


def make_episodes(source: Source, wanted: Sequence[Wanted], folder: Path, workers: int) -> None:
    """Writes each episode that `folder` lacks, with a progress bar; an interrupt loses only what has not ended."""
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    folder.mkdir(parents=True, exist_ok=True)
    missing = [item for item in wanted if not (folder / item.name).is_file()]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        shown = bar.add_task("labelled episodes", total=len(wanted), completed=len(wanted) - len(missing))
        for _ in _made(source, missing, folder, workers):
            bar.advance(shown)


def _made(source: Source, missing: Sequence[Wanted], folder: Path, workers: int) -> Iterable[None]:
    if workers == 1:
        labeller = Labeller(source)
        try:
            for item in missing:
                write_episode(folder / item.name, labeller.episode(item))
                yield
        finally:
            labeller.close()
    elif missing:
        with worker_pool(workers, _start, (source, folder)) as pool:
            for done in as_completed([pool.submit(_make, item) for item in missing]):
                yield done.result()


_worker: dict[str, Any] = {}  # a worker process's own


def _start(source: Source, folder: Path) -> None:
    Finalize(None, _worker.clear, exitpriority=0)  # frees the loops before the interpreter does: ruckig insists
    _worker.update(labeller=Labeller(source), folder=folder)


def _make(wanted: Wanted) -> None:
    write_episode(_worker["folder"] / wanted.name, _worker["labeller"].episode(wanted))


def write_episode(path: Path, episode: LabelledEpisode) -> None:
    from safetensors.numpy import save

    facts = json.dumps({"task": episode.task, "instructions": episode.instructions})
    arrays = {"features": episode.features, "success": episode.success}
    whole = {name: np.ascontiguousarray(value) for name, value in arrays.items()}  # safetensors takes the bytes as is
    write_durably(path, save(whole, {"facts": facts}))


def read_episodes(folder: Path, wanted: Iterable[Wanted]) -> list[LabelledEpisode]:
    """Those that could be run."""
    from safetensors import safe_open

    found = []
    for item in wanted:
        with safe_open(str(folder / item.name), "numpy") as file:
            facts = json.loads(file.metadata()["facts"])
            features, success = file.get_tensor("features"), file.get_tensor("success")
        if features.shape[1]:
            found.append(LabelledEpisode(facts["task"], tuple(facts["instructions"]), features, success))
    return found
