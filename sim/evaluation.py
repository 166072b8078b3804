"""Many episodes over worker processes: jobs out, records in.

Each worker has its own copy of the policy (one thread) and its own renderers. Jobs and records are plain values;
which worker runs an episode, and when, changes nothing in it. A worker that dies takes no other episode with it.
"""

import functools
import hashlib
import importlib.metadata
import platform
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from volar.robots.errors import VolarError
from volar.robots.limit_margins import LimitMargins
from volar.robots.spec import load_robot
from volar.sim.closed_loop import ClosedLoop
from volar.sim.conditions import STANDARD, THROUGH_ROS2, randomization_of
from volar.sim.episode_record import EpisodeRecord
from volar.sim.randomization import fingerprint
from volar.sim.replay_file import write_replay
from volar.sim.trace import Trace
from volar.sim.worker_pool import worker_pool

_DEATHS = 3  # of jobs that ran alone, one after the other: then it is not the episode that kills
DIED = "the worker process died in this episode, twice"


@dataclass(frozen=True)
class Bench:
    """What a worker needs to run any episode: the policy's folder, the robot, the latency [s], the standard
    condition's randomization, the longest episode in policy steps (None: the task's), and the seed of what
    randomization draws once for a world."""

    policy: str
    robot: str
    latency_s: float
    randomization: str = "none"
    max_steps: int | None = None
    world_seed: int = 0


@dataclass(frozen=True)
class Job:
    """One episode to run; `video`: the file to film it into, or an empty string; `output`: the folder in which
    `replays/` is made when it breaks, or an empty string; `draws`: of randomization, to be repeated."""

    task: str
    condition: str
    index: int
    seed: int
    video: str = ""
    output: str = ""
    draws: Mapping[str, Any] | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the other episodes of an evaluation."""
        return self.task, self.condition, self.index


def run_jobs(bench: Bench, jobs: Iterable[Job], workers: int) -> Iterator[EpisodeRecord]:
    """Records in the order in which episodes finish. `jobs` is read as workers become free.

    A worker that dies (a crash in native code, out of memory) costs the episodes that were running: they run again,
    each alone in a process, and one that dies again is recorded as broken. Raises `VolarError` with the worker's
    reason when no episode can run there (no OpenGL, a damaged policy), or when `_DEATHS` in a row die.
    """
    rest, suspects, dead = iter(jobs), deque[Job](), list[Job]()
    while True:
        alone = bool(suspects)
        source = _drained(suspects) if alone else rest
        flying: dict[Future[dict[str, Any]], Job] = {}
        with worker_pool(1 if alone else max(1, workers)) as pool:
            try:
                for record in _fly(pool, bench, source, 1 if alone else 2 * workers, flying):
                    yield from (_died(bench, job) for job in dead)  # others live: it was these episodes
                    dead.clear()
                    yield record
                if not alone:
                    break
            except BrokenProcessPool:
                if not alone:
                    suspects.extend(flying.values())
                    continue
                dead.extend(flying.values())
                if len(dead) == _DEATHS:
                    raise  # the pool says what can be done
    yield from (_died(bench, job) for job in dead)


def _drained(jobs: deque[Job]) -> Iterator[Job]:
    while jobs:
        yield jobs.popleft()


def _fly(
    pool: ProcessPoolExecutor,
    bench: Bench,
    jobs: Iterator[Job],
    ahead: int,
    flying: dict[Future[dict[str, Any]], Job],
) -> Iterator[EpisodeRecord]:
    """Keeps `ahead` jobs with the pool; `flying` are those it has not answered."""
    while True:
        while len(flying) < ahead and (job := next(jobs, None)) is not None:
            try:
                flying[pool.submit(_run, bench, job)] = job
            except BrokenProcessPool:
                flying[Future()] = job
                raise
        if not flying:
            return
        done, _ = wait(flying, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=lambda future: future.exception() is not None):  # answers before deaths
            answer = future.result()
            del flying[future]
            if "fatal" in answer:
                raise VolarError(answer["fatal"])
            yield EpisodeRecord.from_dict(answer)


def _died(bench: Bench, job: Job) -> EpisodeRecord:
    """The record of an episode that nobody is left to tell about."""
    record = EpisodeRecord(*job.key, job.seed, "", False, 0, "", True, DIED, {}, {}, LimitMargins(), broken=True)
    return _with_replay(bench, job, record, Trace())


def _run(bench: Bench, job: Job) -> dict[str, Any]:
    """In the worker: the record as plain values, or {"fatal": reason}."""
    try:
        loop = _closed_loop(bench, job)
        record = film(loop, job) if job.video else loop.run(job.seed, job.index, job.condition, draws=job.draws)
        return _with_replay(bench, job, record, loop.trace).to_dict()
    except Exception as error:
        return {"fatal": _said(error)}


def _said(error: Exception) -> str:
    """An exception of a class with arguments of its own cannot be sent back as it is."""
    return str(error) if isinstance(error, VolarError) else f"{type(error).__name__}: {error}"


def require_runs(bench: Bench, task: str) -> None:
    """Raises `VolarError` with the reason when a worker cannot load the policy, or render the task's scene."""
    with worker_pool(1) as pool:
        if wrong := pool.submit(_what_is_wrong, bench, task).result():
            raise VolarError(wrong)


def _what_is_wrong(bench: Bench, task: str) -> str:
    try:
        _closed_loop(bench, Job(task, STANDARD, 0, 0)).world.body.images()
    except Exception as error:
        return _said(error)
    return ""


def _with_replay(bench: Bench, job: Job, record: EpisodeRecord, trace: Trace) -> EpisodeRecord:
    """The record, with the file written that runs the episode again, if it broke."""
    if not record.broken or not job.output:
        return record
    name = f"replays/{job.task}_{job.index:04d}_{job.condition.replace(':', '_').replace('/', '_')}.npz"
    record = replace(record, replay=name)
    facts = {
        "policy": bench.policy,
        "policy_sha256": _policy_sha256(bench.policy),
        "robot": bench.robot,
        "latency_s": bench.latency_s,
        "randomization": bench.randomization,
        "max_steps": bench.max_steps,
        "world_seed": bench.world_seed,
        "fingerprints": fingerprints(bench, job.condition),
        "versions": versions(),
    }
    write_replay(Path(job.output) / name, facts, record, trace)
    return record


def fingerprints(bench: Bench, condition: str) -> dict[str, str]:
    """By content, the files beside the policy that an episode depends on."""
    randomization = randomization_of(condition, bench.randomization)
    found = {"randomization": fingerprint(randomization)}
    if "+" in bench.robot:
        from volar.robots.mjcf_arm import asset_fingerprint

        found["asset"] = asset_fingerprint(load_robot(bench.robot))
    return found


def film(loop: ClosedLoop, job: Job) -> EpisodeRecord:
    """Runs the episode, into the file `job.video`; the film lasts as long as the episode."""
    from volar.sim.video import Film, write_mp4

    shots = Film(loop.world.model)
    try:
        record = loop.run(job.seed, job.index, job.condition, lambda world: shots.shoot(world.data), job.draws)
        if shots.frames:
            write_mp4(Path(job.video), shots.frames, loop.rate_hz)
        return record
    finally:
        shots.close()


_current: tuple[Any, ClosedLoop] | None = None  # a worker's; jobs come task by task, so one is enough


def _closed_loop(bench: Bench, job: Job) -> ClosedLoop:
    global _current
    through_ros2 = job.condition == THROUGH_ROS2
    key = bench, job.task, randomization_of(job.condition, bench.randomization), through_ros2
    if _current is None or _current[0] != key:
        if _current is not None:
            _current[1].close()
        limits = bench.max_steps, bench.world_seed
        if through_ros2:
            from volar.sim.through_ros2 import Ros2ClosedLoop

            made: ClosedLoop = Ros2ClosedLoop(Path(bench.policy), job.task, bench.robot, key[2], *limits)
        else:
            made = ClosedLoop(_policy(bench.policy), job.task, bench.robot, bench.latency_s, key[2], *limits)
        _current = key, made
    return _current[1]


@functools.cache
def _policy(path: str) -> Any:
    from volar.robots.policies import load_policy

    return load_policy(Path(path))


@functools.cache
def _policy_sha256(path: str) -> str:
    return folder_sha256(Path(path))


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
