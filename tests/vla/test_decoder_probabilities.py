"""What decoders say of their tokens' probabilities, decoded, taught, and computed by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from volar.robots.contract import PolicyContract
from volar.vla.backbone import Piece
from volar.vla.decoders.autoregressive import Autoregressive

from .tiny_networks import STEPS, actions, inputs, network, seen

BACKBONES = ("tiny", "smolvlm", "paligemma2", "qwen3_vl")


@pytest.fixture(scope="module")
def short(contract: PolicyContract) -> PolicyContract:
    return replace(contract, chunk_length=STEPS, execute_steps=1)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_decoding_says_the_probabilities_of_what_it_decodes(backbone: str, short: PolicyContract) -> None:
    """With a cache, in one pass over all tokens, and one token at a time without a cache: the same numbers."""
    model = network(short, "autoregressive", backbone)
    decoder = model.decoder
    assert isinstance(decoder, Autoregressive)
    with torch.inference_mode():
        prefix = seen(model)
        decoded = decoder.decode(model, prefix)
        assert decoded.tokens is not None
        assert decoded.log_probabilities is not None
        tokens = decoded.tokens
        assert tokens.shape == (2, STEPS * 7)
        assert len(tokens.unique()) > 1
        taught = decoder.log_probabilities(model, prefix, tokens)
        for i in range(tokens.shape[1]):
            logits, _ = decoder.token_logits(model, prefix, tokens[:, : i + 1])
            assert torch.equal(logits[:, -1].argmax(-1) + decoder.first_id, tokens[:, i])
    torch.testing.assert_close(taught, decoded.log_probabilities, atol=1e-5, rtol=1e-5)


def test_parallel_decodes_the_actions_of_its_tokens(short: PolicyContract) -> None:
    model = network(short, "parallel")
    with torch.inference_mode():
        decoded = model.decoder.decode(model, seen(model))
        assert decoded.tokens is not None
        assert decoded.log_probabilities is not None
        again = model.decoder.log_probabilities(model, seen(model), decoded.tokens)
        torch.testing.assert_close(again, decoded.log_probabilities)
        placed = model.tokenizer.placed(model.backbone.action_end - 256)
        back = placed.decode_chunk(decoded.tokens[0].tolist(), (STEPS, 7))
    np.testing.assert_allclose(back, decoded.actions[0].numpy(), atol=1e-6)


def of_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits (B, T, ids) of the vocabulary's last ids, rising -> log-probabilities (B, T) of tokens."""
    rows, places = torch.arange(2)[:, None], torch.arange(tokens.shape[1])
    return logits[rows, places, tokens] - logits.exp().sum(-1).log()


@pytest.mark.parametrize("backbone", ["tiny", "smolvlm"])
def test_parallel_probabilities_by_hand(backbone: str, short: PolicyContract) -> None:
    """From hidden states of `forward` and the head's weights, of any tokens: steps and dimensions keep their places."""
    model = network(short, "parallel", backbone)
    last, head = model.backbone.action_end - 1, {k: v.double() for k, v in model.action_head.state_dict().items()}
    hidden: list[Tensor] = []  # (B, L, D), the last
    bins = torch.randint(256, (2, STEPS * 7), generator=torch.Generator().manual_seed(3))

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ head[f"{name}.weight"].T + head[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return scaled * head[f"{name}.weight"] + head[f"{name}.bias"]

    with torch.inference_mode():
        hook = model.backbone.language_model.register_forward_hook(lambda *given: hidden.append(given[2][0]))
        outputs = model(*inputs(model))
        hook.remove()
        points = (outputs.points - torch.tensor(model.config.point_mean)) / torch.tensor(model.config.point_std)
        context = torch.cat([points.flatten(1), inputs(model)[2]], 1)[:, None].expand(-1, STEPS, -1)
        x = linear("inputs", torch.cat([hidden[0][:, -STEPS:], context], -1).double())
        x = x * x.sigmoid()
        y = linear("block.1", norm("block.0", x))
        x = x + linear("block.3", y * y.sigmoid())
        logits = linear("bins", norm("norm", x)).reshape(2, STEPS * 7, 256)  # a step's dimensions side by side
        said = model.decoder.log_probabilities(model, seen(model), last - bins)
    torch.testing.assert_close(said.double(), of_tokens(logits, bins), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["tiny", "smolvlm"])
def test_autoregressive_probabilities_by_hand(backbone: str, short: PolicyContract) -> None:
    """From a sequence put together here, of what is seen and all tokens but the last, and the rows of the head."""
    model = network(short, "autoregressive", backbone)
    decoder = model.decoder
    assert isinstance(decoder, Autoregressive)
    tokens = decoder.encode(actions())
    with torch.inference_mode():
        prefix = seen(model)
        given = torch.cat([decoder.start.expand(2, 1, -1), model.backbone.embed_words(tokens[:, :-1])], 1)
        pieces = [*prefix.pieces, Piece(given, torch.ones(given.shape[:2], dtype=torch.bool))]
        sequence = model.backbone.arrange(pieces)
        mask = model.mask(sequence.present, prefix, causal_suffix=True)
        hidden = model.backbone.hidden_states(sequence.embeddings, mask, sequence.positions)
        outputs = model(*inputs(model), actions=actions(), mask=torch.ones(2, STEPS, dtype=torch.bool))
        rows = model.backbone.model.lm_head.weight[-256:].double()
        bins = tokens - (model.backbone.action_end - 256)
        expected = of_tokens(hidden[:, -tokens.shape[1] :].double() @ rows.T, bins)
        said = decoder.log_probabilities(model, prefix, tokens)
    torch.testing.assert_close(said.double(), expected, atol=1e-4, rtol=1e-4)
    assert float(outputs.action_loss) == pytest.approx(-float(expected.mean()), rel=1e-4)


@pytest.mark.parametrize("decoder", ["parallel", "autoregressive"])
def test_what_is_no_action_token_has_no_probability(decoder: str, short: PolicyContract) -> None:
    """No token's is 0, and the others' are as they were; an id of a word is refused by name."""
    model = network(short, decoder)
    prefix, end = seen(model), model.backbone.action_end
    tokens = end - 1 - torch.arange(2 * STEPS * 7).reshape(2, -1)
    with torch.inference_mode():
        whole = model.decoder.log_probabilities(model, prefix, tokens)
        tokens[1, -3:] = -1
        said = model.decoder.log_probabilities(model, prefix, tokens)
        assert (whole < 0).all()
        assert (said[1, -3:] == 0).all()
        torch.testing.assert_close(said[1, :-3], whole[1, :-3])
        torch.testing.assert_close(said[0], whole[0])
        for id_ in (end - 257, end, 3):
            with pytest.raises(ValueError, match=rf"token {id_} is no action token \({end - 256}\.\.{end - 1}\)"):
                model.decoder.log_probabilities(model, prefix, tokens.index_fill(1, torch.tensor(2), id_))
