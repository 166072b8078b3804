"""Small problems, learned in seconds: what PPO and GRPO do with decisions, without a simulator."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from volar.rl.episodes import Trajectory
from volar.rl.grpo import grpo_update
from volar.rl.learner import Decisions, Learner, UpdateConfig
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
    for _ in range(14):
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
    for i in range(18):
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
    """Whatever tokens a chunk had after the steps that were executed, the policy learns the same."""
    learned = []
    for executed, other in ((1, 0), (1, 100), (4, 0), (4, 100)):
        torch.manual_seed(0)
        policy = small.policy()
        inputs, tokens = tried(small, policy, np.random.default_rng(0), 1)
        tokens[:, 1:] = (tokens[:, 1:] + other) % 256
        cut = replace(small.trajectory(inputs, tokens, [1.0]), steps=np.array([executed], np.int32))
        learner = Learner(policy, FAST)
        learner.update(
            learner.decisions([cut], np.ones(1, np.float32), np.ones(1, np.float32)), np.random.default_rng(0)
        )
        learned.append(torch.cat([p.detach().flatten() for p in policy.actor_parameters]))
    assert torch.equal(learned[0], learned[1])
    assert not torch.equal(learned[2], learned[3])


class Watched(Learner):
    """Remembers the advantages and returns of the last batch."""

    def decisions(self, trajectories: Sequence[Trajectory], advantages: np.ndarray, returns: np.ndarray) -> Decisions:
        self.seen = advantages, returns
        return super().decisions(trajectories, advantages, returns)


@pytest.mark.parametrize("privileged", [3, 0])
def test_an_episode_that_the_clock_ended_counts_on(small: SimpleNamespace, privileged: int) -> None:
    policy, returns = small.policy(privileged=privileged), {}
    inputs, tokens = tried(small, policy, np.random.default_rng(0), 2)
    with torch.no_grad():
        policy.critic = torch.nn.Sequential(torch.nn.Linear(policy.critic[0].in_features, 1))
        policy.critic[0].bias.fill_(-2.0)
        policy.critic[0].weight.fill_(1 / policy.critic[0].in_features)  # of sevens: 5
    for terminated in (True, False):
        learner = Watched(policy, UpdateConfig(value_epochs=0))
        episode = small.trajectory(inputs, tokens, [0.0, 1.0], terminated=terminated)
        seen = policy.critic_inputs(small.tensors(inputs))[-1].numpy()
        episode = replace(episode, last=np.full_like(seen, 7.0))  # neither decision's
        ppo_update(learner, [episode], np.random.default_rng(0), gamma=0.5, lam=1.0, warm_up=True)
        returns[terminated] = learner.seen[1]
    assert returns[True] == pytest.approx([1 / 16, 1.0])
    assert returns[False] == pytest.approx([1 / 16 + 5 / 256, 1 + 5 / 16])


def test_a_task_in_which_nothing_is_earned_says_nothing(small: SimpleNamespace) -> None:
    policy = small.policy()
    learner = Watched(policy, UpdateConfig())
    earning, hopeless = episodes_of(small, policy), episodes_of(small, policy)
    hopeless = [replace(t, job=replace(t.job, task="stack"), rewards=np.zeros(2, np.float32)) for t in hopeless]
    ppo_update(learner, [*earning, *hopeless], np.random.default_rng(0), 0.99)
    together, alone = learner.seen[0].reshape(2, -1), Watched(small.policy(), UpdateConfig())
    assert together[1].tolist() == [0.0] * 32
    ppo_update(alone, episodes_of(small, policy), np.random.default_rng(0), 0.99)
    assert together[0] == pytest.approx(alone.seen[0], abs=1e-4)


def test_grpo_learns_the_rest_where_no_group_says_anything(small: SimpleNamespace) -> None:
    class Bias:
        def loss(self, policy: TokenPolicy, rng: np.random.Generator) -> torch.Tensor:
            return policy.vla.action_head.bins.bias.sum()

    policy = small.policy()
    before = policy.vla.action_head.bins.bias.detach().clone()
    alike = [replace(t, rewards=np.zeros(2, np.float32)) for t in episodes_of(small, policy)]
    assert grpo_update(Learner(policy, FAST), alike, np.random.default_rng(0), 0.99) == {"useful_groups": 0.0}
    assert torch.equal(policy.vla.action_head.bins.bias, before)
    grpo_update(Learner(policy, FAST, [(1.0, Bias())]), alike, np.random.default_rng(0), 0.99)
    assert bool((policy.vla.action_head.bins.bias < before).all())


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
