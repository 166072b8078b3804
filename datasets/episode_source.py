"""What `volar-convert` reads from: RLDS, HDF5 and LeRobot folders as one stream of episodes, decoded when asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from volar.datasets.rlds import Losses, OnError
from volar.robots.contract import PolicyContract


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
    """`total`: episodes, of the files that can be read. `fingerprint`: of the data, wherever it lies.

    `absent`: role -> key, of the cameras that such data should have and these lack.
    """

    @property
    def contract(self) -> PolicyContract: ...

    @property
    def total(self) -> int: ...

    @property
    def absent(self) -> dict[str, str]: ...

    @property
    def fingerprint(self) -> str: ...

    def episodes(self, start: tuple[int, int], on_error: OnError, losses: Losses) -> Iterator[SourceEpisode]:
        """From the place `start` on, in order."""
        ...
