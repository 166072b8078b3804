"""Episodes run side by side: processes with one renderer each, told the weights once per update.

A trajectory is determined by weights, setting and job alone, so neither the number of workers nor which of them runs a
job changes the data. A worker that dies (a crash in native code, out of memory) is replaced and its episodes run again;
an episode in which it dies twice comes back as not valid.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Protocol, Self

from volar.rl.episodes import EpisodeRunner, Job, Setting, Trajectory, failed
from volar.rl.exploration import Exploration
from volar.rl.wire import decode_jobs, decode_trajectory, encode_jobs, encode_trajectory, load_weights
from volar.robots.errors import VolarError

_WEIGHTS, _JOB, _STOP = b"w", b"j", b"s"  # the first byte of what a worker is told
_DONE, _FAILED = b"d", b"f"
_MOST_DEATHS = 2  # of one job


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker starts from: the policy's folder, steps executed of each chunk, what trains, and the setting."""

    policy: Path
    execute_steps: int
    exploration: Exploration
    trains: str
    setting: Setting


class Rollouts(Protocol):
    """Runs jobs somewhere; a context manager. `deaths`: workers replaced so far."""

    deaths: int

    def broadcast(self, weights: bytes) -> None:
        """Every episode from now on is run with these weights (`volar.rl.wire.encode_weights`)."""
        ...

    def run(self, jobs: Sequence[Job], progress: Callable[[], None] = lambda: None) -> list[Trajectory]:
        """In the order of `jobs`; `progress` is called after each. Raises `VolarError` with a worker's reason."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class RolloutWorker:
    """What runs in a worker, whoever started it: bytes in, bytes out. `threads`: with which its process computes (it
    renders without further ones); None leaves them."""

    def __init__(self, setup: WorkerSetup, threads: int | None = 1) -> None:
        from dataclasses import replace

        import torch

        from volar.rl.rewards import privileged_size
        from volar.rl.success_network import load_classifier
        from volar.rl.token_policy import token_policy
        from volar.vla.checkpoint_policy import load_parts

        if threads is not None:
            torch.set_num_threads(threads)
            os.environ["LP_NUM_THREADS"] = "0"  # Mesa renders in the calling thread; others would wait for its core
        model, contract, tokenizer = load_parts(setup.policy)
        contract = replace(contract, execute_steps=setup.execute_steps)
        self.policy = token_policy(
            model,
            contract,
            privileged=privileged_size(setup.setting.tasks),
            exploration=setup.exploration,
            trains=setup.trains,
        )
        judge = load_classifier(Path(setup.setting.classifier)) if setup.setting.classifier else None
        self.runner = EpisodeRunner(setup.setting, self.policy, contract, tokenizer, judge)

    def load(self, weights: bytes) -> None:
        load_weights(self.policy.vla, weights)

    def run(self, job: bytes) -> bytes:
        return encode_trajectory(self.runner.run(decode_jobs(job)[0]))

    def close(self) -> None:
        self.runner.close()


class ProcessRollouts:
    """`Rollouts` in `workers` processes on this machine."""

    def __init__(self, setup: WorkerSetup, workers: int) -> None:
        self._setup, self._weights = setup, b""
        self.deaths = 0
        self._pool = [_Process(setup) for _ in range(workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for worker in self._pool:
            worker.stop()

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid or 0 for worker in self._pool]

    def broadcast(self, weights: bytes) -> None:
        self._weights = weights
        for i, worker in enumerate(self._pool):
            if not worker.tell(_WEIGHTS + weights):
                self._replace(i)

    def run(self, jobs: Sequence[Job], progress: Callable[[], None] = lambda: None) -> list[Trajectory]:
        found: dict[int, Trajectory] = {}
        waiting, deaths = deque(range(len(jobs))), [0] * len(jobs)
        while len(found) < len(jobs):
            self._give(jobs, waiting)
            for place, answer in self._answers():
                index, self._pool[place].job = self._pool[place].job, None
                if answer is None:
                    self._replace(place)
                    if index is None:
                        continue
                    deaths[index] += 1
                    if deaths[index] < _MOST_DEATHS:
                        waiting.appendleft(index)
                        continue
                    found[index] = lost(jobs[index])
                elif index is not None:
                    found[index] = decode_trajectory(answer)
                progress()
        return [found[i] for i in range(len(jobs))]

    def _give(self, jobs: Sequence[Job], waiting: deque[int]) -> None:
        for place in range(len(self._pool)):
            if waiting and self._pool[place].job is None:
                index = waiting.popleft()
                self._pool[place].job = index
                self._pool[place].tell(_JOB + encode_jobs([jobs[index]]))  # a dead one shows itself when it is read

    def _answers(self) -> Iterator[tuple[int, bytes | None]]:
        """Which workers have answered, and what: None for one that has died."""
        busy = {worker.pipe: i for i, worker in enumerate(self._pool) if worker.job is not None}
        for ready in wait(list(busy)):
            assert isinstance(ready, Connection)
            try:
                answer = ready.recv_bytes()
            except (EOFError, OSError):
                yield busy[ready], None
                continue
            if answer[:1] == _FAILED:
                raise VolarError(answer[1:].decode())
            yield busy[ready], answer[1:]

    def _replace(self, place: int) -> None:
        self.deaths += 1
        self._pool[place].stop()
        self._pool[place] = _Process(self._setup)
        if self._weights:
            self._pool[place].tell(_WEIGHTS + self._weights)


class _Process:
    """A worker process and the pipe to it; `job`: the index of what it is running."""

    def __init__(self, setup: WorkerSetup) -> None:
        context = multiprocessing.get_context("spawn")  # forking would copy threads and OpenGL contexts
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(theirs, setup), daemon=True)
        self.process.start()
        theirs.close()
        self.job: int | None = None

    def tell(self, message: bytes) -> bool:
        """False when nobody is there any more."""
        try:
            self.pipe.send_bytes(message)
        except OSError:
            return False
        return True

    def stop(self) -> None:
        self.tell(_STOP)
        self.pipe.close()
        if self.job is not None:
            self.process.terminate()
        self.process.join()


def _serve(pipe: Connection, setup: WorkerSetup) -> None:
    """The worker's life: until it is told to stop, or the one who tells is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides when to stop
    worker: RolloutWorker | None = None
    try:
        while (message := pipe.recv_bytes())[:1] != _STOP:
            try:
                worker = worker or RolloutWorker(setup)
                if message[:1] == _WEIGHTS:
                    worker.load(message[1:])
                    continue
                answer = _DONE + worker.run(message[1:])
            except Exception as error:  # an exception's class may not travel; its words do
                known = isinstance(error, VolarError)
                answer = _FAILED + (str(error) if known else f"{type(error).__name__}: {error}").encode()
            pipe.send_bytes(answer)
    except (EOFError, OSError):
        pass
    finally:
        if worker is not None:
            worker.close()


def lost(job: Job) -> Trajectory:
    """An episode that no worker survived."""
    return failed(job, f"two workers died in it (seed {job.seed} of {job.task}); out of memory? try fewer workers=")


class InProcessRollouts:
    """`Rollouts` in this process, one episode after the other."""

    deaths = 0

    def __init__(self, setup: WorkerSetup) -> None:
        self._worker = RolloutWorker(setup, threads=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._worker.close()

    def broadcast(self, weights: bytes) -> None:
        self._worker.load(weights)

    def run(self, jobs: Sequence[Job], progress: Callable[[], None] = lambda: None) -> list[Trajectory]:
        import torch

        found, threads = [], torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker; the learner's stay as they are
        try:
            for job in jobs:
                found.append(self._worker.runner.run(job))
                progress()
        finally:
            torch.set_num_threads(threads)
        return found
