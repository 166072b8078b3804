"""A small real dataset on disk (a frame cache with its contract), and a small network that fits it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from volar.datasets.frame_cache import FrameCache
from volar.datasets.questions import write_answers
from volar.datasets.statistics import action_mask, field_statistics
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.fr3 import FR3
from volar.robots.interface import Observation, Policy
from volar.vla.backbone import BackboneConfig
from volar.vla.configuration_volar import VolarConfig
from volar.vla.modeling_volar import VolarModel
from volar.vla.processor_volar import TorchPolicy
from volar.vla.train import TrainConfig

IMAGE = 32
TEXTS = ("lift the red block", "put the blue block on the plate")


def frames(count: int, labelled: bool = True) -> tuple[FrameCache, PolicyContract]:
    """`count` frames in episodes of eight, random but plausible."""
    rng = np.random.default_rng(0)
    state = rng.uniform(-0.5, 0.5, (count, len(FR3.state_names))).astype(np.float32)
    action = rng.uniform(FR3.action.low, FR3.action.high, (count, FR3.action.size)).astype(np.float32)
    points = np.full((count, 3, 5), np.nan, np.float32)
    if labelled:
        points[:, 0] = rng.uniform(0, 1, (count, 5))
        points[::3, 1] = rng.uniform(0, 1, (len(points[::3]), 5))
        points[1::2, 2] = rng.uniform(0, 1, (len(points[1::2]), 5))
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


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Pictures of one colour each, and what colour that is: 96 of two colours."""
    cache, contract = frames(96)
    truth = np.arange(96) % 2
    images = {name: np.zeros_like(pictures) for name, pictures in cache.images.items()}
    for pictures in images.values():
        pictures[truth == 0, ..., 0] = pictures[truth == 1, ..., 2] = 200
    ends = np.arange(1, 97)  # a scene is an episode of its own
    changes = {"images": images, "instruction_id": truth.astype(np.int32), "episode_end": ends}
    asked = replace(cache, **changes, points=np.full_like(cache.points, np.nan), instructions=("what color is it",) * 2)
    asked.save(tmp_path / "questions", contract)
    write_answers(tmp_path / "questions", ["red", "blue"], ["color", "color"])
    return tmp_path / "questions"


@pytest.fixture
def settings(dataset: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """`settings(steps=3)`: those of a short training run in `tmp_path`, with changes."""
    base = TrainConfig(
        dataset=dataset, output=tmp_path / "run", steps=6, batch_size=8, warmup_steps=2, precision="fp32", threads=1
    )
    return lambda **changes: replace(base, **changes)


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


@pytest.fixture
def require_same_actions(look: Callable[[int], Observation]) -> Callable[[TorchPolicy, Policy, int], None]:
    """`(checkpoint, artifact, count)`: the same chunks for `count` observations, but where two tokens tie.

    Untrained networks have ties within rounding, and which token wins them differs from processor to processor.
    """

    def require(checkpoint: TorchPolicy, artifact: Policy, count: int) -> None:
        decided = 0
        for seed in range(count):
            checkpoint.reset(0)  # flow: from the noise of an artifact
            seen = look(seed)
            with torch.inference_mode():
                margin = float(checkpoint.graph.answer(*checkpoint.tensors(seen))[2])
            if margin > 1e-4:
                a, b = checkpoint.predict(seen).actions, artifact.predict(seen).actions
                np.testing.assert_allclose(a, b, atol=1e-4, err_msg=f"observation {seed}, margin {margin:.1e}")
                decided += 1
        assert decided > 0.7 * count

    return require
