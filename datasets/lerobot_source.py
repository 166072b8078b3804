"""LeRobotDataset folders, v2.1 and v3, as a source of episodes: for those of others, which carry no contract."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from volar.datasets.episode import Episode
from volar.datasets.episode_source import Numbers, SourceEpisode, absent
from volar.datasets.lerobot_format import DatasetInfo, load_info, read_file
from volar.datasets.lerobot_layout import CONTRACT, INFO, DatasetError
from volar.datasets.oxe import OXE, load_oxe
from volar.datasets.rlds import Losses, OnError
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.errors import Unknown


@dataclass(frozen=True)
class LeRobotSource:
    info: DatasetInfo
    contract: PolicyContract

    @staticmethod
    def open(path: Path, name: str | None, contract: Path | None, cameras: tuple[str, ...] = ()) -> "LeRobotSource":
        """What states and actions mean is said by the folder's own contract, `contract`, or an entry of `OXE`.

        Raises `DatasetError` where nothing says it or the sizes differ, `Unknown` for a camera.
        """
        info = load_info(path)
        for camera in cameras:
            if camera not in info.cameras:
                raise Unknown("camera", camera, info.cameras)
        names = cameras or tuple(info.cameras)
        sizes = tuple(CameraSpec(n, info.cameras[n][1], info.cameras[n][0]) for n in names)
        meant = _meaning(path, name, contract)
        found = (info.size("observation.state"), info.size("action"))
        wanted = (len(meant.state_names), meant.action.size)
        if found != wanted:
            raise DatasetError(f"{path} has {found} states and actions, its contract {wanted}")
        if meant.action.rate_hz != info.fps:
            raise DatasetError(f"{path} has {info.fps} frames a second, its contract {meant.action.rate_hz:g} Hz")
        return LeRobotSource(info, replace(meant, cameras=sizes, statistics={}))

    @property
    def total(self) -> int:
        return len(self.info.episodes)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256((self.info.root / INFO).read_bytes()).hexdigest()

    def episodes(self, start: tuple[int, int], on_error: OnError, losses: Losses) -> Iterator[SourceEpisode]:
        for number, (path, rows) in enumerate(self.info.by_file()):
            first = start[1] if number == start[0] else 0
            if number < start[0] or first >= len(rows):
                continue
            try:
                for k, episode in enumerate(read_file(self.info, path, rows[first:]), first):
                    where = f"{path.name}: episode {rows[k]['episode_index']}"
                    first = k + 1
                    yield SourceEpisode(
                        (number, k),
                        where,
                        lambda e=episode: _numbers(e),  # type: ignore[misc]
                        lambda e=episode: self._images(e),  # type: ignore[misc]
                    )
            except DatasetError as error:
                if on_error == "raise":
                    raise
                losses.add(len(rows) - first, f"{error} ({len(rows) - first} episodes lost)")

    def _images(self, episode: Episode) -> dict[str, NDArray[np.uint8]]:
        found = {camera.name: episode.images[camera.name] for camera in self.contract.cameras}
        return {name: images for name, images in found.items() if not absent(images)}


def _meaning(path: Path, name: str | None, contract: Path | None) -> PolicyContract:
    if contract is not None:
        return PolicyContract.load(contract)
    if name is not None:
        entry = load_oxe(name)
        return PolicyContract(
            robot=entry.robot,
            action=entry.action,
            state_names=tuple(item for item, _ in entry.state),
            state_units=tuple(unit for _, unit in entry.state),
            cameras=(),
            chunk_length=1,
            execute_steps=1,
        )
    if (path / CONTRACT).is_file():
        return PolicyContract.load(path / CONTRACT)
    raise DatasetError(
        f"{path} has no {CONTRACT}, so that nothing says what its numbers mean: give contract=FILE, or dataset=NAME "
        f"where it is a conversion of one of {', '.join(sorted(OXE))}"
    )


def _numbers(episode: Episode) -> Numbers:
    facts = {key: value for key, value in episode.info.items() if key != "missing_cameras"}
    return Numbers(
        episode.state, episode.actions, episode.instruction, episode.success, facts, episode.task, episode.points
    )
