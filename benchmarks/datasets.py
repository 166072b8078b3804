"""Figures of datasets: encoding, writing, reading, decoding into the cache, batches. `python -P benchmarks/datasets.py`

Prints one line a figure, then a table of training loaders: LeRobot's own `LeRobotDataset` with torch's `DataLoader`,
and Volar's with and without the decoded cache, in turn in one run (`--loaders` for the table alone), the median of
`--rounds`; two workers, shuffled, two cameras of 128 x 128, chunks of 8, batches of 64. Nothing is kept. The images are
gradients with blocks and a little noise, which PNG packs about as well as renderings.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.datasets.action_chunks import ActionChunks, ShuffledIndices
from volar.datasets.augmentation import Augmentation
from volar.datasets.encoded_frames import encoded_frames
from volar.datasets.episode import POINTS_SHAPE, Episode
from volar.datasets.episode_writer import EpisodeWriter
from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_format import read_episodes
from volar.datasets.lerobot_layout import encode_episode
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.fr3 import FR3

AUGMENTED = Augmentation(crop=0.9, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--size", type=int, default=96, help="[pixels], both cameras")
    parser.add_argument("--loaders", action="store_true", help="only the table of loaders")
    parser.add_argument("--batches", type=int, default=60, help="of each loader, a round")
    parser.add_argument("--rounds", type=int, default=3, help="of all loaders, in turn")
    options = parser.parse_args()
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {load}, {date.today()}")
    if not options.loaders:
        figures(options)
    compare_loaders(options)


def figures(options: argparse.Namespace) -> None:
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


def compare_loaders(options: argparse.Namespace) -> None:
    """Samples/s of each loader: the median of the rounds, taken in turn, after each one's workers have started."""
    import statistics

    from rich.console import Console
    from rich.table import Table

    cameras = tuple(CameraSpec(name, 128, 128) for name in ("front", "wrist"))
    contract = PolicyContract("fr3", FR3.action, FR3.state_names, FR3.state_units, cameras, 8, 4)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "dataset"
        writer = EpisodeWriter.create(root, contract)
        append_all(writer, [encode_episode(example(contract, options.steps, rng), contract) for _ in range(100)])
        contract = writer.finalize()
        start = time.perf_counter()
        cache = FrameCache.build(root)
        built = time.perf_counter() - start
        loaders: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
            "LeRobotDataset + DataLoader": lambda: lerobot_loader(root),
            "Mixture, encoded frames": lambda: mixture_loader(encoded_frames(root), contract),
            "Mixture, decoded cache": lambda: mixture_loader(cache, contract),
            "Mixture, decoded cache, augmented": lambda: mixture_loader(cache, contract, AUGMENTED),
        }
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(options.rounds):
            for name, make in loaders.items():
                rates[name].append(samples_per_s(make(), options.batches))
    table = Table(
        "loader",
        "samples/s",
        "least to most",
        "of LeRobot's",
        title=f"two workers; the cache was built in {built:.1f} s",
    )
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, rate in medians.items():
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        table.add_row(name, f"{rate:,.0f}", spread, f"{rate / next(iter(medians.values())):.1f}x")
    Console(width=100).print(table)


def lerobot_loader(root: Path) -> Iterable[dict[str, Any]]:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from torch.utils.data import DataLoader

    dataset = LeRobotDataset("volar/benchmark", root=root, delta_timestamps={"action": [i / 10 for i in range(8)]})
    return DataLoader(dataset, batch_size=64, shuffle=True, num_workers=2)


def mixture_loader(
    frames: FrameCache, contract: PolicyContract, augmentation: Augmentation | None = None
) -> Iterable[dict[str, Any]]:
    from volar.datasets.mixture import Mixture, MixtureLoader, Source

    source = Source("only", 1.0, frames, contract)
    return MixtureLoader(Mixture([source], batch_size=64, seed=0, augmentation=augmentation), workers=2)


def samples_per_s(loader: Iterable[dict[str, Any]], batches: int, warm_up: int = 8) -> float:
    """Over whole epochs where the loader ends before. A batch counts when its images are in this process."""
    stream = (batch for _ in iter(int, 1) for batch in loader)
    samples, start = 0, 0.0
    for k, batch in enumerate(islice(stream, warm_up + batches)):
        if k == warm_up:
            start = time.perf_counter()
        elif k > warm_up:
            samples += len(batch["observation.images.front"])
    return samples / (time.perf_counter() - start)


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
