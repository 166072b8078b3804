"""LeRobot's own programs and loaders in tests, and a dataset for them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from volar.datasets.episode import POINTS_SHAPE, Episode
from volar.datasets.episode_writer import EpisodeWriter
from volar.robots.contract import PolicyContract
from volar.robots.interface import Observation
from volar.vla.checkpoint_policy import load

PLUGIN = "volar.vla.lerobot_plugin"
Look = Callable[[int], Observation]


def write_episodes(folder: Path, contract: PolicyContract) -> Path:
    """A LeRobot dataset of three short episodes, written as volar-collect does."""
    writer = EpisodeWriter.create(folder, contract, shard_episodes=4, source={"seed": 0})
    for number in range(3):
        rng = np.random.default_rng(number)
        writer.append(
            Episode(
                images={c.name: rng.integers(0, 255, (12, c.height, c.width, 3), np.uint8) for c in contract.cameras},
                state=rng.uniform(-0.5, 0.5, (12, len(contract.state_names))).astype(np.float32),
                actions=rng.uniform(contract.action.low, contract.action.high, (12, 7)).astype(np.float32),
                points=np.full((12, *POINTS_SHAPE), np.nan, np.float32),
                instruction="lift the zyx block",
                task="lift",
                seed=number,
                success=True,
            )
        )
    writer.finalize()
    return folder


def lerobot_train(home: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lerobot.scripts.lerobot_train", f"--policy.discover_packages_path={PLUGIN}", *words],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def lerobot_batch(observation: Observation) -> dict[str, Any]:
    """As LeRobot's environments and robots give it."""
    images = {f"observation.images.{k}": torch.tensor(v).permute(2, 0, 1) / 255 for k, v in observation.images.items()}
    return {**images, "observation.state": torch.tensor(observation.state), "task": observation.instruction}


def acts_the_same(directory: Path, look: Look) -> None:
    """Opened by LeRobot's loader and processors, and by ours; where something is drawn, from the same noise."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    __import__(PLUGIN)
    config = PreTrainedConfig.from_pretrained(directory, cli_overrides=["--device=cpu"])
    theirs = get_policy_class(config.type).from_pretrained(directory, config=config)
    before, after = make_pre_post_processors(config, str(directory))
    ours = load(directory)
    for seed in range(3):
        expected = ours.graph(*ours.tensors(look(seed)))[0][0].detach().numpy()
        theirs.reset()
        chunk = after(theirs.predict_action_chunk(before(lerobot_batch(look(seed)))))
        np.testing.assert_allclose(chunk[0].numpy(), expected, atol=1e-6)
        steps = [after(theirs.select_action(before(lerobot_batch(look(seed))))) for _ in range(4)]
        np.testing.assert_allclose(torch.cat(steps).numpy(), expected[:4], atol=1e-6)
