"""Physical units to the numbers a network sees, and back.

    normalized = clip((x - offset) * scale, clip_low, clip_high)
    x          = normalized * inverse_scale + offset

with constant arrays (D,), so that a Torch module or an ONNX graph repeats it with four buffers. `q01_q99` is
OpenVLA's formula, clip(2 (x - q01) / (q99 - q01 + 1e-8) - 1, -1, 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from volar.datasets.statistics import CONSTANT_WIDTH
from volar.robots.contract import FieldStatistics, PolicyContract
from volar.robots.errors import Unknown, VolarError

Mode = Literal["q01_q99", "mean_std", "min_max", "identity"]
Vector = NDArray[np.float32]

EPSILON = 1e-8  # OpenVLA's, prismatic/vla/datasets/rlds/utils/data_utils.py


# The entry of a contract's `preprocessing` that names the mode; without one it is the default.
NORMALIZATION = "normalization"
DEFAULT: Mode = "q01_q99"


class MissingStatistics(VolarError):
    """A field without statistics. Nothing passes through by accident; `Normalizer.identity` is explicit."""

    def __init__(self, wanted: str, found: Mapping[str, object]) -> None:
        super().__init__(
            f"no statistics for {wanted!r} (found: {', '.join(sorted(found)) or 'none'}); "
            "finish the dataset, or use the contract it carries"
        )


@dataclass(frozen=True)
class Normalizer:
    """Normalizes vectors whose last axis has D dimensions.

    Dimensions with `mask` False pass through unchanged. A constant dimension (narrower than
    `CONSTANT_WIDTH`: its quotient would be noise over nothing) becomes 0, as OpenVLA does where min equals
    max, and its inverse returns the constant, whatever the network said. Raises `Unknown` for a mode.
    """

    statistics: FieldStatistics
    mode: Mode = DEFAULT

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise Unknown("normalization", self.mode, get_args(Mode))

    @staticmethod
    def of_contract(contract: PolicyContract, key: str) -> "Normalizer":
        """Of `action` or `observation.state`, in the mode that the contract carries.

        Raises `MissingStatistics` naming what was found, `Unknown` for another mode. That the statistics have
        the field's size is checked by the contract itself.
        """
        return Normalizer.of(contract.statistics, key, cast(Mode, contract.preprocessing.get(NORMALIZATION, DEFAULT)))

    @staticmethod
    def of(statistics: Mapping[str, FieldStatistics], key: str, mode: Mode = DEFAULT) -> "Normalizer":
        """For one field of some statistics. Raises `MissingStatistics` naming what was found."""
        if key not in statistics:
            raise MissingStatistics(key, statistics)
        return Normalizer(statistics[key], mode)

    @staticmethod
    def identity(size: int) -> "Normalizer":
        """Leaves D = `size` dimensions as they are."""
        zero, one = (0.0,) * size, (1.0,) * size
        return Normalizer(FieldStatistics(zero, one, zero, one, zero, one, (False,) * size, 0), "identity")

    @property
    def size(self) -> int:
        """D."""
        return len(self.statistics.mask)

    @cached_property
    def offset(self) -> Vector:
        """(D,) in physical units; what a normalized 0 means."""
        low, width = self._low_and_width
        centre = np.asarray(self.statistics.mean) if self.mode == "mean_std" else low + width / 2
        return np.where(self.passes_through, 0.0, centre).astype(np.float32)

    @cached_property
    def scale(self) -> Vector:
        """(D,) normalized units a physical unit; 0 where constant."""
        width = np.where(self.passes_through | self.constant, 1.0, self._low_and_width[1])
        return np.where(self.passes_through, 1.0, np.where(self.constant, 0.0, 2.0 / width)).astype(np.float32)

    @cached_property
    def inverse_scale(self) -> Vector:
        """(D,) physical units a normalized unit; 0 where constant."""
        width = np.where(self.constant, 0.0, self._low_and_width[1])
        return np.where(self.passes_through, 1.0, width / 2.0).astype(np.float32)

    @cached_property
    def clip_low(self) -> Vector:
        """(D,) -1 where the mode is bounded, else -inf."""
        return -self.clip_high

    @cached_property
    def clip_high(self) -> Vector:
        """(D,) 1 where the mode is bounded, else inf."""
        return np.where(self.passes_through | (self.mode == "mean_std"), np.inf, 1.0).astype(np.float32)

    @cached_property
    def passes_through(self) -> NDArray[np.bool_]:
        """(D,) True where a dimension is left as it is."""
        return ~np.asarray(self.statistics.mask, dtype=bool) | (self.mode == "identity")

    @cached_property
    def constant(self) -> NDArray[np.bool_]:
        """(D,) True where the mode's width is below `CONSTANT_WIDTH`; never for a masked dimension."""
        return (self._low_and_width[1] < CONSTANT_WIDTH) & ~self.passes_through

    @property
    def _low_and_width(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        s = self.statistics
        if self.mode == "mean_std":
            return np.subtract(s.mean, s.std), 2.0 * np.asarray(s.std)
        low, high = (s.min, s.max) if self.mode == "min_max" else (s.q01, s.q99)
        return np.asarray(low, dtype=np.float64), np.subtract(high, low) + EPSILON

    def normalize(self, x: NDArray[np.floating]) -> Vector:
        """(..., D) physical -> (..., D) float32. Raises `ValueError` on another D."""
        y = (self._checked(x) - self.offset) * self.scale
        return np.asarray(np.clip(y, self.clip_low, self.clip_high), dtype=np.float32)

    def unnormalize(self, y: NDArray[np.floating]) -> Vector:
        """(..., D) -> (..., D) physical, float32; the exact inverse inside the clip range."""
        return np.asarray(self._checked(y) * self.inverse_scale + self.offset, dtype=np.float32)

    def _checked(self, x: NDArray[np.floating]) -> Vector:
        if x.shape[-1] != self.size:
            raise ValueError(f"the last axis has {x.shape[-1]} dimensions, the statistics {self.size}")
        return x.astype(np.float32, copy=False)


def with_normalization(contract: PolicyContract, mode: Mode) -> PolicyContract:
    """The contract in that mode. The default is left unsaid: contracts from before there was a choice are equal."""
    facts = {key: value for key, value in contract.preprocessing.items() if key != NORMALIZATION}
    return replace(contract, preprocessing=facts | ({} if mode == DEFAULT else {NORMALIZATION: mode}))
