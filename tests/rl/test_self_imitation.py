"""The run's own successes: which are kept, what they are worth, and that learning from them makes them likelier."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from volar.rl.episodes import Trajectory
from volar.rl.self_imitation import SelfImitation, decisions_of
from volar.rl.token_policy import TokenPolicy
from volar.robots.errors import VolarError

GAMMA = 0.9


def episode(small: SimpleNamespace, rewards: list[float], token: int = 200, terminated: bool = True) -> Trajectory:
    found: Trajectory = small.trajectory(
        small.seen(len(rewards)), np.full((len(rewards), 4, 7), token), rewards, terminated=terminated
    )
    return found


def with_a_critic_that_says(small: SimpleNamespace, value: float) -> TokenPolicy:
    policy: TokenPolicy = small.policy()
    with torch.no_grad():
        policy.critic[-1].weight.zero_()
        policy.critic[-1].bias.fill_(value)
    return policy


def test_what_a_decision_earned_is_discounted_by_the_steps_between(small: SimpleNamespace) -> None:
    found = decisions_of(episode(small, [0.0, 0.5, 1.0]), GAMMA)  # four steps a decision
    assert found["earned"] == pytest.approx([GAMMA**4 * (0.5 + GAMMA**4), 0.5 + GAMMA**4, 1.0])


def test_only_successes_are_kept(small: SimpleNamespace) -> None:
    kept = SelfImitation(GAMMA, critic=True)
    policy = small.policy()
    kept.look_at([episode(small, [0.0, 0.0], terminated=False), episode(small, [0.0, 0.5], terminated=False)])
    assert len(kept) == 0
    assert float(kept.loss(policy, np.random.default_rng(0))) == 0.0
    kept.look_at([episode(small, [0.0, 1.0]), episode(small, [0.0, 0.0, 1.0])])
    assert len(kept) == 5


def test_the_oldest_give_way(small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = SelfImitation(GAMMA, critic=False)
    kept.look_at([episode(small, [0.0, 1.0], token=10)])
    one = sum(array[0].nbytes for array in decisions_of(episode(small, [1.0]), GAMMA).values())
    monkeypatch.setattr("volar.rl.self_imitation._BYTES", 3 * one)
    kept.look_at([episode(small, [0.0, 1.0], token=20)])
    assert len(kept) == 3
    kept.look_at([episode(small, [0.0, 0.0, 0.0, 1.0], token=30)])
    assert set(kept._kept["tokens"].ravel()) == {30}


def test_their_tokens_become_likelier(small: SimpleNamespace) -> None:
    policy, kept = with_a_critic_that_says(small, 0.0), SelfImitation(GAMMA, critic=True)
    success = episode(small, [0.0, 1.0])
    kept.look_at([success])
    optimizer = torch.optim.Adam(policy.actor_parameters, 3e-3)
    before = probability(small, policy, success)
    for _ in range(20):
        optimizer.zero_grad()
        kept.loss(policy, np.random.default_rng(0)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert probability(small, policy, success) > 3 * before


@torch.no_grad()
def probability(small: SimpleNamespace, policy: TokenPolicy, t: Trajectory) -> float:
    tokens = torch.from_numpy(t.tokens).long()[..., None]
    return float(policy.log_probabilities(small.tensors(t.inputs)).exp().gather(-1, tokens).mean())


def test_what_the_critic_expected_teaches_nothing(small: SimpleNamespace) -> None:
    success = [episode(small, [0.0, 1.0])]
    losses = {}
    for critic in (True, False):
        kept = SelfImitation(GAMMA, critic)
        kept.look_at(success)
        losses[critic] = float(kept.loss(with_a_critic_that_says(small, 2.0), np.random.default_rng(0)).detach())
    assert losses[True] == 0.0
    assert losses[False] > 0.0


def test_a_resumed_run_has_the_same(small: SimpleNamespace, tmp_path: Path) -> None:
    policy, kept, again = small.policy(), SelfImitation(GAMMA, critic=True), SelfImitation(GAMMA, critic=True)
    kept.save(tmp_path)
    again.load(tmp_path)  # before the first success
    assert len(again) == 0
    kept.look_at([episode(small, [0.0, 1.0]), episode(small, [0.0, 0.0, 1.0], token=3)])
    kept.save(tmp_path)
    again.load(tmp_path)
    for one in (kept, again):
        one.look_at([episode(small, [1.0])])
    assert len(again) == 6
    found = [one.loss(policy, np.random.default_rng(0)) for one in (kept, again)]
    assert torch.equal(*found)
    (tmp_path / "successes.safetensors").write_bytes(b"broken")
    with pytest.raises(VolarError, match="cannot be resumed from"):
        again.load(tmp_path)
