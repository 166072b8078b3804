"""The VLA as an SB3 policy says the same as the VLA itself."""

from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

from volar.rl.exploration import Exploration, Noise, tokens_at
from volar.rl.token_policy import TokenPolicy, token_policy, token_spaces
from volar.robots.interface import Observation
from volar.vla.adapters import adapt
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.losses import action_loss
from volar.vla.modeling_volar import pixels_from_images
from volar.vla.processor_volar import StateScaler, TorchPolicy


def raw(small: SimpleNamespace, count: int) -> dict[str, torch.Tensor]:
    rng, contract = np.random.default_rng(1), small.contract()
    obs = {c.name: rng.integers(0, 255, (count, c.height, c.width, 3), np.uint8) for c in contract.cameras}
    ids = InstructionTokenizer.load().encode(["lift the red block"] * count)
    state = rng.uniform(-0.3, 0.3, (count, 10)).astype(np.float32)
    found: dict[str, torch.Tensor] = small.tensors(
        obs | {"state": state, "input_ids": ids, "privileged": np.zeros((count, 3), np.float32)}
    )
    return found


def logits_of_the_vla(small: SimpleNamespace, obs: dict[str, torch.Tensor]) -> torch.Tensor:
    contract = small.contract()
    model = small.model(contract)
    pixels = pixels_from_images({c.name: obs[c.name] for c in contract.cameras}, model.config.backbone)
    found: torch.Tensor = model(pixels, obs["input_ids"], StateScaler(contract)(obs["state"])).action_logits
    return found


@torch.no_grad()
def test_log_probabilities_are_those_of_the_vlas_own_loss(small: SimpleNamespace) -> None:
    obs, rng = raw(small, 5), np.random.default_rng(2)
    actions = torch.from_numpy(rng.uniform(-1, 1, (5, 8, 7)).astype(np.float32))
    wanted = action_loss(logits_of_the_vla(small, obs), actions, torch.ones(5, 8))
    # The same loss, from the policy's log-probabilities in place of the logits: a log-softmax of these changes nothing.
    found = action_loss(small.policy(execute_steps=8).log_probabilities(obs), actions, torch.ones(5, 8))
    assert float(found) == pytest.approx(float(wanted), abs=1e-5)


@torch.no_grad()
def test_a_trunk_in_bf16_is_near_the_one_in_float32(small: SimpleNamespace) -> None:
    contract = small.contract()
    obs = raw(small, 8)
    plain = token_policy(small.model(contract), contract, exploration=small.own_tokens)
    fast = token_policy(small.model(contract), contract, exploration=small.own_tokens, precision="bf16")
    wanted, found = plain.log_probabilities(obs), fast.log_probabilities(obs)
    assert found.dtype == torch.float32
    assert not torch.equal(found, wanted)
    assert (found.exp() - wanted.exp()).abs().sum(-1).max() < 0.05


@torch.no_grad()
def test_log_probability_and_entropy_of_a_chunk_are_sums_over_its_tokens(small: SimpleNamespace) -> None:
    obs, rng = raw(small, 5), np.random.default_rng(3)
    policy, tokens = small.policy(), rng.integers(0, 256, (5, 4, 7))
    logp = logits_of_the_vla(small, obs)[:, :4].log_softmax(-1)
    free = [0, 1, 2, 6]  # no demonstration turns the hand
    own = logp.gather(-1, torch.from_numpy(tokens)[..., None])[..., free, 0]
    values, found, entropy = policy.evaluate_actions(obs, torch.from_numpy(tokens).flatten(1))
    assert values.shape == (5, 1)
    assert torch.allclose(found, own.sum((1, 2)), atol=1e-5 * 16)
    wanted = torch.distributions.Categorical(logits=logp[..., free, :]).entropy().sum((1, 2))
    assert torch.allclose(entropy, wanted, atol=1e-4)


@torch.no_grad()
def test_cached_features_are_the_raw_images(small: SimpleNamespace) -> None:
    policy, obs = small.policy(), raw(small, 3)
    queries, points, _ = policy.seen(obs)
    cached = {"queries": queries, "scaled_points": points, "state": obs["state"]}
    assert torch.equal(policy.log_probabilities(cached), policy.log_probabilities(obs))


def test_features_of_frozen_vision_are_the_raw_images(small: SimpleNamespace) -> None:
    contract = small.contract()
    model = small.model(contract)
    model.config = replace(model.config, vision="frozen", connector="frozen")
    adapt(model.backbone, model.config)
    policy, obs = token_policy(model, contract, exploration=small.own_tokens, trains="all"), raw(small, 3)
    assert policy.sees_alike
    cached = policy.sight(obs)
    assert not {camera.name for camera in contract.cameras} & cached.keys()
    grown = []
    for form in (obs, cached):
        logp = policy.log_probabilities(form)
        gradients = torch.autograd.grad(logp[..., 0].sum(), policy.actor_parameters, allow_unused=True)
        grown.append([logp, *(g for g in gradients if g is not None)])
    assert len(grown[0]) == len(grown[1]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*grown, strict=True))
    assert not token_policy(small.model(contract), contract, trains="all").sees_alike


def test_without_exploration_it_acts_as_the_deployed_policy(small: SimpleNamespace) -> None:
    obs, contract = raw(small, 1), small.contract()
    policy = small.policy()
    deployed = TorchPolicy(small.model(contract), contract, InstructionTokenizer.load())
    images = {c.name: obs[c.name][0].numpy() for c in contract.cameras}
    chunk = deployed.predict(Observation(images, obs["state"][0].numpy(), "lift the red block", 0))
    tokens = policy._predict(obs, deterministic=True).reshape(4, 7)
    assert np.array_equal(deployed.graph.table.gather(1, tokens.T).T.numpy(), chunk.actions[:4])


@pytest.mark.parametrize("exploration", [Exploration(0.5, 4.0, 0.8), Exploration(2.0, 0.0, 0.0)])
def test_what_is_tried_out_is_a_distribution(small: SimpleNamespace, exploration: Exploration) -> None:
    policy = small.policy(exploration)
    wide = policy.log_probabilities(small.tensors(small.seen(4))).exp()
    assert torch.allclose(wide.sum(-1), torch.ones(wide.shape[:-1]), atol=1e-5)
    assert torch.equal(policy.kernel[-1], torch.eye(256))  # the gripper's tokens are its own


def test_what_is_tried_out_fades_to_the_policys_own(small: SimpleNamespace) -> None:
    policy, own = small.policy(Exploration(1.0, 6.0, 0.8)), small.policy(Exploration(1.0, 0.0, 0.8))
    own.load_state_dict(policy.state_dict())
    obs = small.tensors(small.seen(4))
    wanted = own.log_probabilities(obs)
    apart = []
    for width in (1.0, 0.5, 0.1, 0.0):
        policy.widen(width)
        apart.append((policy.log_probabilities(obs).exp() - wanted.exp()).abs().mean().item())
    assert apart == sorted(apart, reverse=True)
    assert apart[0] > 1e-4
    assert apart[-1] < 1e-7


def test_tokens_are_drawn_from_their_own_distribution() -> None:
    """Correlated they may be; each by itself is as frequent as it is probable."""
    rng = np.random.default_rng(0)
    probabilities = torch.zeros(2, 3, 256)
    probabilities[..., 10], probabilities[..., 20], probabilities[..., 200] = 0.2, 0.5, 0.3
    noise = Noise(3, 0.9, rng)
    drawn = np.stack([tokens_at(probabilities, noise.next()).numpy() for _ in range(5000)])
    assert (drawn[:, 0] == drawn[:, 1]).all()  # the steps of a decision go the same way
    for token, wanted in ((10, 0.2), (20, 0.5), (200, 0.3)):
        assert np.mean(drawn == token) == pytest.approx(wanted, abs=0.05)
    fresh = Noise(3, 0.9, rng)
    numbers = np.stack([fresh.next() for _ in range(5000)])
    assert np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1] == pytest.approx(0.9, abs=0.03)


def test_only_the_head_learns_unless_everything_does(small: SimpleNamespace) -> None:
    contract = small.contract()
    head = token_policy(small.model(contract), contract, exploration=small.own_tokens)
    names = {name.split(".")[0] for name, p in head.vla.named_parameters() if p.requires_grad}
    assert names == {"action_head"}
    whole = token_policy(small.model(contract), contract, exploration=small.own_tokens, trains="all")
    assert all(p.requires_grad for p in whole.vla.parameters())
    model = small.model(contract)
    model.config = replace(model.config, vision="frozen", connector="frozen", language="frozen")
    adapt(model.backbone, model.config)
    beside = token_policy(model, contract, exploration=small.own_tokens, trains="all")
    names = {name.split(".")[0] for name, p in beside.vla.named_parameters() if p.requires_grad}
    assert {"action_head", "action_queries", "state_projection"} < names  # what is no part of a backbone
    assert "backbone" not in names


class Bandit(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """One decision; it earns 1 when the first dimension's first token is in the upper half."""

    def __init__(self, small: SimpleNamespace) -> None:
        contract = small.contract()
        self.observation_space, self.action_space = token_spaces(small.model(contract), contract, 3)
        self._seen = {key: value[0] for key, value in small.seen(1).items()}

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None):  # type: ignore[no-untyped-def]
        super().reset(seed=seed)
        return self._seen, {}

    def step(self, action: np.ndarray):  # type: ignore[no-untyped-def]
        return self._seen, float(action[0] >= 128), True, False, {}


def test_stable_baselines_own_ppo_learns_a_bandit_with_it(small: SimpleNamespace) -> None:
    contract, env = small.contract(), Bandit(small)
    assert isinstance(env.observation_space, spaces.Dict)
    kwargs = {"model": small.model(contract), "contract": contract, "exploration": small.own_tokens}
    ppo = PPO(
        TokenPolicy, env, learning_rate=1e-2, n_steps=128, batch_size=64, n_epochs=4, policy_kwargs=kwargs, seed=0
    )
    policy = ppo.policy
    assert isinstance(policy, TokenPolicy)

    def share() -> float:
        with torch.no_grad():
            return float(policy.log_probabilities(small.tensors(small.seen(1))).exp()[0, 0, 0, 128:].sum())

    before = share()
    ppo.learn(1024)
    assert before < 0.8
    assert share() > 0.95
