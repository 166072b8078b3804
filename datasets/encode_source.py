"""One episode of a source to the columns of a dataset, a few of its frames in memory at a time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from volar.datasets.durable_file import disk_errors
from volar.datasets.episode import MISSING_CAMERAS, POINTS_SHAPE, Episode
from volar.datasets.episode_source import Numbers, SourceEpisode
from volar.datasets.lerobot_layout import DatasetError, EncodedEpisode, encode_frames
from volar.robots.contract import CameraSpec, PolicyContract

SPOOLED_BYTES = 2**23  # of an encoded episode that are held in memory


@dataclass(frozen=True)
class EncodeRules:
    """What `volar-convert` was asked for. `resize`: images to the contract's sizes. `instruction`: where there is none.

    `folder`: for the encoded images of long episodes; they are gone with their file or this process.
    """

    folder: Path
    resize: bool
    missing_cameras: Literal["pad", "refuse"]
    instruction: str | None


def encode_source(source: SourceEpisode, contract: PolicyContract, rules: EncodeRules) -> EncodedEpisode | None:
    """An episode of the contract; None for one without an instruction. Raises `DatasetError` naming it, `DiskFull`."""
    try:
        numbers = source.numbers()
        instruction = numbers.instruction or rules.instruction
        if not instruction:
            return None
        episode = _without_images(source, numbers, instruction)
        images = {c.name: SourceImages(len(episode), c, resize=rules.resize) for c in contract.cameras}
        found = source.images()
        streams = {name: images[name].of(found.get(name)) for name in images}
        with disk_errors(rules.folder):
            file = SpooledTemporaryFile(SPOOLED_BYTES, "w+b", dir=str(rules.folder))  # noqa: SIM115, the caller closes it
            encoded = encode_frames(episode, streams, contract, file)
    except (DatasetError, ValueError, LookupError) as error:
        raise DatasetError(str(error) if source.where in str(error) else f"{source.where}: {error}") from error
    missing = [name for name, stream in images.items() if stream.black]
    if missing and rules.missing_cameras == "refuse":
        raise DatasetError(f"{source.where} lacks {', '.join(missing)}; missing_cameras=pad makes them black")
    encoded.facts["info"][MISSING_CAMERAS] = missing
    return encoded


def _without_images(source: SourceEpisode, numbers: Numbers, instruction: str) -> Episode:
    nowhere = np.full((len(numbers.actions), *POINTS_SHAPE), np.nan, np.float32)
    return Episode(
        images={},
        state=numbers.state,
        actions=numbers.actions,
        points=numbers.points if numbers.points is not None else nowhere,
        instruction=instruction,
        task=numbers.task or instruction,
        success=numbers.success,
        info={**numbers.facts, "place": list(source.place), "source": source.where},
    )


class SourceImages:
    """A camera's frames on their way through; `black` is True while none of them showed anything.

    Datasets fill a camera that an episode lacks with black, of whatever size.
    """

    def __init__(self, steps: int, camera: CameraSpec, *, resize: bool) -> None:
        self.steps, self.camera, self.resize, self.black = steps, camera, resize, True

    def of(self, frames: Iterable[NDArray[np.uint8]] | None) -> Iterator[NDArray[np.uint8]]:
        """The frames, scaled where `resize` (averaged over areas when they shrink); without them, black ones."""
        import cv2

        size = (self.camera.width, self.camera.height)
        nothing = np.zeros((*size[::-1], 3), np.uint8)
        for frame in (nothing for _ in range(self.steps)) if frames is None else frames:
            if self.black and not frame.any():
                yield nothing
                continue
            self.black = False
            yield cv2.resize(frame, size, interpolation=cv2.INTER_AREA) if self.resize else frame  # type: ignore[misc]
