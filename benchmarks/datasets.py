"""Figures of datasets: encoding, writing, reading, decoding into the cache, batches. `python benchmarks/datasets.py`

Prints one line a figure; nothing is kept. The images are gradients with blocks and a little noise, which PNG
packs about as well as renderings.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from volar.datasets.action_chunks import ActionChunks, ShuffledIndices
from volar.datasets.episode import POINTS_SHAPE, Episode
from volar.datasets.episode_writer import EpisodeWriter
from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_format import read_episodes
from volar.datasets.lerobot_layout import encode_episode
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.fr3 import FR3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--size", type=int, default=96, help="[pixels], both cameras")
    options = parser.parse_args()
    cameras = tuple(CameraSpec(name, options.size, options.size) for name in ("front", "wrist"))
    contract = PolicyContract("fr3", FR3.action, FR3.state_names, FR3.state_units, cameras, 8, 4)
    rng = np.random.default_rng(0)
    episodes = [example(contract, options.steps, rng) for _ in range(options.episodes)]
    count, images = len(episodes), 2 * options.steps * len(episodes)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "dataset"
        writer = EpisodeWriter.create(root, contract)
        encoded: list[bytes] = []
        report(
            "encode_episode",
            "episodes/min a core",
            60 * count,
            lambda: encoded.extend(encode_episode(e, contract) for e in episodes),
        )
        report(
            "EpisodeWriter.append of encoded episodes",
            "episodes/min",
            60 * count,
            lambda: append_all(writer, encoded),
        )
        report("finalize", "episodes/s", count, writer.finalize)
        report("read_episodes", "images/s", images, lambda: [None for _ in read_episodes(root)])
        report("FrameCache.build, all cores", "images/s", images, lambda: FrameCache.build(root))
        report("FrameCache.build, nothing to do", "opens/s", 1, lambda: FrameCache.build(root))
        chunks = ActionChunks(FrameCache.build(root), contract.chunk_length)
        order = ShuffledIndices(len(chunks), 64, seed=0)
        report(
            "ActionChunks.batch of 64", "samples/s", 64 * 200, lambda: [chunks.batch(next(order)) for _ in range(200)]
        )


def append_all(writer: EpisodeWriter, encoded: list[bytes]) -> None:
    for one in encoded:
        writer.append(one)


def report(name: str, unit: str, amount: float, work: Callable[[], object]) -> None:
    start = time.perf_counter()
    work()
    print(f"{name:45s} {amount / (time.perf_counter() - start):12,.0f} {unit}")


def example(contract: PolicyContract, steps: int, rng: np.random.Generator) -> Episode:
    """An episode whose images change a little from step to step."""

    def image(height: int, width: int) -> NDArray[np.uint8]:
        canvas = np.tile(np.linspace(90, 200, height)[:, None, None], (1, width, 3))
        for _ in range(10):
            y, x = rng.integers(0, height - 8), rng.integers(0, width - 8)
            canvas[y : y + 14, x : x + 14] = rng.integers(0, 256, 3)
        return (canvas + rng.integers(-1, 2, canvas.shape)).clip(0, 255).astype(np.uint8)

    return Episode(
        images={c.name: np.stack([image(c.height, c.width) for _ in range(steps)]) for c in contract.cameras},
        state=rng.normal(size=(steps, len(contract.state_names))).astype(np.float32),
        actions=rng.uniform(-0.05, 0.05, (steps, contract.action.size)).astype(np.float32),
        points=np.full((steps, *POINTS_SHAPE), np.nan, np.float32),
        instruction="lift the red block",
        task="lift",
        success=True,
    )


if __name__ == "__main__":
    main()
