import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from volar.robots.contract import ContractError, PolicyContract
from volar.robots.errors import Unknown, VolarError
from volar.robots.interface import Observation
from volar.vla.backbone import BackboneConfig
from volar.vla.checkpoint_policy import load
from volar.vla.configuration_volar import VolarConfig
from volar.vla.heads import FromHand
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.losses import action_loss, point_losses
from volar.vla.modeling_volar import Outputs, VolarModel
from volar.vla.processor_volar import StateScaler, TorchPolicy, save_policy

TOKENIZER = InstructionTokenizer.load()
Look = Callable[[int], Observation]


def outputs(model: VolarModel, length: int, batch: int = 2) -> Outputs:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(batch, 2, 3, 32, 32, generator=generator) * 2 - 1
    ids = torch.from_numpy(InstructionTokenizer.load(length=length).encode(["lift the red block"] * batch))
    with torch.inference_mode():
        return model(pixels, ids, torch.zeros(batch, 10))


def test_shapes(model: VolarModel) -> None:
    out = outputs(model, 20)
    assert out.action_logits.shape == (2, 8, 7, 256)
    assert out.patch_logits.shape == (2, 2, 64)
    assert out.points.shape == (2, 2, 3)


def test_padding_tells_the_network_nothing_but_place(model: VolarModel) -> None:
    """What is masked carries no information: another id under the mask cannot change an answer."""
    ids = torch.from_numpy(TOKENIZER.encode(["lift the red block"]))
    embedded = model.backbone.embed_words(ids)
    mask = torch.ones(1, 20, 20, dtype=torch.bool)
    mask[..., 5:] = False
    with torch.inference_mode():
        a = model.backbone.hidden_states(embedded, mask)[:, :5]
        changed = embedded.clone()
        changed[:, 5:] = 3.0
        b = model.backbone.hidden_states(changed, mask)[:, :5]
        seen = model.backbone.hidden_states(changed, torch.ones_like(mask))[:, :5]
    assert torch.equal(a, b)
    assert not torch.allclose(a, seen)


def test_the_instruction_matters(model: VolarModel) -> None:
    pixels, state = torch.zeros(1, 2, 3, 32, 32), torch.zeros(1, 10)
    with torch.inference_mode():
        a, b = (model(pixels, torch.from_numpy(TOKENIZER.encode([t])), state) for t in ("lift red", "lift blue"))
    assert not torch.equal(a.action_logits, b.action_logits)


def test_masked_steps_carry_no_loss() -> None:
    logits = torch.randn(2, 8, 7, 256, requires_grad=True)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 3:] = False
    action_loss(logits, torch.zeros(2, 8, 7), mask).backward()
    assert logits.grad is not None
    assert logits.grad[1, 3:].abs().sum() == 0
    assert logits.grad[1, :3].abs().sum() > 0


def test_the_best_logits_for_a_target_are_its_bin() -> None:
    logits = torch.zeros(1, 1, 1, 256)
    target, mask = torch.full((1, 1, 1), 0.5), torch.ones(1, 1)
    best = min(range(256), key=lambda b: float(action_loss(_peak(logits, b), target, mask)))
    assert best == 191  # the interval that 0.5 lies in: (0.5 + 1) / 2 * 255 = 191.25


def _peak(logits: torch.Tensor, bin_index: int) -> torch.Tensor:
    peaked = logits.clone()
    peaked[..., bin_index] = 5.0
    return peaked


def test_frames_without_points_carry_no_point_loss(model: VolarModel) -> None:
    out = outputs(model, 20)
    patch, place = point_losses(out, torch.full((2, 3, 5), torch.nan), torch.ones(3))
    assert float(patch) == float(place) == 0.0


def test_a_point_seen_from_the_hand_is_where_it_is_relative_to_it(contract: PolicyContract) -> None:
    config = VolarConfig(points="hand")
    from_hand, scaler = FromHand(config, contract), StateScaler(contract)
    std, mean = torch.tensor(config.point_std), torch.tensor(config.point_mean)
    found = []
    for hand in ([0.3, 0.1, 0.2], [0.4, -0.2, 0.1]):
        state = torch.zeros(1, len(contract.state_names))
        state[0, :3] = torch.tensor(hand)
        places = torch.tensor(hand) + torch.tensor([[0.05, -0.02, 0.0], [0.9, 0.0, 0.01]])
        found.append(from_hand(((places - mean) / std)[None], scaler(state))[0])
    assert torch.allclose(*found, atol=1e-4)
    assert torch.allclose(found[0][:6], torch.tensor([0.5, -0.2, 0.0, 3.0, 0.0, 0.1]), atol=1e-4)  # at most 0.3 m
    assert torch.allclose(found[0][6:9], torch.tensor([2.5, -1.0, 0.0]).tanh(), atol=1e-3)


def test_without_a_hand_in_the_state_nothing_is_seen_from_it(contract: PolicyContract) -> None:
    names = ("q1", *contract.state_names[1:])
    with pytest.raises(VolarError, match="points=hand needs ee_x, ee_y, ee_z in the state, which lacks ee_x"):
        FromHand(VolarConfig(points="hand"), replace(contract, state_names=names))
    with pytest.raises(VolarError, match="finds_hand=true needs ee_x"):
        VolarModel(VolarConfig(finds_hand=True), replace(contract, state_names=names))


def test_pointing_with_the_hand(model: VolarModel, contract: PolicyContract) -> None:
    """The hand's place in the image has a label of its own, and where the hand is tells where the camera stands."""
    torch.manual_seed(0)
    model = VolarModel(replace(model.config, finds_hand=True), contract)
    generator = torch.Generator().manual_seed(0)
    queries, tokens = (torch.randn(1, n, model.backbone.width, generator=generator) for n in (3, 64))
    here, there = torch.zeros(1, 10), torch.zeros(1, 10)
    there[0, :3] = 0.5
    a, b = (model.point_head(queries, tokens, state) for state in (here, there))
    assert (a[0].shape, a[1].shape, a[2].shape) == ((1, 3, 64), (1, 3, 2), (1, 2, 3))
    assert (a[2] - b[2]).abs().min() > 1e-4
    elsewhere = queries.clone()
    elsewhere[:, 2] *= -1  # attends to other places
    c = model.point_head(elsewhere, tokens, here)
    assert (a[1][:, 2] - c[1][:, 2]).abs().max() > 1e-3
    assert (a[2] - c[2]).abs().min() > 1e-4
    out = outputs(model, 20, batch=1)
    labels = torch.full((1, 3, 5), torch.nan)
    assert sum(point_losses(out, labels, torch.ones(3))) == 0.0
    u, v = out.points_uv[0, 2].tolist()
    labels[0, 2] = torch.tensor([0.4, 0.0, 0.2, u, v - 0.02])
    patch, place = point_losses(out, labels, torch.ones(3))
    assert place == pytest.approx(0.02, abs=1e-6)
    cell = int((v - 0.02) * 8) * 8 + int(u * 8)
    assert patch == pytest.approx(-float(out.patch_logits[0, 2].log_softmax(-1)[cell]), rel=1e-5)


@pytest.mark.parametrize("finds_hand", [False, True])
def test_what_instructions_name_weighs_the_same_with_the_hand(
    model: VolarModel, contract: PolicyContract, finds_hand: bool
) -> None:
    """Labels of the hand add their own loss, and nothing for a network that does not look for it."""
    out = outputs(VolarModel(replace(model.config, finds_hand=finds_hand), contract), 20)
    labels = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    named, hands = labels.clone(), labels.clone()
    named[:, 2] = hands[:, :2] = torch.nan
    whole, apart, hand = (torch.stack(point_losses(out, x, torch.ones(3))) for x in (labels, named, hands))
    assert torch.allclose(whole, apart + hand)
    assert (hand > 0).tolist() == [finds_hand] * 2


def test_saved_and_loaded_is_the_same_policy(
    model: VolarModel, contract: PolicyContract, look: Look, tmp_path: Path
) -> None:
    save_policy(tmp_path, model, contract, TOKENIZER)
    a = TorchPolicy(model, contract, TOKENIZER).predict(look(0))
    b = load(tmp_path).predict(look(0))
    assert np.array_equal(a.actions, b.actions)
    assert b.stamp_ns == 5
    low, high = np.array(contract.action.low, np.float32), np.array(contract.action.high, np.float32)
    assert (b.actions >= low).all()
    assert (b.actions <= high).all()


def test_half_a_checkpoint_is_refused(model: VolarModel, contract: PolicyContract, tmp_path: Path) -> None:
    save_policy(tmp_path, model, contract, TOKENIZER)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(VolarError, match=r"model\.safetensors cannot be loaded"):
        load(tmp_path)


def test_another_contract_beside_the_weights_is_refused(
    model: VolarModel, contract: PolicyContract, tmp_path: Path
) -> None:
    save_policy(tmp_path, model, contract, TOKENIZER)
    replace(contract, execute_steps=2).save(tmp_path / "contract.json")
    with pytest.raises(VolarError, match="was trained under contract"):
        load(tmp_path)


def test_another_policy_type_is_refused(model: VolarModel, contract: PolicyContract, tmp_path: Path) -> None:
    save_policy(tmp_path, model, contract, TOKENIZER)
    raw = json.loads((tmp_path / "config.json").read_text()) | {"type": "act"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(VolarError, match="policy type 'act'"):
        load(tmp_path)


def test_wrong_cameras_or_state_are_named(model: VolarModel, contract: PolicyContract, look: Look) -> None:
    policy = TorchPolicy(model, contract, TOKENIZER)
    good = look(0)
    with pytest.raises(ContractError, match="wants cameras"):
        policy.predict(replace(good, images={"front": good.images["front"]}))
    with pytest.raises(ContractError, match="wants a state"):
        policy.predict(replace(good, state=good.state[:-1]))


def test_an_unknown_backbone_names_the_choices() -> None:
    with pytest.raises(Unknown, match="tiny"):
        BackboneConfig(name="tny")
