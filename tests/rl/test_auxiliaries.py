"""What is learned beside the reward: the demonstrations' actions, and pointing."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from volar.datasets.frame_cache import FrameCache
from volar.rl.auxiliaries import Imitation, Pointing
from volar.rl.learner import Auxiliary
from volar.rl.token_policy import TokenPolicy, token_policy
from volar.robots.contract import ContractError
from volar.vla.instruction_tokenizer import InstructionTokenizer

FRAMES, IMAGE = 32, 32


def cache(small: SimpleNamespace) -> FrameCache:
    rng, contract = np.random.default_rng(0), small.contract()
    points = np.full((FRAMES, 3, 5), np.nan, np.float32)
    points[:, 0] = rng.uniform(0, 1, (FRAMES, 5))
    return FrameCache.from_arrays(
        images={c.name: rng.integers(0, 255, (FRAMES, IMAGE, IMAGE, 3), np.uint8) for c in contract.cameras},
        state=rng.uniform(-0.3, 0.3, (FRAMES, 10)).astype(np.float32),
        action=rng.uniform(contract.action.low, contract.action.high, (FRAMES, 7)).astype(np.float32),
        points=points,
        instruction_id=np.zeros(FRAMES, np.int32),
        instructions=("lift the red block",),
        episode_end=((np.arange(FRAMES) // 8 + 1) * 8).astype(np.int64),
    )


def whole(small: SimpleNamespace) -> TokenPolicy:
    contract = small.contract()
    return token_policy(small.model(contract), contract, exploration=small.own_tokens, trains="all")


def falls(auxiliary: Auxiliary, policy: TokenPolicy) -> bool:
    """The loss is smaller after forty steps on it."""
    optimizer = torch.optim.Adam(policy.actor_parameters, 3e-3)
    found = []
    for _ in range(40):
        loss = auxiliary.loss(policy, np.random.default_rng(0))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(float(loss.detach()))
    return found[-1] < 0.9 * found[0]


def test_demonstrations_can_be_imitated_on_the_way(small: SimpleNamespace, tmp_path: Path) -> None:
    contract = small.contract()
    cache(small).save(tmp_path / "data", contract)
    assert falls(Imitation(tmp_path / "data", contract, InstructionTokenizer.load()), whole(small))


def test_demonstrations_of_another_robot_are_refused(small: SimpleNamespace, tmp_path: Path) -> None:
    contract = small.contract()
    cache(small).save(tmp_path / "data", replace(contract, robot="ur5e"))
    with pytest.raises(ContractError, match="ur5e"):
        Imitation(tmp_path / "data", contract, InstructionTokenizer.load())


def test_pointing_is_learned_in_the_rollouts_own_pictures(small: SimpleNamespace) -> None:
    frames = cache(small)
    ids = InstructionTokenizer.load().encode(["lift the red block"] * FRAMES)
    inputs = {name: np.asarray(image) for name, image in frames.images.items()}
    inputs |= {"state": frames.state, "input_ids": ids, "privileged": np.zeros((FRAMES, 3), np.float32)}
    made = small.trajectory(inputs, np.zeros((FRAMES, 4, 7)), [0.0] * FRAMES)
    pointing, policy = Pointing(), whole(small)
    pointing.look_at([replace(made, points=frames.points)])
    before = [p.clone() for p in policy.vla.action_head.parameters()]
    assert falls(pointing, policy)
    # It teaches the trunk alone: what acts is left to the reward.
    assert all(torch.equal(a, b) for a, b in zip(before, policy.vla.action_head.parameters(), strict=True))
