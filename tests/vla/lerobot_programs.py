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

TASK = "lift the zyx block"  # of which the shipped vocabulary lacks a word
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
                instruction=TASK,
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


def demonstrations(policy: Any) -> dict[str, Any]:
    """A batch of four, as lerobot-train gives it, of actions in the middle of their range."""
    size, actions = len(policy.contract.state_names), (4, policy.contract.chunk_length, policy.contract.action.size)
    rng = torch.Generator().manual_seed(0)
    images = {f"observation.images.{c.name}": (4, 3, c.height, c.width) for c in policy.contract.cameras}
    return (
        {name: torch.rand(shape, generator=rng) for name, shape in images.items()}
        | {
            "observation.state": torch.zeros(4, size),
            "action": policy.action_offset.expand(actions),  # 0 when normalized
            "task": [TASK] * 4,
            "action_is_pad": torch.zeros(actions[:2], dtype=torch.bool),
        }
    )


def learn(module: Any, batch: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """One step of what `module` makes a loss of."""
    module(batch)[0].backward()
    optimizer.step()
    optimizer.zero_grad()


def share(policy: str, output: str) -> None:
    """One of several processes of torchrun that have a policy's weights between them: learns, saves, and learns on.

    As `lerobot-train` does under Accelerate's FSDP, whose class this is, but for what works on GPUs alone: Accelerate
    wraps nothing on CPUs, and LeRobot moves what it gathers to the CPU, where torch 2.11 frees it if it was there.
    """
    from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType

    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    torch.distributed.init_process_group("gloo")
    whole = VolarPolicy.from_pretrained(policy)
    batch = demonstrations(whole)
    shared = FullyShardedDataParallel(whole, device_id=torch.device("cpu"), use_orig_params=True)
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.1)
    first = FullStateDictConfig(rank0_only=True)
    for step in (1, 2):
        learn(shared, batch, optimizer)
        with FullyShardedDataParallel.state_dict_type(shared, StateDictType.FULL_STATE_DICT, first):
            weights = shared.state_dict()
        if torch.distributed.get_rank() == 0:
            shared.module.save_pretrained(Path(output) / str(step), state_dict=weights)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    share(*sys.argv[1:])
