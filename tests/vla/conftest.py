"""A small real dataset on disk (a frame cache with its contract), and a small network that fits it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from volar.datasets.frame_cache import FrameCache
from volar.datasets.statistics import action_mask, field_statistics
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.fr3 import FR3
from volar.robots.interface import Observation
from volar.vla.backbone import BackboneConfig
from volar.vla.configuration_volar import VolarConfig
from volar.vla.modeling_volar import VolarModel

IMAGE = 32
TEXTS = ("lift the red block", "put the blue block on the plate")


def frames(count: int, labelled: bool = True) -> tuple[FrameCache, PolicyContract]:
    """`count` frames in episodes of eight, random but plausible."""
    rng = np.random.default_rng(0)
    state = rng.uniform(-0.5, 0.5, (count, len(FR3.state_names))).astype(np.float32)
    action = rng.uniform(FR3.action.low, FR3.action.high, (count, FR3.action.size)).astype(np.float32)
    points = np.full((count, 2, 5), np.nan, np.float32)
    if labelled:
        points[:, 0] = rng.uniform(0, 1, (count, 5))
    cache = FrameCache.from_arrays(
        images={name: rng.integers(0, 255, (count, IMAGE, IMAGE, 3), np.uint8) for name in FR3.cameras},
        state=state,
        action=action,
        points=points,
        instruction_id=(np.arange(count) % len(TEXTS)).astype(np.int32),
        instructions=TEXTS,
        episode_end=np.minimum((np.arange(count) // 8 + 1) * 8, count).astype(np.int64),
    )
    contract = PolicyContract(
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
    return cache, contract


@pytest.fixture(scope="session")
def contract() -> PolicyContract:
    return frames(64)[1]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    cache, contract = frames(64)
    cache.save(tmp_path / "dataset", contract)
    return tmp_path / "dataset"


@pytest.fixture(scope="session")
def model(contract: PolicyContract) -> VolarModel:
    torch.manual_seed(0)
    backbone = BackboneConfig(image_size=IMAGE, patch_size=4, vision_layers=1, layers=2, width=32, vision_width=32)
    return VolarModel(VolarConfig(backbone=backbone, head_width=32), contract).eval()


@pytest.fixture
def look(contract: PolicyContract) -> Callable[[int], Observation]:
    """`look(seed)`: a random observation inside the contract."""

    def observation(seed: int) -> Observation:
        rng = np.random.default_rng(seed)
        images = {c.name: rng.integers(0, 255, (c.height, c.width, 3), np.uint8) for c in contract.cameras}
        return Observation(images, rng.uniform(-0.3, 0.3, 10).astype(np.float32), "lift the red block", 5)

    return observation
