"""RLDS (Open X-Embodiment) as TFDS keeps it on disk, read episode by episode without TensorFlow.

    dataset = RldsDataset.open(Path("bridge_dataset/1.0.0"))
    for episode in dataset.episodes("train"):
        actions = episode["steps/action"]  # (T, 7)

A folder holds `dataset_info.json`, `features.json` and the shards of every split; a record is an episode. One episode
is in memory at a time, and of it only what is asked for is decoded.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from volar.datasets.lerobot_layout import DatasetError
from volar.datasets.rlds_features import Feature, count, decode, decode_each, load_features
from volar.datasets.tf_example import Example
from volar.datasets.tfrecord import CorruptRecord, read_records
from volar.robots.errors import Unknown

INFO, FEATURES = "dataset_info.json", "features.json"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
OnError = Literal["raise", "skip"]
_SHOWN = 5  # names of missing shards in an error


@dataclass(frozen=True)
class Split:
    """The shards of one split: paths, and the number of records in each."""

    name: str
    shards: tuple[Path, ...]
    lengths: tuple[int, ...]

    @property
    def episodes(self) -> int:
        return sum(self.lengths)


@dataclass
class Losses:
    """What `on_error=skip` left out: episodes, and the reason of each."""

    episodes: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, episodes: int, reason: str) -> None:
        self.episodes += episodes
        self.reasons.append(reason)


@dataclass(frozen=True)
class RldsEpisode:
    """One record: values by path, as `features.json` names them (`steps/observation/state`).

    `shard`, `record`: its place, both from 0; `offset`: the byte of its shard at which it begins.
    """

    path: Path
    shard: int
    record: int
    offset: int
    features: dict[str, Feature]
    example: Example

    @cached_property
    def steps(self) -> int:
        """T. Raises `CorruptRecord` when the features of a step differ in their number."""
        counts = {
            key: n
            for key, feature in self.features.items()
            if feature.of_step and (n := count(feature, self.example)) is not None
        }
        if len(set(counts.values())) > 1:
            raise self.corrupt(f"its features differ in their number of steps: {counts}")
        if not counts or not (steps := next(iter(counts.values()))):
            raise self.corrupt("it has no steps")
        return steps

    def __contains__(self, path: str) -> bool:
        return path in self.features and (path in self.example or f"{path}/ragged_flat_values" in self.example)

    def __getitem__(self, path: str) -> Any:
        """The value, see `rlds_features.decode`. Raises `Unknown` for a path that the dataset does not have,

        `CorruptRecord` for one that this record lacks or that cannot be decoded.
        """
        if path not in self.features:
            raise Unknown("feature", path, self.features)
        if path not in self:
            raise self.corrupt(f"it lacks the feature {path} (it has {', '.join(self.example.keys())})")
        try:
            return decode(self.features[path], self.example, self.steps)
        except CorruptRecord:
            raise
        except DatasetError as error:
            raise self.corrupt(str(error)) from error

    def images(self, path: str) -> Iterator[NDArray[Any]]:
        """The images of a feature of the steps, each decoded when it is taken. Raises as `self[path]` does."""
        if path not in self:
            raise self.corrupt(f"it lacks the feature {path} (it has {', '.join(self.example.keys())})")
        try:
            yield from decode_each(self.features[path], self.example, self.steps)
        except CorruptRecord:
            raise
        except DatasetError as error:
            raise self.corrupt(str(error)) from error

    def find(self, path: str) -> Any:
        """The value, or None where the dataset or this record has none."""
        if path not in self:
            return None
        return self[path]

    def corrupt(self, what: str) -> CorruptRecord:
        return CorruptRecord(self.path, self.record, self.offset, what)


@dataclass(frozen=True)
class RldsDataset:
    """A TFDS folder: its splits as `dataset_info.json` says, and its features."""

    root: Path
    name: str
    version: str
    splits: dict[str, Split]
    features: dict[str, Feature]

    @staticmethod
    def open(root: Path) -> "RldsDataset":
        """Raises `DatasetError` when the folder or one of its two descriptions cannot be read."""
        if not (root / INFO).is_file():
            inside = sorted(path.parent for path in root.glob(f"*/{INFO}")) + sorted(
                path.parent for path in root.glob(f"*/*/{INFO}")
            )
            hint = f"; did you mean {' or '.join(map(str, inside[:3]))}?" if inside else ""
            raise DatasetError(f"{root} is not a TFDS folder: it has no {INFO}{hint}")
        try:
            info = json.loads((root / INFO).read_text())
            name, version = str(info["name"]), str(info.get("version", ""))
            form = str(info.get("fileFormat") or "tfrecord")
            if form != "tfrecord":
                raise DatasetError(f"{root} holds {form} files; only tfrecord is read")
            splits = {s.name: s for s in (_split(root, name, raw) for raw in info.get("splits", []))}
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise DatasetError(f"{root / INFO} cannot be read: {type(error).__name__} {error}") from error
        return RldsDataset(root, name, version, splits, load_features(root / FEATURES))

    @property
    def fingerprint(self) -> str:
        """Of what the folder says it holds; the same wherever it lies."""
        texts = [(self.root / name).read_bytes() for name in (INFO, FEATURES)]
        return hashlib.sha256(b"\0".join(texts)).hexdigest()

    def split(self, name: str) -> Split:
        """Raises `Unknown` for a split that there is not, `DatasetError` naming the shards that are missing."""
        if name not in self.splits:
            raise Unknown("split", name, self.splits)
        split = self.splits[name]
        missing = [path.name for path in split.shards if not path.is_file()]
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            named = ", ".join(missing[:_SHOWN]) + more
            raise DatasetError(f"{self.root}: split {name} lacks {len(missing)} of {len(split.shards)} shards: {named}")
        return split

    def episodes(
        self,
        split: str = "train",
        *,
        on_error: OnError = "raise",
        losses: Losses | None = None,
        start: tuple[int, int] = (0, 0),
    ) -> Iterator[RldsEpisode]:
        """The episodes of a split in order, from `start` = (shard, record) on.

        `on_error`: a damaged record raises `CorruptRecord`, or is left out, counted in `losses`; where it says no
        longer where the next one begins, so is the rest of its shard. A shard that holds other than its number of
        records in `dataset_info.json` is an error too. Missing shards raise in either case.
        """
        shards = self.split(split)
        losses = Losses() if losses is None else losses
        for shard in range(start[0], len(shards.shards)):
            path, length = shards.shards[shard], shards.lengths[shard]
            first = start[1] if shard == start[0] else 0
            yield from self._shard_episodes(path, shard, length, first, on_error, losses)

    def _shard_episodes(
        self, path: Path, shard: int, length: int, first: int, on_error: OnError, losses: Losses
    ) -> Iterator[RldsEpisode]:
        seen = 0  # records found, good or bad

        def damaged(error: CorruptRecord) -> None:
            nonlocal seen
            if on_error == "raise":
                raise error
            lost = max(1, length - error.record) if error.rest_lost else 1
            losses.add(lost, f"{error} ({lost} episode{'s' * (lost > 1)} lost)")
            seen = error.record + lost

        for record in read_records(path, damaged, first):
            seen = record.number + 1
            try:
                example = Example(record.data)
            except DatasetError as error:
                damaged(CorruptRecord(path, record.number, record.offset, str(error)))
                continue
            yield RldsEpisode(path, shard, record.number, record.offset, self.features, example)
        if max(seen, first) != length:
            what = f"{path} holds {max(seen, first)} records, {INFO} says {length}"
            if on_error == "raise":
                raise DatasetError(what)
            losses.add(max(0, length - seen), what)


def _split(root: Path, dataset: str, raw: dict[str, Any]) -> Split:
    lengths = tuple(int(n) for n in raw.get("shardLengths", ()))
    template = raw.get("filepathTemplate") or TEMPLATE
    names = {"DATASET": dataset, "SPLIT": raw["name"], "FILEFORMAT": "tfrecord"}
    paths = []
    for shard in range(len(lengths)):
        place = f"{shard:05d}-of-{len(lengths):05d}"
        values = names | {"SHARD_X_OF_Y": place, "SHARD_INDEX": f"{shard:05d}", "NUM_SHARDS": f"{len(lengths):05d}"}
        paths.append(root / str(template).format(**values))
    return Split(str(raw["name"]), tuple(paths), lengths)
