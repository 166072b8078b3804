"""volar-convert: RLDS (Open X-Embodiment), HDF5 (robomimic, LIBERO) or LeRobotDataset v2.1/v3 to a dataset to train on.

It writes a LeRobotDataset v3 with meta/volar_contract.json: what states and actions mean, with their statistics.
`volar-convert inspect path=...` says what is in a dataset of any of these forms, and what looks wrong in it.
`volar-convert source=openvla --help`: an OpenVLA checkpoint to a policy directory.
"""

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from volar.robots.command_line import run
from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.joint_units import PERCENT, UNITS
from volar.robots.usable_cpus import usable_cpus

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from volar.datasets.episode_source import EpisodeSource, SourceEpisode
    from volar.datasets.episode_writer import EpisodeWriter
    from volar.datasets.lerobot_layout import EncodedEpisode
    from volar.datasets.rlds import Losses
    from volar.robots.contract import PolicyContract

SOURCES = ("rlds", "hdf5", "lerobot")
EXAMPLES = (
    "volar-convert source=rlds path=bridge_dataset/1.0.0 dataset=bridge output=data/bridge",
    "volar-convert source=rlds path=fractal20220817_data/0.1.0 output=data/fractal images=video image_size=224",
    "volar-convert source=hdf5 path=libero_spatial output=data/libero_spatial",
    "volar-convert source=lerobot path=data/my-arm robot=so101 unit=degrees gripper=0,35 output=data/new",
    "volar-convert source=lerobot path=old contract=widowx.json output=data/new on_error=skip resume=true",
    "volar-convert source=lerobot path=old contract=widowx.json output=data/new cameras=top:front,gripper_cam:wrist",
    "volar-convert inspect path=data/bridge",
    "volar-convert source=openvla path=openvla-7b dataset=bridge_orig output=runs/openvla-bridge",
)


@dataclass(frozen=True)
class ConvertConfig:
    """Settings of `volar-convert`."""

    source: str = field(
        metadata={"help": f"what is in path: {', '.join(SOURCES)}; openvla (a checkpoint) has settings of its own"}
    )
    path: Path = field(metadata={"help": "TFDS folder of one version, HDF5 file or folder of them, LeRobot folder"})
    output: Path = field(metadata={"help": "folder for the LeRobotDataset v3"})
    dataset: str | None = field(
        default=None, metadata={"help": "what its numbers mean: bridge, fractal, droid, ...; null: by its own name"}
    )
    contract: Path | None = field(default=None, metadata={"help": "of lerobot: the same, as a contract's JSON file"})
    robot: str | None = field(
        default=None, metadata={"help": "of lerobot: the robot whose joint positions it holds: fr3, so101, ur5e"}
    )
    unit: str | None = field(default=None, metadata={"help": f"of joint positions: {', '.join(UNITS)}"})
    gripper: tuple[float, float] | None = field(
        default=None, metadata={"help": "its values where closed, and where open as wide as the robot here goes"}
    )
    calibration: Path | None = field(default=None, metadata={"help": f"LeRobot's file of that arm, for {PERCENT}"})
    split: str = field(default="train", metadata={"help": "of rlds: train, val, test, ..."})
    episodes: int | None = field(default=None, metadata={"help": "the first N; null: all"})
    images: Literal["images", "video"] = field(
        default="images", metadata={"help": "lossless PNG, or H.264: lossy, and smaller"}
    )
    image_size: int | None = field(default=None, metadata={"help": "pixels, square, to scale to; null: as they are"})
    cameras: tuple[str, ...] = field(
        default=(),
        metadata={"help": "those to take; top:front takes top under the name front; []: all, or the contract's"},
    )
    missing_cameras: Literal["pad", "refuse"] = field(
        default="pad", metadata={"help": "an episode without one: black and listed in its info, or an error"}
    )
    instruction: str | None = field(
        default=None, metadata={"help": "for episodes that have none; null: they are left out and counted"}
    )
    on_error: Literal["raise", "skip"] = field(default="raise", metadata={"help": "at a damaged episode"})
    shard_episodes: int = field(default=10, metadata={"help": "episodes a file; what a kill can cost at most"})
    workers: int = field(default=0, metadata={"help": "threads that decode and encode; 0: one for each CPU"})
    resume: bool = field(default=False, metadata={"help": "continue what an interruption left in output"})
    overwrite: bool = field(default=False, metadata={"help": "replace what is in output"})

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise Unknown("source", self.source, (*SOURCES, *other_converters()))
        for name, least in (("episodes", 1), ("image_size", 8), ("shard_episodes", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} must be at least {least}, is {value}")
        if self.resume and self.overwrite:
            raise UsageError("resume=true and overwrite=true exclude each other")
        self._require_one_meaning()
        if self.split != "train" and self.source != "rlds":
            raise UsageError(f"split={self.split} is for source=rlds; {self.source} has no splits: leave it out")
        inside, output = self.path.resolve(), self.output.resolve()
        if output == inside or inside in output.parents or output in inside.parents:
            raise UsageError(f"output {self.output} and path {self.path} overlap; give another output")

    def _require_one_meaning(self) -> None:
        given = [name for name in ("contract", "dataset", "robot") if getattr(self, name) is not None]
        if self.source != "lerobot":
            for name in sorted({"contract", "robot"} & {*given}):
                raise UsageError(f"{name}= is for source=lerobot; what {self.source} means is said by dataset=")
        if len(given) > 1:
            raise UsageError(f"{given[0]}= and {given[1]}= both say what the numbers mean: give one")
        for name in ("unit", "gripper", "calibration") if self.robot is None else ():
            if getattr(self, name) is not None:
                raise UsageError(f"{name}= is for the joint positions of a robot: give robot= too, or leave it out")


def main() -> int:
    if sys.argv[1:2] == ["inspect"]:
        from volar.datasets.inspect_dataset import EXAMPLES as INSPECT_EXAMPLES
        from volar.datasets.inspect_dataset import InspectConfig, inspect_dataset
        from volar.datasets.inspect_dataset import __doc__ as about

        return run(
            "volar-convert inspect",
            InspectConfig,
            inspect_dataset,
            doc=about,
            examples=INSPECT_EXAMPLES,
            positional=("path",),
            argv=sys.argv[2:],
        )
    if (other := other_converter(sys.argv[1:])) is not None:
        return other(sys.argv[1:])
    return run("volar-convert", ConvertConfig, convert, doc=__doc__, examples=EXAMPLES)


def other_converter(words: Sequence[str]) -> Callable[[Sequence[str]], int] | None:
    """What takes the words where they have the `source=` of an entry point; None for the sources of this module."""
    sources = [word.removeprefix("source=") for word in words if word.startswith("source=")]
    point = other_converters().get(sources[-1]) if sources else None
    converter: Callable[[Sequence[str]], int] | None = None if point is None else point.load()
    return converter


def other_converters() -> "dict[str, EntryPoint]":
    """`source=` -> what makes something else of it than a dataset, and takes the words itself."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group="volar.converters")}


def convert(config: ConvertConfig) -> None:
    """Converts, with a progress bar. Raises `VolarError`; an interrupt leaves what is whole."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from volar.datasets.conversion_report import report
    from volar.datasets.lerobot_layout import DatasetError
    from volar.datasets.rlds import Losses

    source, contract = _opened(config)
    writer = _writer(config, source, contract)
    total = min(source.total, config.episodes or source.total)
    losses, unlabelled = Losses(), 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task(f"converting {config.path.name}", total=total, completed=writer.episodes)
        try:
            for episode, encoded in _encoded(config, source, contract, _start(writer), losses):
                if config.episodes is not None and writer.episodes >= config.episodes:
                    break
                try:
                    made = encoded.result()
                except DatasetError as error:
                    if config.on_error == "raise":
                        raise
                    losses.add(1, str(error) if episode.where in str(error) else f"{episode.where}: {error}")
                else:
                    if made is not None:
                        with made.file:
                            writer.append(made)
                    unlabelled += made is None
                bar.update(shown, completed=writer.episodes + losses.episodes + unlabelled)
        except BaseException:
            writer.flush()  # so that resume=true loses nothing
            raise
    writer.finalize()
    report(writer, losses, unlabelled, {} if config.cameras else source.absent)


def _opened(config: ConvertConfig) -> "tuple[EpisodeSource, PolicyContract]":
    """The source, and the contract of what is written. Raises `VolarError`."""
    from volar.datasets.episode_source import open_source
    from volar.datasets.robot_joints import ToldJoints
    from volar.robots.contract import PolicyContract

    told, given = None, None
    if config.robot is not None:
        told = ToldJoints(config.robot, config.unit, config.gripper, config.calibration)
    if config.contract is not None:
        given = PolicyContract.load(config.contract)
    source = open_source(
        config.source,
        config.path,
        dataset=config.dataset,
        split=config.split,
        cameras=config.cameras,
        contract=given,
        joints=told,
    )
    contract = scaled(source.contract, config.image_size)
    if given is not None:
        _require_sizes(contract, given)
    return source, contract


def scaled(contract: "PolicyContract", image_size: int | None) -> "PolicyContract":
    """The contract with square cameras of that size. What else was done to images is not its matter."""
    if image_size is None:
        return contract
    cameras = tuple(replace(camera, width=image_size, height=image_size) for camera in contract.cameras)
    return replace(contract, cameras=cameras)


def _require_sizes(contract: "PolicyContract", given: "PolicyContract") -> None:
    """Raises `DatasetError` where cameras to be written have other sizes than in the contract that was given."""
    from volar.datasets.lerobot_layout import DatasetError

    wanted = {camera.name: f"{camera.width}x{camera.height}" for camera in given.cameras}
    found = {camera.name: f"{camera.width}x{camera.height}" for camera in contract.cameras}
    wrong = [f"{n} {wanted[n]}, found {size}" for n, size in found.items() if wanted.get(n, size) != size]
    if wrong:
        fix = "image_size=N scales to N x N; or write the sizes found into it"
        raise DatasetError(f"contract= names cameras of other sizes ({'; '.join(wrong)}): {fix}")


def _writer(config: ConvertConfig, source: "EpisodeSource", contract: "PolicyContract") -> "EpisodeWriter":
    from volar.datasets.episode_writer import EpisodeWriter
    from volar.datasets.lerobot_layout import WRITER

    # More `episodes` or another `on_error` continue the same dataset; everything else makes another one.
    about: dict[str, str | int | float | bool] = {
        "made_by": "volar-convert",
        "source": config.source,
        **source.about,
        "split": config.split,
        "images": config.images,
        "image_size": config.image_size or 0,
        "missing_cameras": config.missing_cameras,
        "instruction": config.instruction or "",
    }
    if any(":" in camera for camera in config.cameras):  # the contract says the others
        about["cameras"] = ",".join(config.cameras)
    if config.resume and (config.output / WRITER).is_file():
        writer = EpisodeWriter.resume(config.output, contract, about)
        if writer.shard_episodes != config.shard_episodes:
            raise VolarError(f"{config.output} was begun with shard_episodes={writer.shard_episodes}; give the same")
        if config.episodes is not None and writer.episodes > config.episodes:
            have = f"{config.output} has {writer.episodes} episodes already"
            raise VolarError(f"{have}, more than episodes={config.episodes}; ask for at least as many")
        return writer
    return EpisodeWriter.create(
        config.output,
        contract,
        shard_episodes=config.shard_episodes,
        source=about,
        overwrite=config.overwrite,
        video=config.images == "video",
    )


def _start(writer: "EpisodeWriter") -> tuple[int, int]:
    """The place in the source behind the last episode that is durable."""
    from volar.datasets.lerobot_meta import episode_rows

    files = sorted((writer.root / "meta/episodes").glob("*/*.parquet"))
    if not files:
        return 0, 0
    file, number = json.loads(episode_rows(files[-1])[-1]["volar/info"])["place"]
    return int(file), int(number) + 1


def _encoded(
    config: ConvertConfig,
    source: "EpisodeSource",
    contract: "PolicyContract",
    start: tuple[int, int],
    losses: "Losses",
) -> Iterator[tuple["SourceEpisode", "Future[EncodedEpisode | None]"]]:
    """The episodes in order, encoded by threads (OpenCV's work needs no lock) a few ahead of the one that is taken."""
    from volar.datasets.encode_source import EncodeRules, encode_source

    workers = config.workers or usable_cpus()
    resize = config.image_size is not None
    rules = EncodeRules(config.output, resize, config.missing_cameras, config.instruction)

    waiting: deque[tuple[SourceEpisode, Future[EncodedEpisode | None]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for episode in source.episodes(start, config.on_error, losses):
                waiting.append((episode, pool.submit(encode_source, episode, contract, rules)))
                if len(waiting) > workers:
                    yield waiting.popleft()
        except Exception:  # what was read before it is whole
            yield from waiting
            raise
        yield from waiting


if __name__ == "__main__":
    raise SystemExit(main())
