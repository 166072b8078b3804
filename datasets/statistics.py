"""Statistics of states and actions over every frame of a dataset, never a mean of those of its episodes.

Those of a dataset come from a stream (`sketch.py`), those of an episode for LeRobot from whole columns.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from volar.datasets.sketch import FieldSketch
from volar.robots.action_space import ActionSpec
from volar.robots.contract import FieldStatistics
from volar.robots.errors import VolarError

LEROBOT_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

# A dimension that moves less than this, in its own unit, is constant: a micrometre or a microradian is
# numerical noise of a controller, and dividing by it would turn the noise into training targets.
CONSTANT_WIDTH = 1e-6


def action_mask(spec: ActionSpec) -> tuple[bool, ...]:
    """(A,) False for the gripper, which passes through the normalizer (OpenVLA's rule)."""
    return (True,) * (spec.size - 1) + (spec.gripper == "none",)


def field_statistics(
    vectors: Iterable[NDArray[np.float32]] | NDArray[np.float32], mask: tuple[bool, ...] | None = None
) -> FieldStatistics:
    """Statistics of one field from its pieces, each (n_i, D), or from one array (N, D); one pass, bounded memory.

    The result does not depend on the order of the frames nor on how they are cut into pieces. `mask`: (D,), all
    True by default. Raises `VolarError` when there is no frame, or a value is not finite (naming the dimension).
    """
    sketch: FieldSketch | None = None
    for piece in [vectors] if isinstance(vectors, np.ndarray) else vectors:
        sketch = sketch or FieldSketch(piece.shape[1])
        sketch.update(piece)
    if sketch is None:
        raise VolarError("statistics of no frames: the dataset is empty")
    return sketch.statistics(mask)


def constant_dimensions(statistics: FieldStatistics) -> tuple[int, ...]:
    """The dimensions whose q01 to q99 width is below `CONSTANT_WIDTH`."""
    width = np.subtract(statistics.q99, statistics.q01)
    return tuple(int(i) for i in np.flatnonzero(width < CONSTANT_WIDTH))


def lerobot_statistics(x: NDArray[np.generic]) -> dict[str, list[float] | list[int]]:
    """LeRobot's `stats.json` entry of one vector feature (N, D), or of a scalar one (N,).

    Unlike LeRobot's own merge over episodes, which is an envelope, these are the quantiles of all N.
    """
    values = x.astype(np.float64).reshape(len(x), -1)  # (N, D)
    quantiles = np.quantile(values, list(LEROBOT_QUANTILES.values()), axis=0)  # (5, D)
    return {
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "mean": values.mean(axis=0).tolist(),
        "std": values.std(axis=0).tolist(),
        "count": [len(values)],
        **{name: q.tolist() for name, q in zip(LEROBOT_QUANTILES, quantiles, strict=True)},
    }


def lerobot_sketch_statistics(sketch: FieldSketch) -> dict[str, list[float] | list[int]]:
    """The same of everything that a sketch has seen."""
    low, high = sketch.bounds()
    mean, std = sketch.moments()
    quantiles = sketch.quantiles(tuple(LEROBOT_QUANTILES.values()))  # (5, D)
    return {
        "min": list(low),
        "max": list(high),
        "mean": list(mean),
        "std": list(std),
        "count": [sketch.count],
        **{name: list(q) for name, q in zip(LEROBOT_QUANTILES, quantiles, strict=True)},
    }


def lerobot_index_statistics(count: int) -> dict[str, list[float] | list[int]]:
    """The same of the numbers 0 .. count - 1; a float32 would not hold the large ones."""
    return {
        "min": [0.0],
        "max": [count - 1.0],
        "mean": [(count - 1) / 2],
        "std": [((count * count - 1) / 12) ** 0.5],
        "count": [count],
        **{name: [(count - 1) * share] for name, share in LEROBOT_QUANTILES.items()},
    }


def lerobot_image_statistics(images: NDArray[np.uint8]) -> dict[str, object]:
    """LeRobot's entry of a camera: images (N, H, W, 3) -> values in [0, 1] of shape (3, 1, 1)."""
    pixels = images.reshape(-1, 3)
    # A histogram of 256 bins is exact for uint8, and much faster than sorting.
    counts = np.stack([np.bincount(pixels[:, c], minlength=256) for c in range(3)])  # (3, 256)
    levels = np.arange(256) / 255.0
    share = counts / len(pixels)
    mean = share @ levels
    std = np.sqrt(np.maximum(0.0, share @ levels**2 - mean**2))
    cumulative = np.cumsum(counts, axis=1)

    def at_least(rank: float) -> NDArray[np.float64]:
        found: NDArray[np.float64] = levels[(cumulative < rank).sum(axis=1).clip(0, 255)]
        return found

    values = {
        "min": at_least(1),
        "max": at_least(len(pixels)),
        "mean": mean,
        "std": std,
        **{name: at_least(max(1.0, q * len(pixels))) for name, q in LEROBOT_QUANTILES.items()},
    }
    return {name: v.reshape(3, 1, 1).tolist() for name, v in values.items()} | {"count": [len(images)]}
