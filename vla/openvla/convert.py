"""volar-convert source=openvla: an OpenVLA checkpoint to a policy directory, for volar-evaluate and volar-serve.

The weights are not rewritten: the folder gets hard links to them, or copies on another file system. What the actions
of a dataset mean is said by robot= (it was fine-tuned on data of that arm), by contract= (a dataset's
meta/volar_contract.json), or is known for the Open X-Embodiment datasets: bridge_orig, fractal20220817_data, ... The
gripper is 1 = open for all of them, as OpenVLA's data loader makes it.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volar.robots.command_line import run
from volar.robots.errors import UsageError, VolarError
from volar.robots.output_folder import contents

if TYPE_CHECKING:
    from volar.robots.action_space import ActionSpec
    from volar.robots.contract import FieldStatistics, PolicyContract
    from volar.vla.openvla.checkpoint import Checkpoint

EXAMPLES = (
    "volar-convert source=openvla path=openvla-7b dataset=bridge_orig output=runs/openvla-bridge",
    "volar-convert source=openvla path=openvla-fr3 robot=fr3 center_crop=0.9 output=runs/openvla-fr3",
    "volar-evaluate policy=runs/openvla-fr3 suite=tabletop episodes=10 output=runs/evaluation",
)

ROUNDING = 1e-6  # of float32, as a share of a range
# Of the datasets that openvla-7b was trained on, those of other arms whose actions `OXE` does not know.
FOREIGN = (
    "berkeley_fanuc_manipulation",
    "cmu_stretch",
    "dlr_edan_shared_control_converted_externally_to_rlds",
    "dobbe",
    "furniture_bench_dataset_converted_externally_to_rlds",
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds",
    "nyu_franka_play_dataset_converted_externally_to_rlds",
    "ucsd_kitchen_dataset_converted_externally_to_rlds",
)


@dataclass(frozen=True)
class ConvertOpenVLAConfig:
    """Settings of `volar-convert source=openvla`."""

    path: Path = field(metadata={"help": "folder of the checkpoint, as on the HuggingFace hub or as fine-tuned"})
    output: Path = field(metadata={"help": "folder for the policy"})
    source: Literal["openvla"] = field(default="openvla", metadata={"help": "what is in path"})
    dataset: str | None = field(
        default=None, metadata={"help": "key in norm_stats (OpenVLA's unnorm_key); null: the only one there is"}
    )
    robot: str | None = field(
        default=None, metadata={"help": "fr3, ur5e or so101: the actions are for it, as its data"}
    )
    contract: Path | None = field(default=None, metadata={"help": "instead: contract of the data it was fine-tuned on"})
    rate_hz: float | None = field(default=None, metadata={"help": "actions a second; null: as robot, contract or data"})
    camera: str | None = field(default=None, metadata={"help": "name of the one it looks through; null: the first"})
    center_crop: float | None = field(
        default=None,
        metadata={"help": "share of the image's area that is kept: 0.9 if trained with augmentation; null: all"},
    )
    overwrite: bool = field(default=False, metadata={"help": "replace what is in output"})

    def __post_init__(self) -> None:
        if self.robot is not None and self.contract is not None:
            raise UsageError("robot= and contract= both say what the actions mean: give one")
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise UsageError(f"rate_hz must be above 0, is {self.rate_hz}")
        if self.center_crop is not None and not 0 < self.center_crop <= 1:
            raise UsageError(f"center_crop {self.center_crop} is not in (0, 1]: a share of the image's area")
        inside, output = self.path.resolve(), self.output.resolve()
        if "image_aug" in inside.name and self.center_crop is None:
            raise UsageError(
                f"{inside.name} was trained with augmentation, as its name says: give center_crop=0.9, as OpenVLA "
                "evaluates such a checkpoint, or center_crop=1 for the whole image"
            )
        if output == inside or inside in output.parents or output in inside.parents:
            raise UsageError(f"output {self.output} and path {self.path} overlap; give another output")


def main(words: Sequence[str]) -> int:
    """The entry point `volar.converters`."""
    return run("volar-convert", ConvertOpenVLAConfig, convert, doc=__doc__, examples=EXAMPLES, argv=words)


def convert(config: ConvertOpenVLAConfig) -> None:
    """Writes the folder whole or not at all. Raises `VolarError`."""
    from volar.datasets.durable_file import OutputExists
    from volar.vla.openvla.checkpoint import CONFIG, INDEX, PREPROCESSOR, TOKENIZER, Checkpoint
    from volar.vla.openvla.policy import CONTRACT

    checkpoint = Checkpoint.open(config.path)
    contract, told = contract_of(checkpoint, config)
    checkpoint.network()  # every tensor is there and has its shape
    if config.output.exists() and not config.output.is_dir():
        raise OutputExists(f"output {config.output} is a file; give a folder")
    if contents(config.output):
        if not _converted(config.output):  # nor with overwrite=true: a wrong path must not cost a folder
            raise OutputExists(f"output {config.output} holds something else than a converted checkpoint; give another")
        if not config.overwrite:
            raise OutputExists(f"output {config.output} holds a converted checkpoint; overwrite=true replaces it")
    with _replaced(config.output) as folder:
        raw = {key: value for key, value in checkpoint.raw.items() if key not in ("norm_stats", "auto_map")}
        (folder / CONFIG).write_text(json.dumps({**raw, "type": "openvla"}, indent=1) + "\n")
        contract.save(folder / CONTRACT)
        for name in (PREPROCESSOR, TOKENIZER, *([INDEX] if (config.path / INDEX).is_file() else [])):
            if not (config.path / name).is_file():
                raise VolarError(f"{config.path} has no {name}; download all files of the checkpoint")
            shutil.copyfile(config.path / name, folder / name)
        _place(list(checkpoint.shards), folder)
    for line in told:
        print(line)
    print(f"policy: {config.output}, for {contract.robot} at {contract.action.rate_hz:g} Hz")


def contract_of(checkpoint: "Checkpoint", config: ConvertOpenVLAConfig) -> tuple["PolicyContract", list[str]]:
    """What the checkpoint's actions mean, with their statistics; and what of its bounds is to be told.

    Raises `VolarError` naming what does not fit.
    """
    from volar.robots.contract import PREPROCESSING, CameraSpec, PolicyContract
    from volar.vla.openvla.policy import CENTER_CROP, PROMPT

    key, stats = checkpoint.statistics(config.dataset)
    meaning = _meaning(key, checkpoint.norm_stats, config)
    action = meaning.action if config.rate_hz is None else replace(meaning.action, rate_hz=config.rate_hz)
    statistics = _statistics(key, stats)
    if len(statistics.q01) != action.size:
        raise VolarError(
            f"{key} has actions of {len(statistics.q01)} numbers, those of {meaning.robot} have {action.size}"
        )
    action, told = _bounds(key, action, statistics, config.robot)
    size = checkpoint.towers[0].image_size
    crop = {} if config.center_crop is None else {CENTER_CROP: f"{config.center_crop:g}"}
    contract = PolicyContract(
        robot=meaning.robot,
        action=action,
        state_names=meaning.state_names,
        state_units=meaning.state_units,
        cameras=(CameraSpec(config.camera or meaning.camera, size, size),),
        chunk_length=1,
        execute_steps=1,
        statistics={"action": statistics},
        instruction_template=PROMPT,
        preprocessing={**PREPROCESSING, **crop},
    )
    return contract, told


@dataclass(frozen=True)
class _Meaning:
    robot: str
    action: "ActionSpec"
    state_names: tuple[str, ...]
    state_units: tuple[str, ...]
    camera: str


def _meaning(key: str, keys: Iterable[str], config: ConvertOpenVLAConfig) -> _Meaning:
    """Of the actions of a dataset. OpenVLA looks at no state; that of the robot is what the body will hand over.

    `keys`: of all the checkpoint's datasets.
    """
    if config.robot is not None:
        from volar.robots.spec import load_robot

        spec = load_robot(config.robot)
        return _Meaning(spec.name, spec.action, spec.state_names, spec.state_units, spec.cameras[0])
    if config.contract is not None:
        from volar.robots.contract import PolicyContract

        of_data = PolicyContract.load(config.contract)
        if not of_data.cameras and config.camera is None:
            raise UsageError(f"{config.contract} names no camera: give camera=, the one that the policy looks through")
        names, units = of_data.state_names, of_data.state_units
        camera = of_data.cameras[0].name if of_data.cameras else ""
        return _Meaning(of_data.robot, of_data.action, names, units, camera)
    from volar.datasets.oxe import OXE

    known = {name: entry for called, entry in OXE.items() for name in (called, *entry.tfds)}
    if key in FOREIGN:
        choices = ", ".join(sorted(known.keys() & keys)) or "none"
        raise UsageError(
            f"what the actions of {key!r} mean is not known here; give contract=, the meta/volar_contract.json of that "
            f"dataset, or a dataset of this checkpoint that is known: {choices}"
        )
    if key not in known:
        raise UsageError(
            f"what the actions of {key!r} mean is not known here; give robot=fr3 (or ur5e, so101) if the checkpoint "
            "was fine-tuned on its data, or contract=meta/volar_contract.json of the dataset it was fine-tuned on"
        )
    entry = known[key]
    names, units = (tuple(column) for column in zip(*entry.state, strict=True))
    return _Meaning(entry.robot, entry.action, names, units, next(iter(entry.cameras)))


def _bounds(
    key: str, action: "ActionSpec", statistics: "FieldStatistics", robot: str | None
) -> tuple["ActionSpec", list[str]]:
    """The action with bounds that hold what it is decoded to, q01 to q99, and lines about where they did not.

    Those of `robot` are what the arm does in one step, and the gripper is 0 to 1: these stay, and actions that reach
    beyond are clipped. Raises `UsageError` where they reach further than `plausibility` lets any robot run them.
    """
    from volar.robots.plausibility import SLACK

    low, high, told = list(action.low), list(action.high), []
    for i, name in enumerate(action.names):
        q01, q99, width = statistics.q01[i], statistics.q99[i], high[i] - low[i]
        beyond = max(low[i] - q01, q99 - high[i])
        if beyond <= ROUNDING * width:
            continue
        seen = f"actions of {key!r} reach from {q01:.4g} to {q99:.4g} {action.units[i]} in {name}"
        gripper = action.gripper != "none" and i == action.size - 1
        whose = "a gripper" if gripper else robot
        if whose is None:
            low[i], high[i] = min(low[i], q01), max(high[i], q99)
            told.append(f"{seen}: the policy's bounds are widened to that, and a robot with narrower ones refuses it")
        elif beyond <= SLACK * width:
            told.append(f"{seen}, {whose} from {low[i]:.4g} to {high[i]:.4g}: clipped to that")
        else:
            fix = "1 is open and 0 closed" if gripper else "it is not of that robot's data: give another, or contract="
            raise UsageError(f"{seen}, {whose} from {low[i]:.4g} to {high[i]:.4g}: {fix}")
    return replace(action, low=tuple(low), high=tuple(high)), told


def _statistics(key: str, stats: Mapping[str, Any]) -> "FieldStatistics":
    """OpenVLA's entry of a dataset as ours; a missing mask means that all dimensions are normalized, as there."""
    from volar.robots.contract import FieldStatistics

    try:
        action = stats["action"]
        values = {name: tuple(map(float, action[name])) for name in ("q01", "q99", "mean", "std", "min", "max")}
        mask = tuple(map(bool, action.get("mask", [True] * len(values["q01"]))))
        return FieldStatistics(**values, mask=mask, count=int(stats.get("num_transitions", 0)))
    except (KeyError, TypeError, ValueError) as error:
        raise VolarError(f"norm_stats of {key!r} cannot be used: {type(error).__name__} {error}") from error


def _converted(folder: Path) -> bool:
    """Whether this verb left it; any policy, run or artifact has a contract."""
    from volar.vla.openvla.checkpoint import CONFIG
    from volar.vla.openvla.policy import CONTRACT

    try:
        raw = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and raw.get("type") == "openvla" and (folder / CONTRACT).is_file()


@contextmanager
def _replaced(output: Path) -> Iterator[Path]:
    """A folder that takes the place of `output` at the end, and vanishes on failure."""
    from volar.datasets.durable_file import disk_errors

    temporary = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    with disk_errors(output):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if output.exists():
                shutil.rmtree(output)
            temporary.rename(output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _place(files: list[Path], folder: Path) -> None:
    """Hard links where possible, copies otherwise. A hub's cache holds links to the files: the files are meant."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    total = sum(path.stat().st_size for path in files)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("weights", total=total)
        for path in files:
            try:
                os.link(path.resolve(), folder / path.name)
                bar.advance(shown, path.stat().st_size)
            except OSError:
                with path.open("rb") as source, (folder / path.name).open("wb") as target:
                    while piece := source.read(1 << 24):
                        target.write(piece)
                        bar.advance(shown, len(piece))
