"""One action token after another, through the language model's own embeddings and head (RT-2, OpenVLA, pi0-FAST).

Ids are the last of the vocabulary (`Backbone.action_end`), so that an untouched language model can say them. The head
is read at those ids only: no other word can be decoded, and a softmax over a quarter of a million words is saved. A
tokenizer whose sequences vary in length has one id more, just before its own, that ends a sequence. Which ids may come
next is known where each says how many numbers of the chunk it stands for: the others are not chosen, so that a chunk is
always whole.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from volar.vla.action_tokenizers.action_tokenizer import ActionTokenizer
from volar.vla.action_tokenizers.uniform_bins import UniformBins
from volar.vla.backbone import Piece
from volar.vla.decoders.decoder import NOTHING, Decoded, Prefix, require_ids

if TYPE_CHECKING:
    from volar.vla.modeling_volar import VolarModel


class Autoregressive(nn.Module):
    """`start`: the embedding that asks for the first token; all else is the language model's."""

    numbers: Tensor | None

    def __init__(self, width: int, scale: float, tokenizer: ActionTokenizer, end: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, width) * scale)
        self.tokenizer, self.end = tokenizer.placed(end - tokenizer.size), end
        self.fixed = tokenizer.one_token_a_number  # as long as a chunk
        self.first_id = self.tokenizer.first_id - (not self.fixed)  # also that of the end, if any
        numbers = None if self.fixed else tokenizer.numbers()
        said = None if numbers is None else torch.from_numpy(np.array([0, *numbers]))  # (ids,), the end's first
        self.register_buffer("numbers", said, persistent=False)

    def encode(self, actions: Tensor) -> Tensor:
        """(B, H, A) -> ids (B, T) with the end, if there is one, then `NOTHING`."""
        chunks = actions.detach().float().cpu().numpy()
        if isinstance(self.tokenizer, UniformBins):  # all at once
            return torch.from_numpy(self.tokenizer.encode(chunks).reshape(len(chunks), -1)).to(actions.device)
        end = () if self.fixed else (self.first_id,)
        rows = [[*self.tokenizer.encode_chunk(chunk), *end] for chunk in chunks]
        tokens = np.full((len(rows), max(map(len, rows))), NOTHING)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        return torch.from_numpy(tokens).to(actions.device)

    def token_logits(self, model: "VolarModel", prefix: Prefix, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, T) -> logits (B, T, ids), each from the tokens before it alone, and the prefix's hidden states."""
        before = self._inputs(model, tokens[:, :-1])
        sequence = model.backbone.arrange([*prefix.pieces, before])
        mask = model.mask(sequence.present, prefix, causal_suffix=True)
        hidden = model.backbone.hidden_states(sequence.embeddings, mask, sequence.positions, sequence.deep)
        logits = model.backbone.logits(hidden[:, prefix.length :], self.first_id, self.end)
        return logits, hidden[:, : prefix.length]

    def loss(
        self, model: "VolarModel", prefix: Prefix, actions: Tensor, mask: Tensor, seed: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        tokens = self.encode(actions)
        logits, hidden = self.token_logits(model, prefix, tokens)
        # Each step counts alike. A sequence of varying length is of all its chunk's steps, its tokens alike.
        counted = tokens != NOTHING  # (B, T)
        if self.fixed:
            counted = mask.repeat_interleave(actions.shape[2], 1)
        steps, labels = mask.sum(1), self._local(tokens)
        weights = counted * (steps / counted.sum(1).clamp(min=1) / steps.sum().clamp(min=1))[:, None]
        losses = nn.functional.cross_entropy(logits.float().mT, labels, reduction="none")  # (B, T)
        right = logits.argmax(-1) == labels
        return (losses * weights).sum(), hidden, (right * weights).sum()

    def log_probabilities(self, model: "VolarModel", prefix: Prefix, tokens: Tensor) -> Tensor:
        require_ids(tokens, self.first_id, self.end)
        logits, _ = self.token_logits(model, prefix, tokens)
        chosen = logits.float().log_softmax(-1).gather(-1, self._local(tokens)[..., None])[..., 0]
        return chosen * (tokens != NOTHING)

    def decode(self, model: "VolarModel", prefix: Prefix, noise: Tensor | None = None) -> Decoded:
        """Raises `DecodeError` when the tokens are no chunk, as only those of a tokenizer without `numbers` can be."""
        steps, size = model.action_shape
        hidden, tokens, log_probabilities, margins = self._generate(model, prefix, steps * size)
        if isinstance(self.tokenizer, UniformBins):
            centres = torch.tensor(
                self.tokenizer.decode(np.arange(self.first_id, self.end)),
                dtype=torch.float32,
                device=tokens.device,
            )
            actions = centres[tokens - self.first_id].reshape(-1, steps, size)
        else:
            no_action = (NOTHING,) if self.fixed else (NOTHING, self.first_id)
            rows = [[i for i in row if i not in no_action] for row in tokens.tolist()]
            chunks = np.stack([self.tokenizer.decode_chunk(row, (steps, size)) for row in rows])
            actions = torch.from_numpy(chunks).float().to(tokens.device)
        return Decoded(actions, hidden, tokens, log_probabilities, margins.amin(1))

    def _generate(self, model: "VolarModel", prefix: Prefix, total: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The prefix's hidden states; then of the tokens for `total` numbers ids, log-probabilities among all ids, and
        margins to the next that may come, each (B, T)."""
        backbone, cache = model.backbone, model.backbone.new_cache()
        seen = backbone.arrange(prefix.pieces)
        mask = model.mask(seen.present, prefix, causal_suffix=True)
        hidden = backbone.hidden_states(seen.embeddings, mask, seen.positions, seen.deep, cache)
        present, place = seen.present, seen.next_position
        piece = self._inputs(model, seen.present.new_zeros(prefix.batch, 0, dtype=torch.long))
        chosen, values, margins = [], [], []
        ended = seen.present.new_zeros(prefix.batch)
        left = torch.full_like(ended, total, dtype=torch.long)  # (B,) numbers that are still to be said
        for _ in range(total + (not self.fixed)):
            step = backbone.arrange([piece], place)
            present, place = torch.cat([present, step.present], 1), step.next_position
            last = backbone.hidden_states(step.embeddings, present[:, None], step.positions, (), cache)
            scores = backbone.logits(last[:, -1], self.first_id, self.end).float()  # (B, ids)
            top, places = self._fitting(scores, left).topk(2, -1)
            best = places[:, 0]
            margins.append((top[:, 0] - top[:, 1]).masked_fill(ended, torch.inf))
            values.append(scores.log_softmax(-1).gather(-1, best[:, None])[:, 0].masked_fill(ended, 0.0))
            token = (best + self.first_id).masked_fill(ended, NOTHING)
            chosen.append(token)
            if not self.fixed:
                ended = ended | (token == self.first_id)
                if bool(ended.all()):
                    break
                if self.numbers is not None:
                    left = left - self.numbers[best].masked_fill(ended, 0)
            piece = Piece(backbone.embed_words(token[:, None]), (token != NOTHING)[:, None])
        return hidden, torch.stack(chosen, 1), torch.stack(values, 1), torch.stack(margins, 1)

    def _fitting(self, scores: Tensor, left: Tensor) -> Tensor:
        """The scores (B, ids), -inf of what does not fit where (B,) numbers are `left`: the end fits a full chunk."""
        if self.numbers is None:
            return scores
        full = (left == 0)[:, None]
        fits = (self.numbers <= left[:, None]) & ((self.numbers == 0) == full)
        return scores.masked_fill(~fits, -torch.inf)

    def _inputs(self, model: "VolarModel", tokens: Tensor) -> Piece:
        """The start, then tokens (B, T)."""
        begin = self.start.expand(len(tokens), 1, -1)
        embeddings = torch.cat([begin, model.backbone.embed_words(tokens).to(begin.dtype)], 1)
        return Piece(embeddings, nn.functional.pad(tokens != NOTHING, (1, 0), value=True))

    def _local(self, tokens: Tensor) -> Tensor:
        """Counted from 0; some number for `NOTHING`, which carries nothing."""
        return (tokens - self.first_id).clamp(min=0)
