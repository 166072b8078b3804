"""256 uniform bins over [-1, 1], with OpenVLA's semantics (Kim et al., 2024, `action_tokenizer.py`).

256 edges make 255 intervals, so there are 255 centres. `id = vocabulary_size - digitize(x)`, digitize in
1..256; decoding takes centre `clip(vocabulary_size - id - 1, 0, 254)`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 256
EDGES = np.linspace(-1.0, 1.0, BINS)  # (256,)
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2  # (255,)


@dataclass(frozen=True)
class UniformBins:
    """Normalized actions in [-1, 1] to token ids at the end of a vocabulary, and back."""

    vocabulary_size: int

    @property
    def first_id(self) -> int:
        """The lowest id of a bin; ids run to `vocabulary_size - 1`, falling as the action rises."""
        return self.vocabulary_size - BINS

    def encode(self, actions: NDArray[np.floating]) -> NDArray[np.int64]:
        """(..., A) in [-1, 1] -> ids (..., A); values outside are clipped. Raises `ValueError` on NaN."""
        if not np.isfinite(actions).all():
            raise ValueError("actions hold a non-finite value")
        digits = np.digitize(np.clip(actions, -1.0, 1.0), EDGES)  # 1..256
        return (self.vocabulary_size - digits).astype(np.int64)

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """ids (..., A) -> bin centres (..., A). Raises `ValueError` naming an id that is no action token."""
        outside = (ids < self.first_id) | (ids >= self.vocabulary_size)
        if outside.any():
            tokens = f"{self.first_id}..{self.vocabulary_size - 1}"
            raise ValueError(f"token {ids[outside].flat[0]} is no action token ({tokens})")
        return CENTRES[np.clip(self.vocabulary_size - ids - 1, 0, BINS - 2)]
