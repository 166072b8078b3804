"""Generated scenes on disk: the data of `volar-train stage=grounding`, as a frame cache with a contract.

With `questions`, each has a question and its answer instead of a sentence to point by (`volar-train questions=`).

    scenes.json                                         the settings; says whose the folder is, from the first moment
    images/<camera>.npy, state.npy, ... , cache.json    see `volar.datasets.frame_cache`; the last makes it complete
    meta/volar_contract.json                            cameras, state and its statistics
    questions.json                                      of questions: their answers, see `volar.datasets.questions`

Scenes come in shards that a seed and the shard's number determine, so neither the number of workers nor an
interruption changes the data; finished shards are found again on resuming.
"""

import io
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volar.datasets.durable_file import OutputExists, disk_errors, write_durably
from volar.datasets.episode import HAND_ROW, POINT_NAMES
from volar.datasets.frame_cache import SMALL, FrameCache, reserved_array
from volar.datasets.lerobot_layout import CONTRACT, FRAMES
from volar.datasets.questions import FILE as ANSWERS
from volar.datasets.questions import write_answers
from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.robots.output_folder import contents
from volar.sim.randomization import fingerprint
from volar.sim.worker_pool import worker_pool

if TYPE_CHECKING:
    from volar.sim.grounding import Scenes

SHARD = 500  # scenes
_SETTINGS = "scenes.json"


@dataclass(frozen=True)
class ScenesConfig:
    """`frames` scenes, one sentence or question each, with the robot and the square cameras of `contract`, each varied
    as `randomization` says."""

    frames: int
    seed: int
    contract: PolicyContract
    questions: bool = False
    randomization: str = "none"

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self.contract.cameras)

    @property
    def image_size(self) -> int:
        """[pixels]"""
        return self.contract.cameras[0].width

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the scenes, as plain values."""
        return {
            "frames": self.frames,
            "seed": self.seed,
            "robot": self.contract.robot,
            "cameras": list(self.cameras),
            "image_size": self.image_size,
            "points": list(POINT_NAMES),
            **({"kind": "questions"} if self.questions else {}),
            **({"randomization": fingerprint(self.randomization)} if self.randomization != "none" else {}),
        }


def collect_scenes(
    config: ScenesConfig, output: Path, workers: int, *, resume: bool = False, overwrite: bool = False
) -> None:
    """Renders the scenes, with a progress bar.

    `resume`: goes on with what an interrupted run of the same settings left. `overwrite`: replaces scenes, and
    nothing else. Raises `VolarError` when the folder is taken, and when the disk is full.
    """
    from rich.console import Console
    from rich.progress import Progress

    _prepare(config, output, resume, overwrite)
    shards = -(-config.frames // SHARD)
    if not (output / FRAMES).is_file():
        with disk_errors(output):
            _reserve(config, output)
        todo = [i for i in range(shards) if not _shard_file(output, i).is_file()]
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("scenes", total=shards, completed=shards - len(todo))
            for _ in _write_shards(config, output, todo, workers):
                bar.advance(task)
        _finish(config, output, shards)
    shutil.rmtree(output / "shards", ignore_errors=True)
    print(f"{config.frames} {'questions' if config.questions else 'scenes'} in {output}")


def _prepare(config: ScenesConfig, output: Path, resume: bool, overwrite: bool) -> None:
    """Leaves a folder that says what it is for. Raises `VolarError` when it is another's."""
    if output.exists() and not output.is_dir():
        raise OutputExists(f"{output} is a file; give a folder")
    found = contents(output)
    if found and _SETTINGS not in found:
        raise OutputExists(f"{output} holds something else ({', '.join(found[:4])}); give another output")
    if found and resume:
        written = json.loads((output / _SETTINGS).read_text())
        before, now = ({"kind": "scenes", "randomization": "none", **said} for said in (written, config.settings))
        changed = [
            f"{key}: {before.get(key)}, now {now.get(key)}"
            for key in sorted(before | now)
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise VolarError(
                f"{output} was begun with other settings ({'; '.join(changed)}); use them, or overwrite=true"
            )
        return
    if found and not overwrite:
        fix = "continue them with resume=true, replace them with overwrite=true, or give another output"
        raise OutputExists(f"{output} holds scenes: {fix}")
    if found:
        _remove(output)
    write_durably(output / _SETTINGS, json.dumps(config.settings).encode())


def _remove(output: Path) -> None:
    """What `collect_scenes` writes, nothing else; what says so stays. What says that there are images goes first."""
    (output / FRAMES).unlink(missing_ok=True)
    with disk_errors(output):
        for folder in (output / "shards", output / "images"):
            if folder.is_dir():
                shutil.rmtree(folder)
    for name in (CONTRACT, ANSWERS, *(f"{name}.npy" for name in SMALL)):
        (output / name).unlink(missing_ok=True)


def _reserve(config: ScenesConfig, output: Path) -> None:
    (output / "images").mkdir(parents=True, exist_ok=True)
    (output / "shards").mkdir(exist_ok=True)
    for name in config.cameras:
        path = output / "images" / f"{name}.npy"
        if not path.is_file():
            reserved_array(path, (config.frames, config.image_size, config.image_size, 3))


def _shard_file(output: Path, index: int) -> Path:
    return output / "shards" / f"{index:05d}.npz"


def _write_shards(config: ScenesConfig, output: Path, todo: list[int], workers: int) -> Iterator[None]:
    """Yields after each shard; with one worker this process writes them."""
    if workers == 1:
        for index in todo:
            _write_shard(config, output, index)
            yield
        return
    with worker_pool(workers) as pool:
        for job in as_completed([pool.submit(_write_shard, config, output, i) for i in todo]):
            yield job.result()


def _write_shard(config: ScenesConfig, output: Path, index: int) -> None:
    """Renders shard `index` into the mapped arrays, then says so with its small arrays."""
    from volar.sim.grounding import render_scenes

    rng = np.random.default_rng([config.seed, index])
    place = slice(index * SHARD, min((index + 1) * SHARD, config.frames))
    look = (config.contract.robot, config.cameras, config.image_size, config.randomization, config.seed)
    scenes = render_scenes(rng, place.stop - place.start, *look)
    for name, images in scenes.images.items():
        target = np.load(output / "images" / f"{name}.npy", mmap_mode="r+")
        target[place] = images
        target.flush()
    buffer = io.BytesIO()
    points, texts = _labels(config, scenes, rng)
    points[:, HAND_ROW] = scenes.hand
    np.savez(buffer, state=scenes.state, points=points, texts=texts)
    write_durably(_shard_file(output, index), buffer.getvalue())


def _labels(
    config: ScenesConfig, scenes: "Scenes", rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Points (N, 3, 5), but for the hand's, and texts (N, 1): sentences; or (N, 3): questions, answers, kinds."""
    if config.questions:
        from volar.sim.questions import ask

        asked = [ask(scenes, i, rng) for i in range(len(scenes))]
        return np.stack([q.points for q in asked]), np.array([(q.text, q.answer, q.kind) for q in asked])
    from volar.sim.grounding import grounding_samples

    samples = [grounding_samples(scenes, i, rng)[0] for i in range(len(scenes))]
    return np.stack([points for _, points in samples]), np.array([[text] for text, _ in samples])


def _finish(config: ScenesConfig, output: Path, count: int) -> None:
    """Joins the shards' small arrays, writes the contract, and makes the cache complete."""
    from volar.datasets.statistics import field_statistics

    parts: list[dict[str, NDArray[Any]]] = []
    for index in range(count):
        with np.load(_shard_file(output, index)) as shard:
            parts.append(dict(shard))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    texts, ids = np.unique(joined["texts"], axis=0, return_inverse=True)  # (instructions, 1 or 3), (N,)
    contract = replace(config.contract, statistics={"observation.state": field_statistics(joined["state"])})
    write_durably(output / CONTRACT, (contract.to_json() + "\n").encode())
    if config.questions:
        write_answers(output, texts[:, 1].tolist(), texts[:, 2].tolist())
    FrameCache.from_arrays(
        images={name: np.load(output / "images" / f"{name}.npy", mmap_mode="r") for name in config.cameras},
        state=joined["state"],
        action=np.zeros((config.frames, contract.action.size), np.float32),  # scenes have none; training masks them
        points=joined["points"].astype(np.float32),
        instruction_id=ids.astype(np.int32),
        instructions=texts[:, 0].tolist(),
    ).complete(output)
