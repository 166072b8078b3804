"""RLDS folders as a source of episodes, standardized by their entry in `oxe.py`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.datasets.episode_source import Numbers, SourceEpisode, chosen_cameras
from volar.datasets.lerobot_layout import DatasetError
from volar.datasets.oxe import load_oxe
from volar.datasets.oxe_entry import OBSERVATION, OxeDataset
from volar.datasets.rlds import Losses, OnError, RldsDataset, RldsEpisode
from volar.datasets.rlds_features import text_of
from volar.datasets.tfrecord import CorruptRecord
from volar.robots.contract import CameraSpec, PolicyContract

_METADATA = "episode_metadata/"


@dataclass(frozen=True)
class RldsSource:
    """`cameras`: name to be written -> role, of those to take."""

    dataset: RldsDataset
    entry: OxeDataset
    split: str
    cameras: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def open(path: Path, name: str | None, split: str, cameras: Sequence[str] = ()) -> "RldsSource":
        """Raises `DatasetError`, `Unknown` for a dataset, split or camera."""
        dataset = RldsDataset.open(path)
        source = RldsSource(dataset, load_oxe(name, dataset), split)
        dataset.split(split)
        if not source.available:
            wanted = ", ".join(source.absent.values())
            there = ", ".join(key for key in dataset.features if key.startswith(OBSERVATION)) or "none"
            raise DatasetError(f"{path} has none of the cameras {wanted} (its observations: {there})")
        return replace(source, cameras=chosen_cameras(cameras, source.available))

    @property
    def available(self) -> dict[str, str]:
        """Role -> feature, of the cameras that this version of the dataset has."""
        return {role: key for role, key in self._cameras.items() if key in self.dataset.features}

    @property
    def absent(self) -> dict[str, str]:
        return {role: key for role, key in self._cameras.items() if key not in self.dataset.features}

    @property
    def _cameras(self) -> dict[str, str]:
        return {role: OBSERVATION + key for role, key in self.entry.cameras.items()}

    @property
    def chosen(self) -> dict[str, str]:
        """Name to be written -> feature."""
        return {name: self.available[role] for name, role in self.cameras.items()}

    @property
    def total(self) -> int:
        return self.dataset.split(self.split).episodes

    @property
    def about(self) -> Mapping[str, str]:
        return {"fingerprint": self.dataset.fingerprint}

    @cached_property
    def contract(self) -> PolicyContract:
        """Of single actions, without statistics; a camera whose size `features.json` leaves open has its first's."""
        return PolicyContract(
            robot=self.entry.robot,
            action=self.entry.action,
            state_names=tuple(name for name, _ in self.entry.state),
            state_units=tuple(unit for _, unit in self.entry.state),
            cameras=tuple(CameraSpec(name, *self._size(key)) for name, key in self.chosen.items()),
            chunk_length=1,
            execute_steps=1,
        )

    def _size(self, key: str) -> tuple[int, int]:
        """(width, height)."""
        shape = self.dataset.features[key].shape
        if len(shape) < 2 or -1 in shape[:2]:
            first = next(self._first_images(key), None)
            if first is None:
                raise DatasetError(f"{self.dataset.root}: split {self.split} has no episode whose {key} can be read")
            shape = first.shape
        return shape[1], shape[0]

    def _first_images(self, key: str) -> Iterator[NDArray[np.uint8]]:
        """The first image of each episode that has one which can be read."""
        for episode in self.dataset.episodes(self.split, on_error="skip"):
            with suppress(DatasetError):
                yield next(episode.images(key))

    def episodes(self, start: tuple[int, int], on_error: OnError, losses: Losses) -> Iterator[SourceEpisode]:
        for e in self.dataset.episodes(self.split, on_error=on_error, losses=losses, start=start):
            where = f"{e.path.name}: record {e.record} at byte {e.offset}"
            yield SourceEpisode((e.shard, e.record), where, lambda e=e: self._numbers(e), lambda e=e: self._images(e))  # type: ignore[misc]

    def _numbers(self, episode: RldsEpisode) -> Numbers:
        try:
            state, actions = (np.asarray(x, np.float32) for x in self.entry.numbers(episode))
        except (LookupError, ValueError) as error:  # fewer columns than this dataset's entry in oxe.py reads
            raise episode.corrupt(f"its numbers are not those of {self.dataset.name}: {error}") from error
        expected = (len(self.entry.state), self.entry.action.size)
        if (state.shape[1:], actions.shape[1:]) != ((expected[0],), (expected[1],)):
            found = f"state {state.shape[1:]} and actions {actions.shape[1:]}"
            raise episode.corrupt(f"{found}, this dataset's entry in oxe.py says {expected}")
        wanted = self.entry.instruction
        try:
            text = wanted(episode) if callable(wanted) else _text(episode.find(wanted), wanted)
        except CorruptRecord:
            raise
        except DatasetError as error:
            raise episode.corrupt(str(error)) from error
        reward = episode.find("steps/reward")
        # A demonstration whose rewards are all 0 says nothing: BridgeData gives none. RT-X's Kuka says it itself.
        told = episode.find("success")
        success = bool(told) if told is not None else reward is None or not np.any(reward) or reward[-1] > 0
        return Numbers(state, actions, text.strip(), success, _facts(episode))

    def _images(self, episode: RldsEpisode) -> dict[str, Iterable[NDArray[np.uint8]]]:
        return {name: episode.images(key) for name, key in self.chosen.items() if key in episode}


def _text(value: Any, path: str) -> str:
    """The first of a step's texts that is not empty, or an episode's only one. Raises `DatasetError`."""
    if value is None:
        return ""
    values = [value] if isinstance(value, (str, bytes)) else list(np.asarray(value, dtype=object).ravel())
    for item in values:
        text = text_of(item, path) if isinstance(item, bytes) else str(item)
        if text.strip():
            return text
    return ""


def _facts(episode: RldsEpisode) -> dict[str, Any]:
    """The scalars, texts and lists of scalars of `episode_metadata`."""
    facts: dict[str, Any] = {}
    for path, feature in episode.features.items():
        if path.startswith(_METADATA) and not feature.shape and feature.kind != "image" and path in episode:
            name = path.removeprefix(_METADATA)
            if feature.dtype == "string":  # a file's name, and the like: nothing is learned from it
                facts[name] = "".join(data.decode("utf-8", errors="replace") for data in episode.example.strings(path))
            else:
                value = np.asarray(episode[path])
                facts[name] = value.item() if value.size == 1 else value.tolist()
    return facts
