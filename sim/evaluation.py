"""Many episodes over worker processes: jobs out, records in, results by task.

Each worker has its own copy of the policy (one thread) and its own renderers. Jobs and records are plain values;
which worker runs an episode, and when, changes nothing in it.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.sim.closed_loop import ClosedLoop, EpisodeRecord
from volar.sim.wilson import wilson_interval
from volar.sim.worker_pool import worker_pool


@dataclass(frozen=True)
class Bench:
    """What a worker needs to run any episode: the policy's folder, the robot, the latency [s]."""

    policy: str
    robot: str
    latency_s: float


@dataclass(frozen=True)
class Job:
    """One episode to run; `video`: the file to film it into, or an empty string."""

    task: str
    condition: str
    index: int
    seed: int
    video: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the other episodes of an evaluation."""
        return self.task, self.condition, self.index


def run_jobs(bench: Bench, jobs: Sequence[Job], workers: int) -> Iterator[EpisodeRecord]:
    """Records in the order in which episodes finish.

    Raises `VolarError` with the worker's reason when no episode can run there (no OpenGL, a damaged policy), or
    when a worker dies.
    """
    with worker_pool(max(1, min(workers, len(jobs)))) as pool:
        futures: list[Future[dict[str, Any]]] = [pool.submit(_run, bench, job) for job in jobs]
        for future in as_completed(futures):
            answer = future.result()
            if "fatal" in answer:
                raise VolarError(answer["fatal"])
            yield EpisodeRecord.from_dict(answer)


def _run(bench: Bench, job: Job) -> dict[str, Any]:
    """In the worker: the record as plain values, or {"fatal": reason}."""
    try:
        loop = _closed_loop(bench, job.task)
        if not job.video:
            return loop.run(job.seed, job.index, job.condition).to_dict()
        return _film(loop, job).to_dict()
    except Exception as error:  # an exception of a class with arguments of its own cannot be sent back as it is
        known = isinstance(error, VolarError)
        return {"fatal": str(error) if known else f"{type(error).__name__}: {error}"}


def _film(loop: ClosedLoop, job: Job) -> EpisodeRecord:
    from volar.sim.video import Film, write_mp4

    film = Film(loop.world.model)
    try:
        record = loop.run(job.seed, job.index, job.condition, after_step=lambda world: film.shoot(world.data))
        write_mp4(Path(job.video), film.frames, loop.world.spec.action.rate_hz)
        return record
    finally:
        film.close()


@functools.cache
def _closed_loop(bench: Bench, task: str) -> ClosedLoop:
    return ClosedLoop(_policy(bench.policy), task, bench.robot, bench.latency_s)


@functools.cache
def _policy(path: str) -> Any:
    from volar.robots.policies import load_policy

    return load_policy(Path(path))


def tally(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Success rate with its Wilson interval; an episode that broke down counts as a failure."""
    successes = sum(record.success for record in records)
    return {
        "successes": successes,
        "episodes": len(records),
        "success_rate": successes / len(records),
        "wilson95": list(wilson_interval(successes, len(records))),
        "invalid": sum(not record.valid for record in records),
    }


def summarize(records: Sequence[EpisodeRecord], tasks: Iterable[str]) -> dict[str, Any]:
    """`overall`, `tasks` and `episodes` of one condition, ordered by task and index."""
    by_task = {task: sorted((r for r in records if r.task == task), key=lambda r: r.index) for task in tasks}
    ordered = [record for found in by_task.values() for record in found]
    return {
        "overall": tally(ordered),
        "tasks": {task: tally(found) for task, found in by_task.items()},
        "episodes": [record.to_dict() for record in ordered],
    }


def read_contract(folder: Path) -> PolicyContract:
    """The contract of a policy's folder, without loading its weights where it lies beside them."""
    if (folder / "contract.json").is_file():
        return PolicyContract.load(folder / "contract.json")
    from volar.robots.policies import load_policy

    return load_policy(folder).contract


def folder_sha256(folder: Path) -> str:
    """Hash of every file's name and content in a policy's folder."""
    digest = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What the numbers depend on, read without importing it."""
    found = {"python": platform.python_version()}
    for name in ("volar", "mujoco", "numpy", "ruckig", "mink", "torch", "transformers", "onnxruntime"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def append_record(path: Path, record: EpisodeRecord) -> None:
    """One line of JSON, on the disk when this returns to the caller's process."""
    with path.open("a") as file:
        file.write(json.dumps(record.to_dict()) + "\n")


def read_records(path: Path) -> list[EpisodeRecord]:
    """The records of an interrupted evaluation; a last line cut short is dropped from the file."""
    if not path.is_file():
        return []
    records, whole = [], 0
    for line in path.read_text().splitlines(keepends=True):
        try:
            records.append(EpisodeRecord.from_dict(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            break
        whole += len(line.encode())
    os.truncate(path, whole)
    return records
