"""FAST: few tokens a chunk, by a cosine transform and byte-pair encoding (Pertsch et al., 2025, arXiv:2501.09747).

    c = C x                                orthonormal DCT-II over time, each dimension by itself: (H, A)
    q = round(scale * c)                   integers; most of the high frequencies become 0
    q[0, 0], ..., q[0, A-1], q[1, 0], ...  the lowest frequency of all dimensions first: H * A integers
    ids = BPE(q)                           the integers as characters, merged as often as they stood together

`scale` 10 is the paper's. Rounding moves a coefficient by at most 1 / (2 scale) and rows of C have length 1, so that
an action comes back within sqrt(H) / (2 scale), in normalized units: 0.14 for H = 8, and less nearly always.

The alphabet holds every integer that a chunk of the trained length in [-1, 1] can give, |q| <= scale sqrt(H), whether
training data had it or not. A longer chunk can exceed it and is refused.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from volar.vla.action_tokenizers.action_tokenizer import DecodeError, checked_chunk, checked_first_id, checked_ids

SCALE = 10.0
VOCABULARY = 1024
_ZERO = 0xEC00  # the character of the integer 0: the middle of Unicode's private use area, which nothing normalizes
_LARGEST = 0x0C00  # as far as that area reaches to both sides


@dataclass(frozen=True)
class Fast:
    """`largest`: the alphabet is the integers -largest..largest. `bpe`: the JSON of a `tokenizers.Tokenizer`."""

    one_token_a_number: ClassVar[bool] = False
    scale: float
    largest: int
    bpe: str
    first_id: int = 0

    def __post_init__(self) -> None:
        checked_first_id(self.first_id)
        if not self.scale > 0 or not 1 <= self.largest <= _LARGEST:
            raise ValueError(f"scale {self.scale} must be above 0, and largest {self.largest} in 1..{_LARGEST}")
        if missing := [q for q in range(-self.largest, self.largest + 1) if chr(_ZERO + q) not in self._ids]:
            raise ValueError(f"the vocabulary lacks the integer {missing[0]}")

    @property
    def size(self) -> int:
        return len(self._ids)

    @classmethod
    def train(cls, chunks: NDArray[np.floating], vocabulary: int = VOCABULARY, scale: float = SCALE) -> Self:
        """Merges until there are `vocabulary` ids, or nothing left that stood together twice.

        Raises `ValueError` when the alphabet alone needs more.
        """
        from tokenizers import Tokenizer
        from tokenizers.models import BPE
        from tokenizers.trainers import BpeTrainer

        x = checked_chunk(chunks, dimensions=3)
        largest = largest_integer(scale, x.shape[1])
        if 2 * largest + 1 > vocabulary:
            raise ValueError(
                f"{x.shape[1]} steps need {2 * largest + 1} integers, more than a vocabulary of {vocabulary}"
            )
        alphabet = [chr(_ZERO + q) for q in range(-largest, largest + 1)]
        trainer = BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=2,
            initial_alphabet=alphabet,
            special_tokens=[],
            show_progress=False,
        )
        tokenizer = Tokenizer(BPE())
        tokenizer.train_from_iterator((_text(_quantized(chunk, scale, largest)) for chunk in x), trainer)
        return cls(scale, largest, tokenizer.to_str())

    def require_steps(self, steps: int) -> None:
        """The alphabet has the integers of chunks as long as those that it was trained on."""
        if (needed := largest_integer(self.scale, steps)) > self.largest:
            longest = max(h for h in range(1, steps) if largest_integer(self.scale, h) <= self.largest)
            have = f"chunks of {steps} steps need integers up to {needed} (scale {self.scale:g} x sqrt({steps}))"
            raise ValueError(f"{have}, this FAST tokenizer has them up to {self.largest}: at most {longest} steps")

    def placed(self, first_id: int) -> Self:
        return replace(self, first_id=first_id)

    def encode_chunk(self, chunk: NDArray[np.floating]) -> list[int]:
        x = checked_chunk(chunk)
        self.require_steps(len(x))
        text = _text(_quantized(x, self.scale, self.largest))
        return [self.first_id + i for i in self._tokenizer.encode(text).ids]

    def decode_chunk(self, ids: Sequence[int], shape: tuple[int, int]) -> NDArray[np.float64]:
        own = checked_ids(ids, self.first_id, self.size)
        text = "".join(self._tokens[i] for i in own)
        steps, size = shape
        if len(text) != steps * size:
            raise DecodeError(f"{len(own)} tokens give {len(text)} coefficients, not {steps} x {size} = {steps * size}")
        q = np.array([ord(character) - _ZERO for character in text]).reshape(shape)  # (H, A)
        return np.clip(dct(steps).T @ (q / self.scale), -1.0, 1.0)

    def numbers(self) -> NDArray[np.int64]:
        return np.array([len(token) for token in self._tokens])

    def to_json(self) -> dict[str, Any]:
        return {"scale": self.scale, "largest": self.largest, "first_id": self.first_id, "bpe": self.bpe}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        return cls(float(raw["scale"]), int(raw["largest"]), str(raw["bpe"]), int(raw["first_id"]))

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.bpe)

    @cached_property
    def _ids(self) -> dict[str, int]:
        found: dict[str, int] = self._tokenizer.get_vocab()
        return found

    @cached_property
    def _tokens(self) -> list[str]:
        return sorted(self._ids, key=self._ids.__getitem__)


def train_fast(chunks: NDArray[np.floating], vocabulary: int = VOCABULARY) -> Fast:
    """FAST for normalized chunks (N, H, A). Tens of thousands are enough; every one takes about 0.1 ms."""
    return Fast.train(chunks, vocabulary)


def largest_integer(scale: float, steps: int) -> int:
    """What a coefficient of a chunk (steps, A) in [-1, 1] may become."""
    return math.ceil(scale * math.sqrt(steps))


@cache
def dct(steps: int) -> NDArray[np.float64]:
    """The orthonormal DCT-II as a matrix (H, H): frequencies by times; its transpose is its inverse."""
    k, t = np.arange(steps)[:, None], np.arange(steps)[None, :]
    matrix: NDArray[np.float64] = np.sqrt(2.0 / steps) * np.cos(np.pi * k * (2 * t + 1) / (2 * steps))
    matrix[0] /= np.sqrt(2.0)
    matrix.setflags(write=False)
    return matrix


def _quantized(chunk: NDArray[np.float64], scale: float, largest: int) -> NDArray[np.int64]:
    """(H, A) in [-1, 1] -> integers (H * A,), time-major."""
    q = np.rint(scale * (dct(len(chunk)) @ chunk)).astype(np.int64)  # (H, A)
    return np.clip(q, -largest, largest).reshape(-1)


def _text(q: NDArray[np.int64]) -> str:
    return "".join(map(chr, (q + _ZERO).tolist()))
