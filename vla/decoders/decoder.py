"""What a decoder is: how a chunk of actions comes out of a prompt."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from volar.vla.backbone import Piece

if TYPE_CHECKING:
    from volar.vla.modeling_volar import VolarModel

NOTHING = -1  # id of no token


@dataclass(frozen=True)
class Prefix:
    """What a policy sees, as pieces of one sequence; the last is that of the point queries.

    `view`: first and last (exclusive) place of the first camera's tokens. `state` (B, S), normalized.
    """

    pieces: list[Piece]
    view: tuple[int, int]
    state: Tensor

    @property
    def length(self) -> int:
        """P, tokens."""
        return sum(piece.embeddings.shape[1] for piece in self.pieces)

    @property
    def batch(self) -> int:
        return self.state.shape[0]


@dataclass(frozen=True)
class Decoded:
    """Chunks and what they were decoded from.

    `actions` (B, H, A), normalized. `hidden` (B, P, D): of the prefix. `tokens`, `log_probabilities` (B, T): the last
    ids before `Backbone.action_end`, -1 and 0 after a sequence's end; None where there are no tokens. `margin` (B,): by
    how much, in logits, the best token was ahead of the next where it was closest.
    """

    actions: Tensor
    hidden: Tensor
    tokens: Tensor | None = None
    log_probabilities: Tensor | None = None
    margin: Tensor | None = None


class Decoder(Protocol):
    """One file in this folder, chosen in `make_decoder`. Actions are (B, H, A), normalized; `mask` (B, H)."""

    def loss(
        self, model: "VolarModel", prefix: Prefix, actions: Tensor, mask: Tensor, seed: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A scalar; the prefix's hidden states (B, P, D); the share of tokens that are right, each after the true ones,
        where the loss is one of tokens. Masked steps carry none of it. `seed`: of its draws."""
        ...

    def decode(self, model: "VolarModel", prefix: Prefix, noise: Tensor | None = None) -> Decoded:
        """The chunk: the most probable token each time, or what flows from `noise` (B, H, A)."""
        ...

    def log_probabilities(self, model: "VolarModel", prefix: Prefix, tokens: Tensor) -> Tensor:
        """Of given tokens (B, T), each after those before it: (B, T), 0 where the id is -1.

        Raises `ValueError` naming an id that is no action token, `VolarError` where there are no tokens.
        """
        ...


def require_ids(tokens: Tensor, first: int, end: int) -> None:
    """Raises `ValueError` naming an id that is neither `NOTHING` nor from `first` to before `end`; waits for the device
    to tell."""
    outside = tokens[(tokens != NOTHING) & ((tokens < first) | (tokens >= end))]
    if outside.numel():
        raise ValueError(f"token {int(outside[0])} is no action token ({first}..{end - 1}), nor {NOTHING} for none")
