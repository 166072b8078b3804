"""Small problems, learned in seconds: what PPO and GRPO do with decisions, without a simulator."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from volar.rl.episodes import Trajectory
from volar.rl.grpo import grpo_update
from volar.rl.learner import Learner, UpdateConfig
from volar.rl.ppo import explained_variance, ppo_update
from volar.rl.token_policy import TokenPolicy

FAST = UpdateConfig(learning_rate=1e-2, epochs=4, minibatch=64, target_kl=1.0, reference_weight=0.0)


def tried(
    small: SimpleNamespace, policy: TokenPolicy, rng: np.random.Generator, decisions: int
) -> tuple[dict, np.ndarray]:  # type: ignore[type-arg]
    """The same observations every time, and tokens drawn for them."""
    inputs = small.seen(decisions)
    with torch.no_grad():
        tokens = policy._predict(small.tensors(inputs))
    return inputs, tokens.reshape(decisions, 4, 7).numpy()


def upper(tokens: np.ndarray) -> np.ndarray:
    """(N,): the decision's first token, which dimension 0 is, lies in the upper half."""
    return tokens[:, 0, 0] >= 128


def share(small: SimpleNamespace, policy: TokenPolicy, decisions: int) -> list[float]:
    """How probable the upper half is in each decision."""
    with torch.no_grad():
        found = policy.log_probabilities(small.tensors(small.seen(decisions))).exp()[:, 0, 0, 128:].sum(-1)
    return [float(x) for x in found]


def test_grpo_learns_a_bandit(small: SimpleNamespace) -> None:
    torch.manual_seed(0)
    rng, policy = np.random.default_rng(0), small.policy()
    learner = Learner(policy, FAST)
    assert max(share(small, policy, 1)) < 0.8
    for _ in range(11):
        episodes = []
        for i in range(32):
            inputs, tokens = tried(small, policy, rng, 1)
            episodes.append(small.trajectory(inputs, tokens, [float(upper(tokens)[0])], group=i // 8))
        grpo_update(learner, episodes, rng, gamma=0.99)
    assert min(share(small, policy, 1)) > 0.95


def test_ppo_learns_two_steps_of_which_only_both_earn(small: SimpleNamespace) -> None:
    torch.manual_seed(0)
    rng, policy = np.random.default_rng(0), small.policy()
    learner = Learner(policy, FAST)
    assert max(share(small, policy, 2)) < 0.8
    for i in range(12):
        episodes = []
        for _ in range(32):
            inputs, tokens = tried(small, policy, rng, 2)
            episodes.append(small.trajectory(inputs, tokens, [0.0, float(upper(tokens).all())]))
        notes = ppo_update(learner, episodes, rng, gamma=0.99, warm_up=i == 0)
    assert min(share(small, policy, 2)) > 0.9
    assert notes["kl_reference"] > 0.01


def episodes_of(small: SimpleNamespace, policy: TokenPolicy) -> list[Trajectory]:
    rng = np.random.default_rng(0)
    pairs = [tried(small, policy, rng, 2) for _ in range(16)]
    return [small.trajectory(i, t, [0.0, float(k % 2)], group=k // 4) for k, (i, t) in enumerate(pairs)]


@pytest.mark.parametrize("update", [ppo_update, grpo_update])
def test_divergence_is_zero_at_step_zero(small: SimpleNamespace, update: Callable[..., dict[str, float]]) -> None:
    policy = small.policy()
    once = UpdateConfig(epochs=1, minibatch=10_000)  # one gradient step: reported before it is taken
    notes = update(Learner(policy, once), episodes_of(small, policy), np.random.default_rng(0), 0.99)
    assert notes["kl_step"] == pytest.approx(0.0, abs=1e-7)
    assert notes["kl_reference"] == pytest.approx(0.0, abs=1e-7)
    assert notes["clip_fraction"] == 0.0


def test_warming_up_the_critic_leaves_the_policy_alone(small: SimpleNamespace) -> None:
    policy = small.policy()
    before = [p.clone() for p in policy.vla.parameters()]
    critic = [p.clone() for p in policy.critic.parameters()]
    learner = Learner(policy, UpdateConfig())
    ppo_update(learner, episodes_of(small, policy), np.random.default_rng(0), 0.99, warm_up=True)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.vla.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(critic, policy.critic.parameters(), strict=True))


def test_steps_that_were_not_executed_carry_no_gradient(small: SimpleNamespace) -> None:
    policy = small.policy()
    inputs, tokens = tried(small, policy, np.random.default_rng(0), 1)
    cut = small.trajectory(inputs, tokens, [1.0])
    object.__setattr__(cut, "steps", np.array([1], np.int32))
    batch = Learner(policy, FAST).decisions([cut], np.ones(1, np.float32), np.ones(1, np.float32))
    assert batch.mask.tolist() == [[1, 0, 0, 0]]


def test_the_reference_holds_the_policy_back(small: SimpleNamespace) -> None:
    found = []
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        policy = small.policy()
        learner = Learner(policy, UpdateConfig(3e-3, epochs=20, target_kl=1e9, reference_weight=weight))
        notes = ppo_update(learner, episodes_of(small, policy), np.random.default_rng(0), 0.99)
        found.append(notes["kl_reference"])
    assert found[1] < 0.5 * found[0]


def test_without_a_weight_reward_teaches_nothing(small: SimpleNamespace) -> None:
    moved = []
    for weight in (1.0, 0.0):
        torch.manual_seed(0)
        policy = small.policy()
        before = torch.cat([p.detach().flatten() for p in policy.actor_parameters])
        learner = Learner(policy, UpdateConfig(reward_weight=weight, reference_weight=0.0))
        ppo_update(learner, episodes_of(small, policy), np.random.default_rng(0), 0.99)
        moved.append(float((torch.cat([p.detach().flatten() for p in policy.actor_parameters]) - before).abs().max()))
    assert moved[0] > 0
    assert moved[1] == 0


def test_explained_variance() -> None:
    returns = np.array([0.0, 1.0, 2.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(np.full(3, 7.0), returns) == 0.0
    assert np.isnan(explained_variance(returns, np.ones(3)))
