"""volar-convert inspect: what is in a dataset, and what looks wrong in it.

Prints episodes, steps, rate, instructions and cameras, the range of every state and action dimension, and the
suspicious ones: constant, saturated at an extreme, with values beyond 10 interquartile ranges, a gripper whose polarity
looks other than the contract says. Images are not decoded.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import UsageError

if TYPE_CHECKING:
    from volar.datasets.episode_source import Numbers
    from volar.robots.contract import PolicyContract

EXAMPLES = (
    "volar-convert inspect data/bridge",
    "volar-convert inspect path=bridge_dataset/1.0.0 dataset=bridge episodes=100",
)
OUTLIER_IQR = 10.0
SATURATED = 0.05  # share of the values at one extreme, of a dimension that takes many values
FEW = 8  # distinct values below which a dimension is discrete, so that its extremes are often met


@dataclass(frozen=True)
class InspectConfig:
    """Settings of `volar-convert inspect`."""

    path: Path = field(metadata={"help": "LeRobotDataset, TFDS folder, HDF5 file or folder of them"})
    dataset: str | None = field(
        default=None, metadata={"help": "not of LeRobot: bridge, libero, ...; null: by its own name"}
    )
    split: str = field(default="train", metadata={"help": "of RLDS"})
    episodes: int | None = field(default=None, metadata={"help": "look at the first N; null: all"})

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 1:
            raise UsageError(f"episodes must be at least 1, is {self.episodes}")


@dataclass(frozen=True)
class Contents:
    """Of the episodes looked at: `lengths`, `instructions` (text -> episodes), `state` (N, S), `actions` (N, A)."""

    form: str
    rate_hz: float
    cameras: dict[str, str]
    names: dict[str, tuple[str, ...]]  # of `state` and `actions`
    gripper: str  # the contract's polarity
    lengths: list[int]
    instructions: Counter[str]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]


@dataclass(frozen=True)
class Finding:
    """One suspicious dimension."""

    dimension: str
    what: str


def inspect_dataset(config: InspectConfig) -> None:
    """Prints the tables. Raises `VolarError`."""
    from rich.console import Console
    from rich.table import Table

    found = contents(config)
    console = Console()
    lengths = np.array(found.lengths)
    rows = {
        "form": found.form,
        "episodes": f"{len(lengths)}",
        "steps": f"{lengths.sum()} ({lengths.min()} to {lengths.max()} an episode, median {np.median(lengths):g})",
        "rate": f"{found.rate_hz:g} Hz, {lengths.sum() / found.rate_hz / 60:.1f} minutes",
        "cameras": "\n".join(f"{name}: {about}" for name, about in found.cameras.items()) or "none",
        "instructions": f"{len(found.instructions)} different\n"
        + "\n".join(f"{count} x {text or '(none)'}" for text, count in found.instructions.most_common(8)),
    }
    about = Table(title=str(config.path), show_header=False)
    for key, value in rows.items():
        about.add_row(key, value)
    console.print(about)
    for kind, values in (("state", found.state), ("actions", found.actions)):
        table = Table(title=kind)
        table.add_column("dimension", overflow="fold")  # a name or number that is cut is another one
        for column in ("min", "q01", "median", "q99", "max", "std"):
            table.add_column(column, justify="right", no_wrap=True)
        ranks = np.quantile(values, (0.0, 0.01, 0.5, 0.99, 1.0), axis=0)  # (5, D)
        for i, name in enumerate(found.names[kind]):
            numbers = [*ranks[:, i], values[:, i].std(dtype=np.float64)]
            table.add_row(name, *(f"{x:.4g}" for x in numbers))
        console.print(table)
    suspicious = findings(found)
    if not suspicious:
        console.print("nothing suspicious")
        return
    table = Table("dimension", "suspicious", title="look at these")
    for finding in suspicious:
        table.add_row(finding.dimension, finding.what)
    console.print(table)


def findings(found: Contents) -> list[Finding]:
    """Every suspicious dimension of states and actions."""
    listed = []
    for kind, values in (("state", found.state), ("action", found.actions)):
        names = found.names["state" if kind == "state" else "actions"]
        for i, name in enumerate(names):
            two_valued = name == "gripper"  # nearly always open or closed
            listed += [Finding(f"{kind} {name}", what) for what in _suspicious(values[:, i], two_valued=two_valued)]
    guess = gripper_guess(found)
    if guess is not None:
        listed.append(Finding("action gripper", guess))
    return listed


def _suspicious(x: NDArray[np.float32], *, two_valued: bool) -> list[str]:
    from volar.datasets.statistics import CONSTANT_WIDTH

    low, q01, q25, q75, q99, high = np.quantile(x, (0.0, 0.01, 0.25, 0.75, 0.99, 1.0)).tolist()
    if high - low < CONSTANT_WIDTH:
        return [f"constant at {low:.4g}: it is normalized to 0"]
    listed = []
    if q99 - q01 < CONSTANT_WIDTH:
        listed.append(f"constant at {q01:.4g} but for less than 2 % of the steps: q01_q99 normalizes it to 0")
    if two_valued:
        return listed
    if len(np.unique(x[:100_000])) > FEW:
        for end in (low, high):
            share = float(np.mean(x == np.float32(end)))
            if share > SATURATED:
                listed.append(f"saturated: {share:.0%} of the steps are at {end:.4g}")
    width = q75 - q25
    far = (x < q25 - OUTLIER_IQR * width) | (x > q75 + OUTLIER_IQR * width)
    if width > 0 and far.any():
        count = int(far.sum())
        steps = f"{count} step{'s' * (count > 1)}"
        listed.append(f"outliers: {steps} beyond {OUTLIER_IQR:g} IQR ({low:.4g} to {high:.4g})")
    return listed


def gripper_guess(found: Contents) -> str | None:
    """What the gripper's first values say of its polarity: arms begin open, nearly always. None where they agree."""
    if found.gripper == "none" or not len(found.actions):
        return None
    x = found.actions[:, -1]
    starts = x[np.cumsum([0, *found.lengths[:-1]])]
    middle = (float(x.min()) + float(x.max())) / 2
    if x.min() == x.max():
        return None  # constant, and said to be
    high = float(np.mean(starts > middle))
    if x.min() < -0.01 or x.max() > 1.01:
        return f"is in {x.min():.3g} to {x.max():.3g}, the contract says 0 to 1"
    says = "1 is open" if found.gripper == "open_is_one" else "0 is open"
    if max(high, 1 - high) < 0.75:
        return f"polarity not clear: {high:.0%} of the episodes begin above {middle:.2g}; the contract says {says}"
    looks = "1 is open" if high > 0.5 else "0 is open"
    if looks != says:
        share = max(high, 1 - high)
        return f"looks inverted: {share:.0%} of the episodes begin as if {looks}; the contract says {says}"
    return None


def contents(config: InspectConfig) -> Contents:
    """Reads what is to be inspected. Raises `VolarError` when the path holds none of the known forms."""
    path = config.path
    if (path / "meta" / "info.json").is_file():
        _require_unset(config, "LeRobotDataset", "dataset", "split")
        return _of_lerobot(config)
    from volar.datasets.episode_source import open_source
    from volar.datasets.lerobot_layout import FRAMES, DatasetError
    from volar.datasets.rlds import Losses

    if not path.exists():
        raise DatasetError(f"there is no file or folder {path}")
    if (path / FRAMES).is_file():
        raise DatasetError(f"{path} holds generated scenes, which have no episodes: there is nothing to inspect")
    hdf5 = path.suffix in (".hdf5", ".h5") or any(path.glob("*.hdf5")) or any(path.glob("*.h5"))
    if hdf5:
        _require_unset(config, "HDF5", "split")
    source = open_source("hdf5" if hdf5 else "rlds", path, dataset=config.dataset, split=config.split)
    read: Iterator[Numbers] = (item.numbers() for item in source.episodes((0, 0), "raise", Losses()))
    total = min(source.total, config.episodes or source.total)
    if not total:
        raise DatasetError(f"{path} holds no episode")
    episodes = [next(read) for _ in _progress(range(total), "reading")]
    state = np.concatenate([e.state for e in episodes])
    actions = np.concatenate([e.actions for e in episodes])
    counts = Counter(e.instruction for e in episodes)
    sizes = {camera.name: f"{camera.width} x {camera.height}" for camera in source.contract.cameras}
    return _contents(
        "HDF5" if hdf5 else f"RLDS, split {config.split} of {source.total} episodes",
        source.contract,
        sizes,
        [len(e.actions) for e in episodes],
        counts,
        state,
        actions,
    )


def _require_unset(config: InspectConfig, form: str, *names: str) -> None:
    """Raises `UsageError` for a setting that such data do not have."""
    for name in names:
        value = getattr(config, name)
        if value not in (None, "train"):
            raise UsageError(f"{name}={value} is not for {form}, which {config.path} is: leave it out")


def _contents(
    form: str,
    contract: "PolicyContract",
    cameras: dict[str, str],
    lengths: list[int],
    instructions: Counter[str],
    state: NDArray[np.float32],
    actions: NDArray[np.float32],
) -> Contents:
    names = {"state": contract.state_names, "actions": contract.action.names}
    rate, gripper = contract.action.rate_hz, contract.action.gripper
    return Contents(form, rate, cameras, names, gripper, lengths, instructions, state, actions)


def _of_lerobot(config: InspectConfig) -> Contents:
    from volar.datasets.conversion_report import cameras_missing_in
    from volar.datasets.lerobot_format import load_info, readable, vectors
    from volar.datasets.lerobot_layout import CONTRACT, INFO, DatasetError, feature_names, parquet_file
    from volar.robots.contract import PolicyContract

    info = load_info(config.path)
    rows = list(info.episodes[: config.episodes])
    if not rows:
        raise DatasetError(f"{config.path} holds no episode")
    frames = sum(int(row["length"]) for row in rows)
    parts: dict[str, list[NDArray[Any]]] = {"observation.state": [], "action": [], "task_index": []}
    for path in _progress(list(dict.fromkeys(info.data_file(row) for row in rows)), "reading"):
        table = readable(path, lambda p: parquet_file(p).read(list(parts)))
        for key, pieces in parts.items():
            pieces.append(vectors(table, key))
    state, actions, tasks = (np.concatenate(pieces)[:frames] for pieces in parts.values())
    starts = np.cumsum([0, *(int(row["length"]) for row in rows[:-1])])
    instructions = Counter(info.tasks[i] for i in tasks[starts, 0].tolist())
    black = cameras_missing_in(rows)
    cameras = {
        name: f"{width} x {height}, {info.features[info.camera_keys[name]]['dtype']}"
        + (f", missing in {black[name]} episodes" if name in black else "")
        for name, (height, width) in info.cameras.items()
    }
    lengths = [int(row["length"]) for row in rows]
    version = json.loads((info.root / INFO).read_text())["codebase_version"]
    if (config.path / CONTRACT).is_file():
        contract = PolicyContract.load(config.path / CONTRACT)
        form = f"LeRobotDataset {version}, robot {contract.robot}"
        return _contents(form, contract, cameras, lengths, instructions, state, actions)
    features = {"state": info.features["observation.state"], "actions": info.features["action"]}
    names = {kind: feature_names(feature) for kind, feature in features.items()}
    form = f"LeRobotDataset {version} without a contract"
    return Contents(form, info.fps, cameras, names, "none", lengths, instructions, state, actions)


def _progress[T](items: "list[T] | range", what: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(items, description=what)
