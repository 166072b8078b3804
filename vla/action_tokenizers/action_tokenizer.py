"""What an action tokenizer is: a chunk of normalized actions to token ids, and back."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import VolarError


class DecodeError(VolarError):
    """Token ids that are no chunk of actions; says why.

    A policy lets it pass: `predict` raises, so that the arm holds with this reason, the control loop asks again, and
    an evaluation counts the episode as broken. Never zeros: zeros are an action.
    """


class ActionTokenizer(Protocol):
    """One file in this folder and one line in `TOKENIZERS`.

    Chunks are (H, A) in [-1, 1]; values outside are clipped. Ids are the `size` consecutive ones from `first_id` on,
    wherever a model has room for them: at the end of its words, `placed(words - size)`, as in RT-2 and OpenVLA, or in
    rows added behind its vocabulary, `placed(vocabulary_size)`.

    `one_token_a_number`: whether a chunk is always H * A ids, one for each number, those of the first step first. Where
    it is not, sequences vary in length, and a decoder needs one id more, that ends them.
    """

    one_token_a_number: ClassVar[bool]

    @property
    def first_id(self) -> int:
        """The lowest id."""
        ...

    @property
    def size(self) -> int:
        """How many ids there are."""
        ...

    @classmethod
    def train(cls, chunks: NDArray[np.floating]) -> Self:
        """A tokenizer for chunks like these, (N, H, A); its ids begin at 0. Raises `ValueError` on a non-finite one."""
        ...

    def placed(self, first_id: int) -> Self:
        """The same tokenizer with its ids from `first_id` on. Raises `ValueError` on a negative one."""
        ...

    def require_steps(self, steps: int) -> None:
        """Raises `ValueError` for chunks of more `steps` than it has ids for, saying how many it has."""
        ...

    def encode_chunk(self, chunk: NDArray[np.floating]) -> list[int]:
        """(H, A) -> T ids, 1 <= T <= H * A. Raises `ValueError` on a non-finite value or another shape than (H, A)."""
        ...

    def decode_chunk(self, ids: Sequence[int], shape: tuple[int, int]) -> NDArray[np.float64]:
        """T ids -> a chunk (H, A) in [-1, 1], of that shape. Raises `DecodeError` when the ids are no such chunk."""
        ...

    def numbers(self) -> NDArray[np.int64] | None:
        """How many of a chunk's H * A numbers each of the `size` ids says, or None where an id does not say how many.

        A decoder then chooses among the ids that still fit, and ends when the chunk is full, so that what it decodes
        is always a chunk. Some id must say one number.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """All that `from_json` needs, as JSON has it."""
        ...

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`. Raises `KeyError`, `TypeError` or `ValueError` when it cannot be one."""
        ...


def ids_needed(tokenizer: ActionTokenizer) -> int:
    """How many ids of a vocabulary a decoder takes: the tokenizer's, and one that ends a sequence that may end."""
    return tokenizer.size + (not tokenizer.one_token_a_number)


def checked_chunk(chunk: NDArray[np.floating], dimensions: int = 2) -> NDArray[np.float64]:
    """The chunk (H, A), or with 3 `dimensions` the chunks (N, H, A), in [-1, 1]. Raises `ValueError` saying why not."""
    if chunk.ndim != dimensions or 0 in chunk.shape:
        raise ValueError(f"a chunk must be {'(N, H, A)' if dimensions == 3 else '(H, A)'}, is {chunk.shape}")
    if not np.isfinite(chunk).all():
        raise ValueError("actions hold a non-finite value")
    return np.clip(chunk.astype(np.float64), -1.0, 1.0)


def checked_ids(ids: Sequence[int], first_id: int, size: int) -> NDArray[np.int64]:
    """Ids counted from 0. Raises `DecodeError` when there are none, or one is no action token."""
    if not len(ids):
        raise DecodeError("no action tokens at all: the sequence is empty")
    own = np.asarray(ids, dtype=np.int64) - first_id
    outside = np.flatnonzero((own < 0) | (own >= size))
    if len(outside):
        where = f"token {own[outside[0]] + first_id} at place {outside[0]}"
        raise DecodeError(f"{where} is no action token ({first_id}..{first_id + size - 1})")
    return own


def checked_first_id(first_id: int) -> int:
    if first_id < 0:
        raise ValueError(f"first_id must not be negative, is {first_id}: the vocabulary is smaller than the tokenizer")
    return first_id
