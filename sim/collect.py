"""volar-collect: demonstrations of a suite as a LeRobotDataset v3, or labelled scenes, or questions about scenes.

Each demonstration is determined by `seed` and its number, whoever makes it: the data does not depend on the
number of workers nor on interruptions. Its environment seed lies above 2^32, so that no evaluation, whose
seeds count from 0, repeats a layout that was trained on.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volar.robots.command_line import run
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.errors import UsageError, VolarError
from volar.robots.spec import load_robot, robot_name
from volar.robots.usable_cpus import usable_cpus
from volar.sim.randomization import Randomization, fingerprint
from volar.sim.worker_pool import worker_pool

if TYPE_CHECKING:
    from volar.datasets.episode_writer import EpisodeWriter
    from volar.sim.demonstration import DemonstrationMaker, Demonstrator

EXAMPLES = (
    "volar-collect suite=tabletop episodes=400 output=runs/demonstrations",
    "volar-collect tasks=reach,lift episodes=1600 output=runs/demonstrations resume=true",
    "volar-collect randomization=visual output=runs/varied",
    "volar-collect kind=scenes scenes=30000 output=runs/scenes",
    "volar-collect kind=scenes randomization=full output=runs/varied_scenes",
    "volar-collect kind=questions scenes=30000 seed=1 output=runs/questions",
)
PATCHES = 8  # a side, of the tiny backbone
_AHEAD = 6  # demonstrations a worker may be ahead of the writer, which takes them in order


@dataclass(frozen=True)
class CollectConfig:
    """Settings of `volar-collect`."""

    output: Path = field(metadata={"help": "folder for the dataset"})
    kind: Literal["demonstrations", "scenes", "questions"] = field(
        default="demonstrations", metadata={"help": "what to collect; scenes: to point at; questions: about scenes"}
    )
    suite: str = field(default="tabletop", metadata={"help": "tasks to demonstrate, for kind=demonstrations"})
    tasks: tuple[str, ...] = field(default=(), metadata={"help": "any tasks by name; [] for the suite's"})
    episodes: int = field(default=400, metadata={"help": "for kind=demonstrations, over all tasks in turn"})
    scenes: int = field(default=30_000, metadata={"help": "for kind=scenes and questions"})
    seed: int = field(default=0, metadata={"help": "decides layouts, orders and disturbances"})
    robot: str = field(default="fr3", metadata={"help": "robot: fr3, ur5e, so101"})
    asset: str | None = field(
        default=None, metadata={"help": "of demonstrations: menagerie:PATH, your own MJCF model of that robot"}
    )
    cameras: tuple[str, ...] = field(default=("front", "wrist"), metadata={"help": "cameras to record, front first"})
    image_size: int = field(default=96, metadata={"help": "pixels, square, a multiple of 8"})
    noise: float = field(default=1.0, metadata={"help": "of demonstrations: scale of the disturbances (DART)"})
    randomization: str = field(
        default="none", metadata={"help": "what varies: none, visual, dynamics, full, unseen, or a YAML file"}
    )
    workers: int = field(default=0, metadata={"help": "processes; 0: one for each CPU"})
    resume: bool = field(default=False, metadata={"help": "continue what an interruption left in output"})
    overwrite: bool = field(default=False, metadata={"help": "replace what is in output"})

    def __post_init__(self) -> None:
        least_values = {"episodes": 1, "scenes": 1, "image_size": 16, "seed": 0, "noise": 0, "workers": 0}
        for name, least in least_values.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, is {getattr(self, name)}")
        Randomization.of(self.randomization)
        if self.image_size % PATCHES:
            raise UsageError(
                f"image_size={self.image_size} is no multiple of {PATCHES}: the network cuts images into "
                f"{PATCHES} × {PATCHES} patches of whole pixels"
            )
        if self.resume and self.overwrite:
            raise UsageError("resume=true and overwrite=true exclude each other")

    @property
    def model(self) -> str:
        """What `load_robot` takes: the robot, with the user's model of it if one is given."""
        return robot_name(self.robot, self.asset)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks to demonstrate. Raises `Unknown` for a suite or task that does not exist."""
        from volar.sim.tasks import load_suite, load_task

        suite = tuple(task.name for task in load_suite(self.suite))
        return tuple(load_task(name).name for name in self.tasks) or suite

    @property
    def contract(self) -> PolicyContract:
        """That of the dataset: no statistics yet, single actions. Raises `Unknown` for a robot or camera.

        Raises `UsageError` when the first camera is not the one in which points are labelled.
        """
        from volar.robots.errors import Unknown
        from volar.sim.scene import LABELLED_CAMERA

        spec = load_robot(self.model)
        for camera in self.cameras:
            if camera not in spec.cameras:
                raise Unknown("camera", camera, spec.cameras)
        if self.cameras[:1] != (LABELLED_CAMERA,):
            raise UsageError(
                f"cameras must begin with {LABELLED_CAMERA}: points are labelled in the first camera's image, and "
                "only a camera that stands still sees them at all times"
            )
        return PolicyContract(
            robot=spec.name,
            action=spec.action,
            state_names=spec.state_names,
            state_units=spec.state_units,
            cameras=tuple(CameraSpec(name, self.image_size, self.image_size) for name in self.cameras),
            chunk_length=1,
            execute_steps=1,
        )


def main() -> int:
    return run("volar-collect", CollectConfig, collect, doc=__doc__, examples=EXAMPLES)


def collect(config: CollectConfig) -> None:
    """Collects what the config says. Raises `VolarError`, also for settings that mean nothing for its kind."""
    _require_own(config)
    workers = config.workers or usable_cpus()
    if config.kind != "demonstrations":
        from volar.sim.collect_scenes import ScenesConfig, collect_scenes
        from volar.sim.randomizer import require_possible

        if config.tasks:
            raise UsageError(f"tasks= is for demonstrations; kind={config.kind} asks about blocks and plate alone")
        if config.asset:
            raise UsageError(f"asset= is for demonstrations; kind={config.kind} draws the robot's own model")
        require_possible((config.randomization,), ("reach",), config.robot)
        asks = config.kind == "questions"
        wanted = ScenesConfig(config.scenes, config.seed, config.contract, asks, config.randomization)
        collect_scenes(wanted, config.output, workers, resume=config.resume, overwrite=config.overwrite)
        return
    collect_demonstrations(config, workers)


def _require_own(config: CollectConfig) -> None:
    """Raises `UsageError` for a setting of another kind that is not what it is by default."""
    if config.kind == "demonstrations":
        wanted, foreign = "scenes or questions", ["scenes"]
    else:
        wanted, foreign = "demonstrations", ["suite", "episodes", "noise"]
    given = [f"{f.name}=" for f in fields(config) if f.name in foreign and getattr(config, f.name) != f.default]
    if given:
        raise UsageError(f"{', '.join(given)} is for kind={wanted}, not for kind={config.kind}")


def collect_demonstrations(config: CollectConfig, workers: int, demonstrator: "Demonstrator | None" = None) -> None:
    """Writes the demonstrations of the scripted experts, or of who acts in their place, with a progress bar.

    Raises `VolarError`; an interrupt leaves what is whole.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    from volar.sim.randomizer import require_possible

    tasks = config.task_names
    require_possible((config.randomization,), tasks, config.model)
    writer = _writer(config, tasks, demonstrator)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task(f"demonstrations of {', '.join(tasks)}", total=config.episodes, completed=writer.episodes)
        try:
            for encoded in _demonstrations(config, tasks, writer.episodes, workers, demonstrator):
                writer.append(encoded)
                bar.advance(shown)
        except (KeyboardInterrupt, VolarError):
            writer.flush()  # so that resume=true loses nothing
            raise
    writer.finalize()
    print(f"{writer.episodes} demonstrations of {', '.join(tasks)} in {config.output}")


def _writer(config: CollectConfig, tasks: tuple[str, ...], demonstrator: "Demonstrator | None") -> "EpisodeWriter":
    from volar.datasets.episode_writer import EpisodeWriter
    from volar.datasets.lerobot_layout import WRITER

    # More `episodes` than before is a longer run of the same dataset; everything else makes another one.
    source: dict[str, str | int | float | bool] = {
        "made_by": "volar-collect",
        "tasks": ",".join(tasks),
        "seed": config.seed,
        "noise": config.noise,
    }
    if config.randomization != "none":
        source["randomization"] = fingerprint(config.randomization)
    if config.asset:
        from volar.robots.mjcf_arm import asset_fingerprint

        source["asset"] = f"{config.asset} {asset_fingerprint(load_robot(config.model))}"
    if demonstrator:
        source |= demonstrator.source
    if config.resume and (config.output / WRITER).is_file():
        writer = EpisodeWriter.resume(config.output, config.contract, source)
        if writer.episodes > config.episodes:
            have = f"{config.output} has {writer.episodes} episodes already"
            raise VolarError(f"{have}, more than episodes={config.episodes}; ask for at least as many")
        return writer
    return EpisodeWriter.create(config.output, config.contract, source=source, overwrite=config.overwrite)


def _demonstrations(
    config: CollectConfig, tasks: tuple[str, ...], first: int, workers: int, demonstrator: "Demonstrator | None"
) -> Iterator[bytes]:
    """Encoded demonstrations from number `first` on, in order, made by `workers` processes; one: by this one."""
    if workers == 1:
        _start_worker(config, tasks, demonstrator)
        yield from (_make(number) for number in range(first, config.episodes))
        return
    with worker_pool(workers, _start_process, (config, tasks, demonstrator)) as pool:
        waiting: deque[Future[bytes]] = deque()
        numbers = iter(range(first, config.episodes))
        waiting.extend(pool.submit(_make, number) for number in itertools.islice(numbers, workers * _AHEAD))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_make, number) for number in itertools.islice(numbers, 1))


_worker: dict[str, Any] = {}  # a worker process's own makers and settings


def _start_worker(config: CollectConfig, tasks: tuple[str, ...], demonstrator: "Demonstrator | None") -> None:
    _worker.update(config=config, tasks=tasks, contract=config.contract, makers={}, demonstrator=demonstrator)


def _start_process(config: CollectConfig, tasks: tuple[str, ...], demonstrator: "Demonstrator | None") -> None:
    Finalize(None, _worker.clear, exitpriority=0)  # frees the loops before the interpreter does: ruckig insists
    _start_worker(config, tasks, demonstrator)


def _make(number: int) -> bytes:
    """Demonstration `number` of this worker's config, encoded."""
    from volar.datasets.lerobot_layout import encode_episode

    config: CollectConfig = _worker["config"]
    task: str = _worker["tasks"][number % len(_worker["tasks"])]
    makers: dict[str, DemonstrationMaker] = _worker["makers"]
    if task not in makers:
        makers[task] = _maker(config, task, _worker["demonstrator"])
    return encode_episode(makers[task].successful(config.seed, number), _worker["contract"])


def _maker(config: CollectConfig, task: str, demonstrator: "Demonstrator | None") -> "DemonstrationMaker":
    from volar.sim.demonstration import DemonstrationMaker, Disturbances, scripted
    from volar.sim.world import StepDriver, TaskWorld

    images = config.cameras, config.image_size
    world = TaskWorld(task, config.model, *images, config.randomization, world_seed=config.seed)
    expert = demonstrator.expert() if demonstrator else scripted
    return DemonstrationMaker(StepDriver(world), Disturbances(scale=config.noise), expert)
