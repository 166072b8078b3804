"""Losses beside the reward: imitating demonstrations, and pointing where the simulator knows what was asked for."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from volar.datasets.action_chunks import ActionChunks
from volar.datasets.lerobot_format import load_contract
from volar.datasets.normalizer import Normalizer
from volar.rl.episodes import Trajectory
from volar.rl.token_policy import TokenPolicy
from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.losses import action_loss, point_losses
from volar.vla.modeling_volar import Outputs
from volar.vla.training_data import open_frames
from volar.vla.training_run import require_same_inputs

_BATCH = 64


class Imitation:
    """The action loss of cloning, on `_BATCH` frames of a dataset a step: what was learned is not forgotten.

    Raises `ContractError` listing the fields in which the dataset does not fit the policy.
    """

    def __init__(self, dataset: Path, contract: PolicyContract, tokenizer: InstructionTokenizer) -> None:
        require_same_inputs(load_contract(dataset), contract, dataset)
        cache = open_frames(dataset)
        if cache.camera_mask:
            lacking = ", ".join(cache.camera_mask)
            raise VolarError(f"episodes of {dataset} lack {lacking}, which this policy always sees; convert others")
        self._chunks = ActionChunks(cache, contract.chunk_length)
        self._normalizer = Normalizer.of_contract(contract, "action")
        texts = [contract.instruction_template.format(instruction=text) for text in cache.instructions]
        self._ids = tokenizer.encode(texts)

    def loss(self, policy: TokenPolicy, rng: np.random.Generator) -> Tensor:
        batch = self._chunks.batch(rng.integers(len(self._chunks), size=_BATCH))
        obs = {name: torch.from_numpy(image) for name, image in batch.images.items()}
        obs |= {"state": torch.from_numpy(batch.state), "input_ids": torch.from_numpy(self._ids[batch.instruction_id])}
        logits = policy.vla.action_head(*policy.seen(obs))  # (B, H, A, 256)
        actions = torch.from_numpy(self._normalizer.normalize(batch.actions))
        return action_loss(logits, actions, torch.from_numpy(batch.action_mask))


class Pointing:
    """Where the named objects are, in the newest rollouts' own images. Labels are the simulator's, not an expert's:
    this is no reinforcement, and its gain is not RL's."""

    def __init__(self) -> None:
        self._obs: dict[str, Tensor] = {}
        self._points = torch.empty(0)

    def look_at(self, trajectories: list[Trajectory]) -> None:
        """From now on, these. They must hold images and labels (`Setting.images`, `Setting.pointing`)."""
        keys = [key for key in trajectories[0].inputs if key != "privileged"]
        self._obs = {key: torch.from_numpy(np.concatenate([t.inputs[key] for t in trajectories])) for key in keys}
        self._points = torch.from_numpy(np.concatenate([t.points for t in trajectories]))

    def loss(self, policy: TokenPolicy, rng: np.random.Generator) -> Tensor:
        rows = torch.as_tensor(rng.integers(len(self._points), size=_BATCH))
        trunk = policy.trunk({key: value[rows] for key, value in self._obs.items()})
        metres = policy.vla.point_head.to_metres(trunk.scaled_points)
        outputs = Outputs(torch.empty(0), trunk.patch_logits, trunk.points_uv, metres)
        std = torch.tensor(policy.vla.config.point_std)
        patch, place = point_losses(outputs, self._points[rows], std)
        return patch + place
