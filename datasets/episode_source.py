"""What `volar-convert` reads from: RLDS, HDF5 and LeRobot folders as one stream of episodes, decoded when asked for."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from volar.datasets.rlds import Losses, OnError
from volar.robots.contract import PolicyContract
from volar.robots.errors import Unknown, UsageError

if TYPE_CHECKING:
    from volar.datasets.robot_joints import ToldJoints


@dataclass(frozen=True)
class Numbers:
    """An episode without its images: state (T, S) and actions (T, A) float32; an instruction may be empty."""

    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    instruction: str
    success: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON values, to find it in its source
    task: str = ""  # the instruction, unless the source has a name for it
    points: NDArray[np.float32] | None = None  # labels, see `Episode`


@dataclass(frozen=True)
class SourceEpisode:
    """One episode of a source, at `place` = (file, number in it); `where` names that for people.

    `numbers` and `images` (camera -> its frames, uint8 (H, W, 3); the contract's cameras that the episode has) read it
    when called, a frame when it is taken, and raise `DatasetError`.
    """

    place: tuple[int, int]
    where: str
    numbers: Callable[[], Numbers]
    images: Callable[[], dict[str, Iterable[NDArray[np.uint8]]]]


class EpisodeSource(Protocol):
    """`total`: episodes, of the files that can be read.

    `about`: what decides the episodes and stands in no setting: a `fingerprint` of the data, wherever it lies, and what
    became of its numbers. `absent`: role -> key, of the cameras that such data should have and these lack.
    """

    @property
    def contract(self) -> PolicyContract: ...

    @property
    def total(self) -> int: ...

    @property
    def absent(self) -> dict[str, str]: ...

    @property
    def about(self) -> Mapping[str, str]: ...

    def episodes(self, start: tuple[int, int], on_error: OnError, losses: Losses) -> Iterator[SourceEpisode]:
        """From the place `start` on, in order."""
        ...


def open_source(
    kind: str,
    path: Path,
    *,
    dataset: str | None = None,
    split: str = "train",
    cameras: tuple[str, ...] = (),
    contract: PolicyContract | None = None,
    joints: "ToldJoints | None" = None,
) -> EpisodeSource:
    """`kind`: rlds, hdf5, lerobot. Raises `VolarError` when it cannot be read or nothing says what its numbers mean."""
    if kind == "rlds":
        from volar.datasets.rlds_source import RldsSource

        return RldsSource.open(path, dataset, split, cameras)
    if kind == "hdf5":
        from volar.datasets.hdf5_source import Hdf5Source

        return Hdf5Source.open(path, dataset, cameras)
    from volar.datasets.lerobot_source import LeRobotSource

    return LeRobotSource.open(path, dataset, contract, cameras, joints)


def chosen_cameras(asked: Sequence[str], available: Mapping[str, str]) -> dict[str, str]:
    """The name to be written -> the source's own, of the cameras that `cameras=` asks for; all there are by default.

    `asked`: THEIRS, or THEIRS:OURS to write it under another name. `available`: the source's names -> its keys, either
    of which is taken for THEIRS. Raises `Unknown`, `UsageError` for a name that is no name or is given twice.
    """
    if not asked:
        return {name: name for name in available}
    by_key = {key: name for name, key in available.items()}
    chosen: dict[str, str] = {}
    for item in asked:
        key, colon, ours = item.partition(":")
        theirs = by_key.get(key, key)
        if theirs not in available:
            raise Unknown("camera", key, available)
        if colon and not re.fullmatch(r"[\w-]+", ours):
            raise UsageError(f"cameras={item}: after the colon comes the name to write: letters, digits, _ and -")
        if (name := ours or theirs) in chosen:
            raise UsageError(f"cameras={','.join(asked)} gives two cameras the name {name}; rename one: THEIRS:OURS")
        chosen[name] = theirs
    return chosen
