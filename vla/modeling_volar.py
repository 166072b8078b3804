"""The policy network: one token sequence of words, images and proprioception; points and actions out.

    tiny:       [<s> lift the red block <pad>..] [front image] [wrist image] [proprio] [point queries] [actions]
    pretrained: [head] [front image] [wrist image] [lift the red block, in its template] [proprio] [points] [actions]

What stands for actions is the decoder's: queries for all steps at once, tokens one after another, or noise that flows
(`vla/decoders/`). The prefix attends as its language model was pretrained to: in both directions (tiny, PaliGemma) or
causally; padding is masked. Hidden states of the point queries are matched with the first camera's tokens to say where
the named objects and the robot's own hand are; the objects' positions, beside proprioception, enter the parallel
decoder's action head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.vla.action_tokenizers.action_tokenizer import ActionTokenizer, ids_needed
from volar.vla.action_tokenizers.uniform_bins import BINS, EDGES, UniformBins
from volar.vla.adapters import adapt
from volar.vla.attention import attention_mask
from volar.vla.backbone import Backbone, BackboneConfig, Piece, VlmConfig, build_backbone
from volar.vla.configuration_volar import VolarConfig
from volar.vla.decoders import make_decoder
from volar.vla.decoders.decoder import Decoded, Decoder, Prefix
from volar.vla.heads import POINTS, ActionHead, PointHead
from volar.vla.instruction_tokenizer import WORDS
from volar.vla.qwen_vision import Features

VOCABULARY = WORDS + BINS  # of tiny with a parallel decoder
Seen = Tensor | list[Features]  # pixels, or what `VolarModel.see` made of them
MARKERS = ("head", "image_start", "image_end")  # of a pretrained model's prompt: ids in its configuration


@dataclass(frozen=True)
class Pointing:
    """Where the policy points, of B observations.

    `patch_logits` (B, Q, P): which token of the first camera each point lies in. `points_uv` (B, Q, 2): place in that
    image, fractions. Q: target, destination, and with `finds_hand` the hand. `points` (B, 2, 3): position of the
    first two in the base frame [m].
    """

    patch_logits: Tensor
    points_uv: Tensor
    points: Tensor


@dataclass(frozen=True)
class Outputs:
    """What the network with a parallel decoder says about a batch of B observations.

    `action_logits` (B, H, A, 256): over bins in rising order. The others as in `Pointing` and `Imitated`.
    """

    action_logits: Tensor
    patch_logits: Tensor
    points_uv: Tensor
    points: Tensor
    answer_logits: Tensor | None = None


@dataclass(frozen=True)
class Imitated(Pointing):
    """What a network is to learn from a batch: `action_loss`, a scalar. `answer_logits` (B, ids): over the vocabulary,
    what it would say next after the prompt; None unless asked for. `token_accuracy`: a scalar, see `Decoder.loss`."""

    action_loss: Tensor
    answer_logits: Tensor | None = None
    token_accuracy: Tensor | None = None


@dataclass(frozen=True)
class Trunk:
    """What the action head sees of B observations, beside the state, and what pointing says.

    `queries` (B, H, D): hidden states of the action queries. `scaled_points` (B, 2, 3): in units of the config's
    `point_std`, from its `point_mean`. `patch_logits`, `points_uv` as in `Outputs`. `last` (B, D): hidden state of the
    prompt's last token, which an answer in words follows.
    """

    queries: Tensor
    patch_logits: Tensor
    points_uv: Tensor
    scaled_points: Tensor
    last: Tensor


class VolarModel(nn.Module):
    """The network of `VolarConfig` for a contract's cameras, state and actions.

    `backbone`: one with weights, instead of a random one. `tokenizer`: of actions, where it is not `bins`.
    """

    def __init__(
        self,
        config: VolarConfig,
        contract: PolicyContract,
        backbone: Backbone | None = None,
        tokenizer: ActionTokenizer | None = None,
    ) -> None:
        super().__init__()
        if len(config.camera_tokens) != len(contract.cameras):
            raise ValueError(f"camera_tokens {config.camera_tokens} for {len(contract.cameras)} cameras")
        self.config, self.tokenizer = config, tokenizer or UniformBins(BINS)
        if self.tokenizer.size != config.action_tokens:
            raise VolarError(f"the action tokenizer has {self.tokenizer.size} ids, the network {config.action_tokens}")
        self.action_shape = (contract.chunk_length, contract.action.size)  # (H, A)
        self.backbone = backbone or build_backbone(config.backbone, WORDS + ids_needed(self.tokenizer))
        width, own = self.backbone.width, isinstance(config.backbone, BackboneConfig)
        scale = 0.02 if own else self.backbone.word_scale()
        # Nothing is added to images that a pretrained model knows, until training finds what to.
        self.camera_embedding = nn.Parameter(torch.randn(len(contract.cameras), 1, width) * (0.02 if own else 0.0))
        if config.state_as == "projected":
            self.state_projection = nn.Sequential(
                nn.Linear(len(contract.state_names), width), nn.SiLU(), nn.Linear(width, width)
            )
        self.point_queries = nn.Parameter(torch.randn(POINTS + config.finds_hand, width) * scale)
        if config.decoder == "parallel":
            self.action_queries = nn.Parameter(torch.randn(contract.chunk_length, width) * scale)
        self.point_head = PointHead(config, width, contract)
        if config.decoder == "parallel":
            self.action_head = ActionHead(config, width, contract)
        self.decoder: Decoder = make_decoder(config, self.backbone, contract.action.size, self.tokenizer)
        adapt(self.backbone, config)

    @property
    def state_end(self) -> int:
        """The id after the last of the state's bins: those of actions where they are bins too, else the next before."""
        end = self.backbone.action_end
        shared = isinstance(self.tokenizer, UniformBins) or self.backbone.words is None  # a policy from before
        return end if shared else end - ids_needed(self.tokenizer)

    def forward(
        self,
        pixels: Tensor,
        input_ids: Tensor,
        state: Tensor,
        camera_mask: Tensor | None = None,
        actions: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int = 0,
        answers: bool = False,
    ) -> Outputs | Imitated:
        """pixels (B, C, 3, h, w) in [-1, 1], input_ids (B, T), normalized state (B, S) -> `Outputs`.

        `camera_mask`: bool (B, C), False where nothing may attend to a camera's tokens; None where all are there.
        Another decoder than parallel gives `Imitated`, of normalized `actions` (B, H, A) where `mask` (B, H) is True.
        `answers`: say also what follows the prompt in words.
        """
        if self.config.decoder == "parallel":
            seen = self.trunk(pixels, input_ids, state, camera_mask)
            with torch.autocast(seen.queries.device.type, enabled=False):
                logits = self.action_head(seen.queries, seen.scaled_points, state.float())
            metres = self.point_head.to_metres(seen.scaled_points)
            return Outputs(logits, seen.patch_logits, seen.points_uv, metres, self.say(seen.last) if answers else None)
        assert actions is not None
        assert mask is not None
        prefix = self.prefix(pixels, input_ids, state, camera_mask)
        loss, hidden, accuracy = self.decoder.loss(self, prefix, actions, mask, seed)
        logits, uv, points = self.point(prefix, hidden)
        said = self.say(self.last_of_prompt(prefix, hidden)) if answers else None
        return Imitated(logits, uv, self.point_head.to_metres(points), loss, said, accuracy)

    def decode(
        self,
        pixels: Tensor,
        input_ids: Tensor,
        state: Tensor,
        noise: Tensor | None = None,
        camera_mask: Tensor | None = None,
    ) -> tuple[Decoded, Pointing]:
        """A chunk, and where the policy points; inputs as for `forward`."""
        prefix = self.prefix(pixels, input_ids, state, camera_mask)
        decoded = self.decoder.decode(self, prefix, noise)
        logits, uv, points = self.point(prefix, decoded.hidden)
        return decoded, Pointing(logits, uv, self.point_head.to_metres(points))

    def trunk(self, seen: Seen, input_ids: Tensor, state: Tensor, camera_mask: Tensor | None = None) -> Trunk:
        """Everything before the parallel decoder's action head, inputs as for `prefix`."""
        prefix = self.prefix(seen, input_ids, state, camera_mask)
        hidden = self.run_queries(prefix)
        patch_logits, uv, points = self.point(prefix, hidden)
        last = self.last_of_prompt(prefix, hidden)
        return Trunk(hidden[:, prefix.length :].float(), patch_logits, uv, points, last)

    def say(self, last: Tensor) -> Tensor:
        """Hidden states (B, D) of prompts' last tokens -> float32 scores (B, ids) of the word after them."""
        with torch.autocast(last.device.type, enabled=False):
            return self.backbone.logits(last.to(self.backbone.dtype), 0).float()

    def prefix(self, seen: Seen, input_ids: Tensor, state: Tensor, camera_mask: Tensor | None = None) -> Prefix:
        """What precedes the actions; inputs as for `forward`, or in place of pixels what `see` made of them."""
        backbone, batch = self.backbone, len(state)
        views = self.see(seen) if isinstance(seen, Tensor) else seen
        if camera_mask is None:
            camera_mask = torch.ones(batch, len(views), dtype=torch.bool, device=state.device)
        texts, markers = self._embed_texts(input_ids)
        words = [Piece(texts, backbone.present(input_ids))]  # (B, T, D)
        first = backbone.family.words_first
        pieces = words if first else _marker(markers["head"], torch.ones_like(camera_mask[:, 0]))
        view = (0, 0)
        for i, features in enumerate(views):
            pieces = pieces + _marker(markers["image_start"], camera_mask[:, i])
            tokens = features[0].shape[1]
            if i == 0:
                before = sum(piece.embeddings.shape[1] for piece in pieces)
                view = (before, before + tokens)
            there = camera_mask[:, i, None].expand(-1, tokens)
            embedded = features[0] + self.camera_embedding[i]
            pieces.append(Piece(embedded, there, self.config.camera_tokens[i], tuple(features[1:])))
            pieces += _marker(markers["image_end"], camera_mask[:, i])
        queries = self.point_queries.expand(batch, -1, -1)
        pieces += [*([] if first else words), *(_all_there(x) for x in (self._proprioception(state), queries))]
        return Prefix(pieces, view, state)

    def mask(self, present: Tensor, prefix: Prefix, causal_suffix: bool) -> Tensor:
        """bool (B, L) -> (B, L, L): who attends to whom, as the language model was pretrained to."""
        family = self.backbone.family
        return attention_mask(
            present,
            prefix.length,
            causal=not family.bidirectional,
            causal_suffix=causal_suffix,
            prefix_sees_suffix=family.words_first and not causal_suffix,
        )

    def run_queries(self, prefix: Prefix) -> Tensor:
        """Hidden states (B, P + H, D) of prefix and action queries."""
        queries = _all_there(self.action_queries.expand(len(prefix.state), -1, -1))
        sequence = self.backbone.arrange([*prefix.pieces, queries])
        mask = self.mask(sequence.present, prefix, causal_suffix=False)
        return self.backbone.hidden_states(sequence.embeddings, mask, sequence.positions, sequence.deep)

    def point(self, prefix: Prefix, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the prefix's hidden states (B, P.., D): patch logits, uv and scaled points, as in `Trunk`."""
        with torch.autocast(hidden.device.type, enabled=False):  # heads decide millimetres: full precision
            queries = hidden[:, prefix.length - len(self.point_queries) : prefix.length].float()
            seen, state = hidden[:, slice(*prefix.view)].float(), prefix.state.float()
            found: tuple[Tensor, Tensor, Tensor] = self.point_head(queries, seen, state)
        return found

    def last_of_prompt(self, prefix: Prefix, hidden: Tensor) -> Tensor:
        """Of the prefix's hidden states (B, P.., D), that of the last token before the point queries: (B, D)."""
        return hidden[:, prefix.length - len(self.point_queries) - 1]

    def see(self, pixels: Tensor) -> list[Features]:
        """Of each camera, features (B, tokens, D) as `Backbone.embed_images` has them, pooled to the camera's side."""
        batch, cameras = pixels.shape[:2]
        features = [
            found.reshape(batch, cameras, *found.shape[1:])
            for found in self.backbone.embed_images(pixels.flatten(0, 1))
        ]
        return [
            [pool_tokens(found[:, i], side) for found in features] for i, side in enumerate(self.config.camera_tokens)
        ]

    def _embed_texts(self, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Words (B, T) -> (B, T, D); and what a pretrained model has at other places of a prompt, each (B, n, D).

        Looked up at once: every look-up would leave a gradient as large as the vocabulary.
        """
        known = {name: getattr(self.config.backbone, name, ()) for name in MARKERS}
        ids = [id_ for marker in known.values() for id_ in marker]
        if not ids:
            return self.backbone.embed_words(input_ids), dict.fromkeys(MARKERS, input_ids[:, :0, None])
        around = torch.tensor([ids], device=input_ids.device).expand(len(input_ids), -1)
        embedded = self.backbone.embed_words(torch.cat([around, input_ids], 1))
        *markers, words = torch.split(embedded, [*map(len, known.values()), input_ids.shape[1]], 1)
        return words, dict(zip(MARKERS, markers, strict=True))

    def _proprioception(self, state: Tensor) -> Tensor:
        """Normalized state (B, S) -> (B, 1, D), or (B, S, D) with a token for each number: its bin in [-1, 1]."""
        if self.config.state_as == "projected":
            projected: Tensor = self.state_projection(state)[:, None]
            return projected
        edges = torch.tensor(EDGES, dtype=state.dtype, device=state.device)
        bins = torch.bucketize(state.clamp(-1, 1).contiguous(), edges, right=True)  # 1..256
        return self.backbone.embed_words(self.state_end - bins)


def _marker(embedded: Tensor, there: Tensor) -> list[Piece]:
    """Embedded (B, n, D), if any; there: bool (B,)."""
    n = embedded.shape[1]
    return [Piece(embedded, there[:, None].expand(-1, n))] if n else []


def _all_there(embeddings: Tensor) -> Piece:
    return Piece(embeddings, torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device))


def pool_tokens(tokens: Tensor, side: int) -> Tensor:
    """(B, g*g, D) -> (B, side*side, D): average over square neighbourhoods."""
    grid = int(tokens.shape[1] ** 0.5)
    if grid == side:
        return tokens
    square = tokens.mT.reshape(tokens.shape[0], tokens.shape[2], grid, grid)
    return nn.functional.avg_pool2d(square, grid // side).flatten(2).mT


def pixels_from_images(images: Mapping[str, Tensor], backbone: BackboneConfig | VlmConfig) -> Tensor:
    """{camera: uint8 (B, H, W, 3)} -> (B, C, 3, S, S) in [-1, 1], resized where sizes differ."""
    size, views = backbone.image_size, []
    for image in images.values():
        view = image.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        if view.shape[-2:] != (size, size):
            if backbone.resize == "bilinear":
                view = nn.functional.interpolate(view, (size, size), mode="bilinear", align_corners=False)
            else:
                view = _antialiased(view, size)
        views.append(view)
    return torch.stack(views, 1)


def _antialiased(view: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size), as `interpolate(antialias=True)` does, in products that a graph has, too."""
    with torch.autocast(view.device.type, enabled=False):
        rows, columns = (torch.from_numpy(resizing(n, size)).to(view.device) for n in view.shape[-2:])
        # The matrices are on the left: on the right, quantization would take them for weights and round them.
        return (columns @ (rows @ view).mT).mT


@cache
def resizing(n: int, size: int) -> NDArray[np.float32]:
    """(size, n): what each of `size` pixels in a row takes of `n`, by a triangle that spans a pixel of the coarser."""
    scale = n / size
    centres = (np.arange(size)[:, None] + 0.5) * scale
    weights = np.maximum(0.0, 1 - np.abs(np.arange(n) + 0.5 - centres) / max(1.0, scale))
    matrix: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return matrix
