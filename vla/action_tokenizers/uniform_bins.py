"""256 uniform bins over [-1, 1], with OpenVLA's semantics (Kim et al., 2024, `action_tokenizer.py`).

256 edges make 255 intervals, so there are 255 centres. `id = vocabulary_size - digitize(x)`, digitize in
1..256; decoding takes centre `clip(vocabulary_size - id - 1, 0, 254)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from volar.vla.action_tokenizers.action_tokenizer import DecodeError, checked_chunk, checked_first_id, checked_ids

BINS = 256
EDGES = np.linspace(-1.0, 1.0, BINS)  # (256,)
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2  # (255,)


@dataclass(frozen=True)
class UniformBins:
    """Normalized actions in [-1, 1] to token ids at the end of a vocabulary, and back: one token a number.

    A vocabulary that was made 256 larger for them ends with them too: as added tokens, its last.
    """

    one_token_a_number: ClassVar[bool] = True
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

    @property
    def size(self) -> int:
        return BINS

    @classmethod
    def train(cls, chunks: NDArray[np.floating]) -> Self:
        """Nothing is learned: the bins are the same for all data."""
        checked_chunk(chunks, dimensions=3)
        return cls(BINS)

    def placed(self, first_id: int) -> Self:
        return type(self)(checked_first_id(first_id) + BINS)

    def require_steps(self, steps: int) -> None:
        """Bins are of numbers: a chunk may have any length."""

    def encode_chunk(self, chunk: NDArray[np.floating]) -> list[int]:
        """Time-major: all dimensions of the first step first, as OpenVLA's one step."""
        ids: list[int] = self.encode(checked_chunk(chunk)).reshape(-1).tolist()
        return ids

    def decode_chunk(self, ids: Sequence[int], shape: tuple[int, int]) -> NDArray[np.float64]:
        own = checked_ids(ids, self.first_id, BINS)
        steps, size = shape
        if len(own) != steps * size:
            raise DecodeError(f"{len(own)} tokens are not one for each of {steps} x {size} = {steps * size} numbers")
        return self.decode(own + self.first_id).reshape(shape)

    def numbers(self) -> NDArray[np.int64]:
        return np.ones(self.size, np.int64)

    def to_json(self) -> dict[str, Any]:
        return {"vocabulary_size": self.vocabulary_size}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        return cls(int(raw["vocabulary_size"]))
