"""Generated scenes on disk: the data of `volar-train stage=grounding`, as a frame cache with a contract.

    images/<camera>.npy, state.npy, points.npy, ... , cache.json    see `volar.datasets.frame_cache`
    meta/volar_contract.json                                        cameras, state and its statistics

Scenes come in shards that a seed and the shard's number determine, so neither the number of workers nor an
interruption changes the data; finished shards are found again when the same command runs again.
"""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.errors import VolarError
from volar.robots.spec import load_robot

SHARD = 500  # scenes
_SETTINGS = "scenes.json"


@dataclass(frozen=True)
class ScenesConfig:
    """`frames` scenes, one sentence each; `image_size` pixels square."""

    frames: int
    seed: int = 0
    robot: str = "fr3"
    cameras: tuple[str, ...] = ("front", "wrist")
    image_size: int = 96


def collect_scenes(config: ScenesConfig, output: Path, workers: int) -> None:
    """Renders the scenes, with a progress bar; continues what an interrupted run of the same settings left.

    Raises `VolarError` when `output` holds something else.
    """
    from rich.progress import Progress

    settings = json.loads(json.dumps(asdict(config)))
    if (output / _SETTINGS).is_file():
        before = json.loads((output / _SETTINGS).read_text())
        if before != settings:
            raise VolarError(f"{output} holds scenes of other settings {before}; give another output or overwrite=true")
    elif output.exists() and any(output.iterdir()):
        raise VolarError(f"output {output} is not empty and holds no scenes; give another, or overwrite=true")
    if (output / "cache.json").is_file():
        return
    _allocate(config, output)
    (output / _SETTINGS).write_text(json.dumps(settings))
    shards = -(-config.frames // SHARD)
    todo = [i for i in range(shards) if not _shard_file(output, i).is_file()]
    # spawn: each worker makes its own renderer, and inherits none of this process's graphics state.
    with Progress() as bar, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        task = bar.add_task("scenes", total=shards, completed=shards - len(todo))
        for job in as_completed([pool.submit(_write_shard, config, output, i) for i in todo]):
            job.result()
            bar.advance(task)
    _finish(config, output, shards)


def _allocate(config: ScenesConfig, output: Path) -> None:
    (output / "images").mkdir(parents=True, exist_ok=True)
    (output / "shards").mkdir(exist_ok=True)
    for name in config.cameras:
        path = output / "images" / f"{name}.npy"
        shape = (config.frames, config.image_size, config.image_size, 3)
        if not path.is_file():
            np.lib.format.open_memmap(path, "w+", np.uint8, shape).flush()  # type: ignore[no-untyped-call]


def _shard_file(output: Path, index: int) -> Path:
    return output / "shards" / f"{index:05d}.npz"


def _write_shard(config: ScenesConfig, output: Path, index: int) -> None:
    """Renders shard `index` into the mapped arrays, then says so with its small arrays."""
    from volar.sim.grounding import grounding_samples, render_scenes

    rng = np.random.default_rng([config.seed, index])
    place = slice(index * SHARD, min((index + 1) * SHARD, config.frames))
    scenes = render_scenes(rng, place.stop - place.start, config.robot, config.cameras, config.image_size)
    for name, images in scenes.images.items():
        target = np.load(output / "images" / f"{name}.npy", mmap_mode="r+")
        target[place] = images
        target.flush()
    samples = [grounding_samples(scenes, i, rng)[0] for i in range(len(scenes))]
    texts, points = [text for text, _ in samples], np.stack([points for _, points in samples])
    temporary = _shard_file(output, index).with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, state=scenes.state, points=points, texts=np.array(texts))
    temporary.rename(_shard_file(output, index))


def _shards(output: Path, count: int) -> Iterator[Any]:
    for index in range(count):
        with np.load(_shard_file(output, index)) as shard:
            yield dict(shard)


def _finish(config: ScenesConfig, output: Path, count: int) -> None:
    """Joins the shards' small arrays, writes the contract, and marks the cache complete."""
    from volar.datasets.statistics import field_statistics

    spec = load_robot(config.robot)
    parts = list(_shards(output, count))
    state = np.concatenate([part["state"] for part in parts])
    texts = np.concatenate([part["texts"] for part in parts])
    instructions, ids = np.unique(texts, return_inverse=True)
    arrays = {
        "state": state,
        "action": np.zeros((config.frames, spec.action.size), np.float32),  # scenes have none; training masks them
        "points": np.concatenate([part["points"] for part in parts]).astype(np.float32),
        "episode_end": np.arange(1, config.frames + 1, dtype=np.int64),
        "instruction_id": ids.astype(np.int32),
    }
    for name, array in arrays.items():
        np.save(output / f"{name}.npy", array)
    cameras = tuple(CameraSpec(name, config.image_size, config.image_size) for name in config.cameras)
    contract = PolicyContract(
        robot=spec.name,
        action=spec.action,
        state_names=spec.state_names,
        state_units=spec.state_units,
        cameras=cameras,
        chunk_length=1,
        execute_steps=1,
        statistics={"observation.state": field_statistics(state)},
    )
    contract.save(output / "meta" / "volar_contract.json")
    about = {"cameras": list(config.cameras), "small": list(arrays), "instructions": instructions.tolist()}
    (output / "cache.json").write_text(json.dumps(about))
    shutil.rmtree(output / "shards")
