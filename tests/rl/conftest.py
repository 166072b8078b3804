"""A small network that fits the simulator, as a policy on disk; and decisions without a simulator."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from volar.datasets.statistics import action_mask, field_statistics
from volar.rl.episodes import Job, Trajectory
from volar.rl.exploration import Exploration
from volar.rl.token_policy import TokenPolicy, token_policy
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.fr3 import FR3
from volar.vla.backbone import BackboneConfig
from volar.vla.configuration_volar import VolarConfig
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import VolarModel
from volar.vla.processor_volar import save_policy

IMAGE, WIDTH = 32, 32
OWN_TOKENS = Exploration(1.0, 0.0, 0.0)


def small_contract() -> PolicyContract:
    rng = np.random.default_rng(0)
    action = rng.uniform(FR3.action.low, FR3.action.high, (64, FR3.action.size)).astype(np.float32)
    action[:, 3:6] = 0.0  # as in every demonstration of the suite: the hand does not turn
    low, high = (*FR3.workspace_low, *[-1.0] * 6, 0.0), (*FR3.workspace_high, *[1.0] * 6, FR3.gripper_width_max)
    state = rng.uniform(low, high, (64, len(FR3.state_names))).astype(np.float32)
    return PolicyContract(
        robot=FR3.name,
        action=FR3.action,
        state_names=FR3.state_names,
        state_units=FR3.state_units,
        cameras=tuple(CameraSpec(name, IMAGE, IMAGE) for name in FR3.cameras),
        chunk_length=8,
        execute_steps=4,
        statistics={
            "action": field_statistics(action, action_mask(FR3.action)),
            "observation.state": field_statistics(state),
        },
    )


def small_model(contract: PolicyContract, seed: int = 0) -> VolarModel:
    torch.manual_seed(seed)
    backbone = BackboneConfig(
        image_size=IMAGE, patch_size=4, vision_layers=1, layers=1, width=WIDTH, vision_width=WIDTH, heads=2
    )
    return VolarModel(VolarConfig(backbone=backbone, head_width=32), contract).eval()


def small_policy(exploration: Exploration = OWN_TOKENS, privileged: int = 3, execute_steps: int = 4) -> TokenPolicy:
    contract = replace(small_contract(), execute_steps=execute_steps)
    return token_policy(small_model(contract), contract, privileged=privileged, exploration=exploration)


def seen(count: int, seed: int = 0, privileged: int = 3) -> dict[str, np.ndarray]:
    """Observations of which the trunk was computed before."""
    rng = np.random.default_rng(seed)
    return {
        "queries": rng.normal(size=(count, 8, WIDTH)).astype(np.float32),
        "scaled_points": rng.normal(size=(count, 2, 3)).astype(np.float32),
        "state": rng.uniform(-0.3, 0.3, (count, 10)).astype(np.float32),
        "privileged": rng.normal(size=(count, privileged)).astype(np.float32),
    }


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def trajectory(
    inputs: dict[str, np.ndarray], tokens: np.ndarray, rewards: list[float], group: int = 0, terminated: bool = True
) -> Trajectory:
    """N decisions of four steps each, as an episode."""
    count = len(rewards)
    return Trajectory(
        job=Job("reach", 0, 0, group),
        inputs=inputs,
        tokens=tokens.astype(np.int16),
        rewards=np.array(rewards, np.float32),
        steps=np.full(count, 4, np.int32),
        last=np.zeros(inputs["privileged"].shape[1], np.float32),
        points=np.zeros((count, 3, 5), np.float32),
        success=sum(rewards) > 0,
        terminated=terminated,
    )


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy directory with random weights."""
    folder: Path = tmp_path_factory.mktemp("policy") / "small"
    contract = small_contract()
    tokenizer = InstructionTokenizer.load()
    save_policy(folder, small_model(contract), contract, tokenizer)
    return folder


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """The functions above: `contract()`, `model(contract)`, `policy(...)`, `seen(count)`, `tensors`, `trajectory`."""
    return SimpleNamespace(
        contract=small_contract,
        model=small_model,
        policy=small_policy,
        seen=seen,
        tensors=tensors,
        trajectory=trajectory,
        own_tokens=OWN_TOKENS,
    )
