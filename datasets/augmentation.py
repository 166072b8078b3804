"""Random crops and colours of training images, decided by seed and place alone.

A sample's randomness is a hash of (seed, its place in the stream, camera, what is drawn), so it is the same in any
batch, worker or resumed run, and another each time the stream comes back to the frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.datasets.action_chunks import Batch

GREY = np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601
# RGB <-> YIQ (FCC 1953, three digits): a rotation of I and Q turns the hue and keeps the luma.
YIQ = np.array([GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
DRAWS = ("size", "left", "top", "brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class Augmentation:
    """How far images are changed; 0 (crop: 1) leaves a property as it is. Each camera draws for itself.

    `crop`: the smallest share of width and height that is kept and scaled up again. `brightness`, `contrast`,
    `saturation`: factors from 1 - x to 1 + x. `hue`: turned by up to x of the whole circle, both ways.
    """

    crop: float = field(default=1.0, metadata={"help": "smallest share of width and height that is kept and scaled up"})
    brightness: float = field(default=0.0, metadata={"help": "factor from 1 - x to 1 + x"})
    contrast: float = field(default=0.0, metadata={"help": "the same"})
    saturation: float = field(default=0.0, metadata={"help": "the same"})
    hue: float = field(default=0.0, metadata={"help": "turned by up to x of the circle, both ways; at most 0.5"})

    def __post_init__(self) -> None:
        for item in fields(self):
            value, low, high = getattr(self, item.name), 0.0, {"crop": 1.0, "hue": 0.5}.get(item.name, 1.0)
            if not low <= value <= high or (item.name == "crop" and value == 0):
                raise ValueError(f"{item.name} {value} is not in {'(' if item.name == 'crop' else '['}{low}, {high}]")

    @property
    def changes(self) -> bool:
        return self != Augmentation()

    def apply(self, batch: Batch, places: NDArray[np.integer], seed: int) -> Batch:
        """The batch with its images changed, and the image places of its points with those of the first camera.

        `places`: (B,), each sample's place in the stream.
        """
        if not self.changes:
            return batch
        images, points = {}, batch.points
        for number, (name, frames) in enumerate(batch.images.items()):
            draws = {what: uniform(seed, places, number, k) for k, what in enumerate(DRAWS)}
            boxes = self._boxes(draws, frames.shape[1], frames.shape[2])  # (B, 4)
            images[name] = _changed(frames, boxes, *self._colours(draws))
            if number == 0:
                points = _moved(points, boxes, frames.shape[1], frames.shape[2])
        return replace(batch, images=images, points=points)

    def _boxes(self, draws: Mapping[str, NDArray[np.float64]], height: int, width: int) -> NDArray[np.int64]:
        """left, top, right, bottom [pixels] (B, 4)."""
        share = self.crop + (1.0 - self.crop) * draws["size"]
        w, h = np.maximum(1, np.rint(share * width)), np.maximum(1, np.rint(share * height))
        left, top = np.floor(draws["left"] * (width - w + 1)), np.floor(draws["top"] * (height - h + 1))
        return np.stack([left, top, left + w, top + h], axis=1).astype(np.int64)

    def _colours(self, draws: Mapping[str, NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Matrices (B, 3, 3) of saturation, hue and brightness, and the contrast's factors (B,)."""
        factor = {k: 1.0 + getattr(self, k) * (2 * draws[k] - 1) for k in ("brightness", "contrast", "saturation")}
        angle = 2 * np.pi * self.hue * (2 * draws["hue"] - 1)
        turn = np.zeros((len(angle), 3, 3))
        turn[:, 0, 0] = 1.0
        turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle) * factor["saturation"]
        turn[:, 2, 1] = np.sin(angle) * factor["saturation"]
        turn[:, 1, 2] = -turn[:, 2, 1]
        return factor["brightness"][:, None, None] * (np.linalg.inv(YIQ) @ turn @ YIQ), factor["contrast"]


def uniform(seed: int, places: NDArray[np.integer], *stream: int) -> NDArray[np.float64]:
    """[0, 1) for each place (B,), independent between seeds and streams.

    The finalizer of SplitMix64 (Steele, Lea, Flood 2014), once for each number that goes in. The seed has a round of
    its own: added to the places, it would make one seed's draws another's a few places later.
    """
    z: NDArray[Any] = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for number in (seed % 2**64, places, *(k % 2**64 for k in stream)):
            z = (z + np.asarray(number).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _changed(
    frames: NDArray[np.uint8],
    boxes: NDArray[np.int64],
    colours: NDArray[np.float64],
    contrast: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """(B, H, W, 3) cropped to its boxes, scaled back, recoloured. OpenCV's loops; Python's is over B."""
    import cv2

    height, width = frames.shape[1:3]
    recolour = not (np.allclose(colours, np.eye(3), atol=1e-9) and np.allclose(contrast, 1.0))
    changed = np.empty_like(frames)
    for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
        image: NDArray[Any] = frames[i, top:bottom, left:right]
        if (bottom - top, right - left) != (height, width):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        if recolour:
            grey = GREY @ colours[i] @ np.array(cv2.mean(image)[:3])  # contrast turns around the image's mean
            matrix = np.column_stack([contrast[i] * colours[i], np.full(3, (1 - contrast[i]) * grey)])
            image = cv2.transform(image, matrix)  # rounds and saturates
        changed[i] = image
    return changed


def _moved(points: NDArray[np.float32], boxes: NDArray[np.int64], height: int, width: int) -> NDArray[np.float32]:
    """Points (B, 3, 5) with u and v as fractions of the box instead of the whole image."""
    left, top, right, bottom = boxes.T[:, :, None]  # (B, 1)
    moved = points.copy()
    moved[..., 3] = (points[..., 3] * width - left) / (right - left)
    moved[..., 4] = (points[..., 4] * height - top) / (bottom - top)
    return moved
