"""The decoders through their interface, on tiny and on pretrained families with random weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from volar.robots.contract import PolicyContract
from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.interface import Observation
from volar.vla.action_tokenizers.action_tokenizer import DecodeError
from volar.vla.checkpoint_policy import load
from volar.vla.configuration_volar import VolarConfig
from volar.vla.decoders.autoregressive import Autoregressive
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import VolarModel
from volar.vla.processor_volar import TorchPolicy, save_policy

from .tiny_networks import STEPS, actions, inputs, network, seen
from .tiny_vlms import tiny_tokenizer

Look = Callable[[int], Observation]


@pytest.fixture(scope="module")
def short(contract: PolicyContract) -> PolicyContract:
    return replace(contract, chunk_length=STEPS, execute_steps=1)


@pytest.mark.parametrize("decoder", ["parallel", "autoregressive", "flow"])
def test_masked_steps_carry_no_loss(decoder: str, short: PolicyContract) -> None:
    model, whole = network(short, decoder), torch.ones(2, STEPS, dtype=torch.bool)
    prefix, wanted = seen(model), actions()

    def loss(mask: Tensor, target: Tensor) -> float:
        return float(model.decoder.loss(model, prefix, target, mask, 0)[0].detach())

    cut = whole.clone()
    cut[1, 1:] = False
    other = wanted.clone()
    other[1, 1:] = -other[1, 1:]
    assert loss(torch.zeros_like(whole), wanted) == 0
    assert loss(whole, wanted) != loss(whole, other)
    if decoder != "flow":  # its noisy steps see one another, those after an episode's end too
        assert loss(cut, wanted) == pytest.approx(loss(cut, other), abs=1e-6)


def test_only_action_tokens_carry_loss(short: PolicyContract) -> None:
    """The loss is the mean of minus the log-probabilities of a chunk's tokens, and of nothing else."""
    model = network(short, "autoregressive", tokenizer="fast")
    decoder = model.decoder
    assert isinstance(decoder, Autoregressive)
    wanted = actions()
    wanted[1] = 0.0  # few tokens: the rest of its row is padding
    tokens = decoder.encode(wanted)
    lengths = (tokens >= 0).sum(1)
    assert lengths[0] > lengths[1]
    assert all(tokens[i, n - 1] == decoder.first_id for i, n in enumerate(lengths))  # the end
    with torch.no_grad():
        loss, *_ = decoder.loss(model, seen(model), wanted, torch.ones(2, STEPS, dtype=torch.bool), 0)
        said = decoder.log_probabilities(model, seen(model), tokens)
    assert said[1, lengths[1] :].abs().sum() == 0
    assert float(loss) == pytest.approx(float(-(said.sum(1) / lengths).mean()), rel=1e-5)


@pytest.mark.parametrize("tokenizer", ["bins", "fast"])
def test_a_step_counts_alike_in_whatever_batch(tokenizer: str, short: PolicyContract) -> None:
    """Losses and accuracies of parts, weighted by their steps, are those of all; a chunk cut short counts less."""
    model = network(short, "autoregressive", tokenizer=tokenizer)
    wanted = actions()
    wanted[1] = 0.0  # in FAST's tokens, a short sequence
    mask = torch.tensor([[True, False], [True, True]])
    with torch.no_grad():
        whole = model.decoder.loss(model, seen(model), wanted, mask, 0)
        pixels, ids, state = inputs(model)
        parts = []
        for i in range(2):
            prefix = model.prefix(pixels[i : i + 1], ids[i : i + 1], state[i : i + 1])
            parts.append(model.decoder.loss(model, prefix, wanted[i : i + 1], mask[i : i + 1], 0))
    for place in (0, 2):
        one, two = (float(part[place]) for part in parts)  # type: ignore[arg-type]
        assert float(whole[place]) == pytest.approx((one + 2 * two) / 3, rel=1e-4)  # type: ignore[arg-type]


def test_sequences_of_varying_length_come_back_as_chunks(short: PolicyContract) -> None:
    """Of an untrained network, too: what does not fit is not chosen. Probabilities stay those among all ids."""
    model = network(short, "autoregressive", tokenizer="fast")
    decoder = model.decoder
    assert isinstance(decoder, Autoregressive)
    with torch.inference_mode():
        hidden, *_ = decoder.token_logits(model, seen(model, 1), decoder.encode(actions(1)))
        assert hidden.shape[-1] == model.tokenizer.size + 1
        prefix = seen(model)
        decoded = decoder.decode(model, prefix)
        assert decoded.tokens is not None
        assert decoded.actions.shape == (2, *model.action_shape)
        for row in decoded.tokens.tolist():
            said = [token for token in row if token >= 0]
            assert said.pop() == decoder.first_id  # the end, once the chunk is full
            assert decoder.tokenizer.decode_chunk(said, model.action_shape).shape == model.action_shape
        taught = decoder.log_probabilities(model, prefix, decoded.tokens)
        torch.testing.assert_close(decoded.log_probabilities, taught, atol=1e-5, rtol=1e-5)
        decoder.numbers = None  # as for a tokenizer whose ids do not say how many: no zeros are made of what is none
        with pytest.raises(DecodeError):
            decoder.decode(model, prefix)


@pytest.mark.parametrize(
    ("decoder", "tokenizer", "steps", "times", "near"),
    [("autoregressive", "bins", 60, 1, 0.01), ("autoregressive", "fast", 60, 1, 0.1), ("flow", "bins", 250, 8, 0.12)],
)
def test_overfitted_decoders_say_what_they_learned(
    decoder: str, tokenizer: str, steps: int, times: int, near: float, short: PolicyContract
) -> None:
    """Each comes back with the chunk it was trained on, from what it saw: loss, decoding and tokens fit together."""
    model = network(short, decoder, tokenizer=tokenizer).train()
    wanted = (actions() * 0.8).repeat_interleave(times, 0)
    mask = torch.ones(wanted.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        prefix = seen(model, times=times)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        loss, _, accuracy = model.decoder.loss(model, prefix, wanted, mask, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noise = torch.randn(2, STEPS, 7, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        found = model.eval().decoder.decode(model, seen(model), noise).actions  # as in `prefix`
    assert (found - wanted[::times]).abs().mean() < near
    assert accuracy is None if decoder == "flow" else float(accuracy) > 0.9


def test_flow_is_decided_by_its_noise(short: PolicyContract, look: Look) -> None:
    policy = TorchPolicy(network(short, "flow"), short, InstructionTokenizer.load())
    policy.reset(3)
    a, b = policy.predict(look(0)).actions, policy.predict(look(0)).actions
    policy.reset(3)
    again = policy.predict(look(0)).actions
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)
    low, high = np.array(short.action.low, np.float32), np.array(short.action.high, np.float32)
    assert (a >= low).all()
    assert (a <= high).all()
    with pytest.raises(VolarError, match="no action tokens"):
        policy.graph.model.decoder.log_probabilities(policy.graph.model, seen(policy.graph.model), torch.zeros(2, 14))


def test_the_expert_sees_the_prefix_through_every_layer(short: PolicyContract) -> None:
    model = network(short, "flow", "smolvlm")
    noise = torch.zeros(2, STEPS, 7)
    with torch.inference_mode():
        prefix = seen(model)
        before = model.decoder.decode(model, prefix, noise).actions
        for layer in range(2):
            moved = network(short, "flow", "smolvlm")
            moved.backbone.language_model.layers[layer].self_attn.v_proj.weight.mul_(-1)
            assert not torch.allclose(before, moved.decoder.decode(moved, prefix, noise).actions)
        padding = prefix.pieces[-3]  # the instruction, padded in the first row: what it holds there is not seen
        changed = replace(padding, embeddings=torch.where(padding.present[..., None], padding.embeddings, 9.0))
        pieces = [changed if piece is padding else piece for piece in prefix.pieces]
        same = model.decoder.decode(model, replace(prefix, pieces=pieces), noise).actions
    assert not padding.present.all()
    torch.testing.assert_close(same, before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("decoder", ["parallel", "autoregressive", "flow"])
@pytest.mark.parametrize("backbone", ["tiny", "qwen3_vl"])
def test_saved_and_loaded_is_the_same_policy(
    decoder: str, backbone: str, short: PolicyContract, look: Look, tmp_path: Path
) -> None:
    model = network(short, decoder, backbone, state_as="tokens")
    words = InstructionTokenizer.load() if backbone == "tiny" else InstructionTokenizer(tiny_tokenizer())
    save_policy(tmp_path, model, short, words)
    found = []
    for policy in (TorchPolicy(model, short, words), load(tmp_path)):
        policy.reset(1)
        found.append([policy.predict(look(i)).actions for i in range(2)])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0][0], found[0][1])


@pytest.mark.parametrize("decoder", ["parallel", "autoregressive", "flow"])
def test_a_backbone_in_half_precision(decoder: str, short: PolicyContract) -> None:
    """Its weights alone are in bfloat16: with autocast as in training, and without as in a policy, all else fits."""
    noise, mask = torch.zeros(2, STEPS, 7), torch.ones(2, STEPS, dtype=torch.bool)
    with torch.inference_mode():
        model = network(short, decoder, "smolvlm")
        whole = model.decoder.decode(model, seen(model), noise)
    low_rank: dict[str, Any] = dict.fromkeys(("vision", "connector", "language"), "lora")
    model = network(short, decoder, "smolvlm", torch.bfloat16, **low_rank)
    trained = [p for p in model.backbone.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        loss, *_ = model.decoder.loss(model, seen(model), actions(), mask, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.backbone.dtype == torch.bfloat16
    assert model.point_queries.grad is not None
    assert torch.isfinite(model.point_queries.grad).all()
    with torch.inference_mode():
        half = model.decoder.decode(model, seen(model), noise)
    torch.testing.assert_close(half.hidden.float(), whole.hidden, atol=0.15, rtol=0.1)


def test_state_as_tokens_is_seen(short: PolicyContract) -> None:
    model = network(short, "parallel", state_as="tokens")
    pixels, ids = torch.zeros(1, 2, 3, 32, 32), torch.tensor([[2, 20, 21]])
    with torch.inference_mode():
        a, b, c = (model.trunk(pixels, ids, torch.full((1, 10), x)).queries for x in (0.5, 0.501, -0.5))
    assert torch.equal(a, b)  # one bin
    assert not torch.allclose(a, c)


def test_choices_are_named(short: PolicyContract) -> None:
    with pytest.raises(Unknown, match="autoregressive, flow, parallel"):
        VolarConfig(decoder="diffusion")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one token a number"):
        VolarConfig(decoder="parallel", tokenizer="fast")
    with pytest.raises(VolarError, match="tokenizer has 256 ids, the network 300"):
        VolarModel(VolarConfig(decoder="autoregressive", action_tokens=300), short)


@pytest.mark.parametrize("decoder", ["parallel", "autoregressive", "flow"])
@pytest.mark.parametrize("backbone", ["tiny", "smolvlm", "paligemma2", "llava"])
def test_all_happens_on_the_models_device(decoder: str, backbone: str, short: PolicyContract) -> None:
    """With torch's stand-ins for tensors of a GPU, which refuse to meet those of the CPU as real ones do."""
    model, gpu = network(short, decoder, backbone, state_as="tokens"), torch.device("cuda")
    with FakeTensorMode(), torch.no_grad():
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, value in held.items():
                    if value is not None:
                        there = torch.empty(value.shape, dtype=value.dtype, device=gpu)
                        held[name] = torch.nn.Parameter(there) if held is module._parameters else there
        graph = TorchPolicy(model, short, InstructionTokenizer.load()).graph
        with pytest.raises(RuntimeError, match="device"):
            graph.state_scaler(torch.zeros(2, 10))
        images = {c.name: torch.zeros(2, c.height, c.width, 3, dtype=torch.uint8, device=gpu) for c in short.cameras}
        ids = torch.zeros(2, 5, dtype=torch.long, device=gpu)
        found, points = graph(images, torch.zeros(2, 10, device=gpu), ids)
    assert (found.shape, points.shape) == ((2, STEPS, 7), (2, 2, 3))
    assert found.device.type == points.device.type == "cuda"
