"""Which ids of a vocabulary say actions and the state: words that a pretrained model knows, and nothing else's."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from volar.robots.contract import PolicyContract
from volar.robots.errors import UsageError
from volar.robots.interface import Observation
from volar.vla.action_tokenizers.fast import Fast
from volar.vla.action_tokenizers.uniform_bins import BINS
from volar.vla.checkpoint_policy import load, load_parts
from volar.vla.configuration_volar import VolarConfig
from volar.vla.decoders.autoregressive import Autoregressive
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import VolarModel
from volar.vla.pretrained import count_words, load_pretrained
from volar.vla.processor_volar import TorchPolicy, save_policy
from volar.vla.train import TrainConfig, train

from .tiny_networks import STEPS, inputs, network
from .tiny_vlms import VOCABULARY, tiny_folder, tiny_tokenizer

Settings = Callable[..., TrainConfig]
Look = Callable[[int], Observation]
LAST = Path("run/checkpoints/last/pretrained_model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Markers are added behind the words, and the embedding has more rows than there are ids."""
    return tiny_folder(tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture
def short(contract: PolicyContract) -> PolicyContract:
    return replace(contract, chunk_length=STEPS, execute_steps=1)


@pytest.mark.parametrize("name", ["smolvlm", "idefics3", "qwen2_5_vl", "llava"])
def test_words_end_where_transformers_vocabulary_does(name: str) -> None:
    """`vocab_size`, from which OpenVLA counts."""
    import transformers
    from tokenizers import Tokenizer

    raw = tiny_tokenizer(name)
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(raw)))
    assert count_words(raw) == whole.vocab_size < len(whole) < VOCABULARY


def test_tokens_that_are_words_and_added_at_once_are_no_words() -> None:
    """PaliGemma's places and segments; a start of a sequence, as Llama's first ids, leaves words behind it."""
    gemma: dict[str, Any] = {
        "model": {"vocab": {"<pad>": 0, "a": 1, "b": 2, "<loc0000>": 3, "<seg000>": 4}},
        "added_tokens": [{"id": i, "content": w} for i, w in ((0, "<pad>"), (3, "<loc0000>"), (4, "<seg000>"))],
    }
    assert count_words(gemma) == 3
    unigrams: dict[str, Any] = {"model": {"vocab": [["<s>", 0.0], ["a", -1.0], ["b", -2.0], ["<mask>", 0.0]]}}
    assert count_words(unigrams) == 4
    assert count_words(unigrams | {"added_tokens": [{"id": 3, "content": "<mask>"}]}) == 3


@pytest.mark.parametrize("decoder", ["parallel", "autoregressive"])
def test_markers_and_untrained_rows_say_no_actions(
    decoder: str, settings: Settings, folder: Path, look: Look, tmp_path: Path
) -> None:
    """A policy acts the same whatever lies in rows that are no words', but for its prompt's markers."""
    words, markers = count_words(tiny_tokenizer()), InstructionTokenizer(tiny_tokenizer(), 20).markers
    train(settings(backbone=str(folder), decoder=decoder, state_as="tokens", chunk_length=2, steps=1))
    model, contract, tokenizer = load_parts(tmp_path / LAST)
    if isinstance(model.decoder, Autoregressive):
        assert (model.decoder.first_id, model.decoder.end) == (words - BINS, words)
    assert (model.backbone.action_end, model.state_end) == (words, words)
    actions = load(tmp_path / LAST).predict(look(0)).actions
    untrained = [i for i in range(words, VOCABULARY) if i not in markers]
    assert len(untrained) > 10
    with torch.no_grad():
        for rows in (model.backbone.model.get_input_embeddings(), model.backbone.model.get_output_embeddings()):
            rows.weight[untrained] = torch.nan
    assert np.array_equal(TorchPolicy(model, contract, tokenizer).predict(look(0)).actions, actions)
    with torch.inference_mode():
        prefix = model.prefix(*inputs(model))
        tokens = model.decoder.decode(model, prefix).tokens
        assert tokens is not None
        assert tokens.min() >= words - BINS
        assert tokens.max() < words
        assert torch.isfinite(model.decoder.log_probabilities(model, prefix, tokens)).all()


def test_a_state_has_ids_of_its_own_beside_tokens_that_are_no_bins(short: PolicyContract, folder: Path) -> None:
    found, generator = load_pretrained(str(folder)), np.random.default_rng(0)
    tokenizer = Fast.train(generator.uniform(-1, 1, (60, STEPS, 7)), vocabulary=40)
    of: dict[str, Any] = {"decoder": "autoregressive", "tokenizer": "fast", "action_tokens": tokenizer.size}
    config = VolarConfig(backbone=found.config, camera_tokens=(2, 2), state_as="tokens", **of)
    model = VolarModel(config, short, found.backbone, tokenizer).eval()
    decoder = model.decoder
    assert isinstance(decoder, Autoregressive)
    assert found.config.words == decoder.end == decoder.first_id + tokenizer.size + 1
    assert model.state_end == decoder.first_id  # of the token that ends a sequence
    rows = model.backbone.model.get_input_embeddings().weight
    with torch.inference_mode():
        *_, state, _ = model.prefix(*inputs(model)).pieces
        before = state.embeddings.clone()  # (B, S, D)
        rows[decoder.first_id : decoder.end] = torch.nan
        *_, state, _ = model.prefix(*inputs(model)).pieces
        assert torch.equal(state.embeddings, before)
        rows[decoder.first_id - BINS : decoder.first_id] = torch.nan
        *_, state, _ = model.prefix(*inputs(model)).pieces
        assert state.embeddings.isnan().all()


def test_ids_that_would_mean_two_things_are_refused(settings: Settings, folder: Path, tmp_path: Path) -> None:
    fast = {"decoder": "autoregressive", "tokenizer": "fast", "steps": 1}
    alone = r"state's bins have no ids but those of action tokens.*state_as=projected"
    with pytest.raises(UsageError, match=alone):
        train(settings(width=16, layers=1, state_as="tokens", **fast))
    with pytest.raises(UsageError, match=alone):
        train(settings(backbone=str(folder), action_ids="added", state_as="tokens", **fast))
    with pytest.raises(UsageError, match=r"smolvlm has \d+ words, actions and state need \d+ of them"):
        train(settings(backbone=str(folder), **fast))
    raw = tiny_tokenizer()
    raw["model"]["vocab"] |= {token["content"]: token["id"] for token in raw["added_tokens"]}
    raw["model"]["vocab"]["more"] = len(raw["model"]["vocab"])
    inside = tiny_folder(tmp_path / "inside")
    (inside / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(UsageError, match=r"> of the prompt has id \d+, and ids from \d+ on would say actions"):
        train(settings(backbone=str(inside), decoder="autoregressive", steps=1))
    of = {"chunk_length": 2, "steps": 1, "overwrite": True}
    train(settings(backbone=str(inside), **of))  # no ids say actions
    train(settings(backbone=str(inside), decoder="autoregressive", action_ids="added", **of))
    before = tmp_path / "before"
    train(settings(backbone=str(inside), output=before, **of))
    with pytest.raises(UsageError, match="of the prompt has id"):
        train(settings(init=before, decoder="autoregressive", **of))


@pytest.mark.parametrize("tokenizer", ["bins", "fast"])
def test_a_policy_from_before_acts_as_it_did(tokenizer: str, short: PolicyContract, look: Look, tmp_path: Path) -> None:
    """Its `config.json` does not say how many words there are: the embedding's last rows say actions and state."""
    model = network(short, "autoregressive", "llava", tokenizer=tokenizer, state_as="tokens", text_length=48)
    words = InstructionTokenizer(tiny_tokenizer("llava"), 48)
    save_policy(tmp_path, model, short, words)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    assert raw["backbone"].pop("words") is None
    path.write_text(json.dumps(raw))
    policy = load(tmp_path)
    assert policy.graph.model.decoder.end == policy.graph.model.state_end == VOCABULARY  # type: ignore[union-attr]
    assert np.array_equal(policy.predict(look(0)).actions, TorchPolicy(model, short, words).predict(look(0)).actions)
