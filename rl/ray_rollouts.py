"""`Rollouts` on Ray actors, on one machine or a cluster; the `cluster` extra. Bytes are sent, as to processes."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

from volar.rl.episodes import Job, Trajectory
from volar.rl.rollouts import RolloutWorker, WorkerSetup, lost
from volar.rl.wire import decode_trajectory, encode_jobs
from volar.robots.errors import VolarError

_MOST_DEATHS = 2  # of one job


class RayRollouts:
    """`workers` actors of one CPU each. Connects to the cluster of `address` (`auto`: a running one), or with None
    starts Ray on this machine, which it ends again. The policy's folder must be readable where actors run.

    Raises `VolarError` when Ray is not installed, or has fewer CPUs than `workers`.
    """

    def __init__(self, setup: WorkerSetup, workers: int, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise VolarError("rollouts=ray needs Ray: pip install 'volar[cluster]'") from error
        self._ray, self._setup, self._weights = ray, setup, b""
        self._own = not ray.is_initialized()
        if self._own:
            cpus = None if address else workers
            ray.init(
                address=address,
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus = int(resources.get("CPU", 0))
        if cpus < workers:
            self._end()
            have = f"workers={workers} need a CPU each, of which the Ray cluster has {cpus}"
            raise VolarError(f"{have}; give fewer workers=")
        self._actor = ray.remote(num_cpus=1, max_restarts=0)(RolloutWorker)
        self.deaths = 0
        self.pool: list[Any] = [self._actor.remote(setup) for _ in range(workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for actor in self.pool:
            self._ray.kill(actor)
        self._end()

    def _end(self) -> None:
        if self._own:
            self._ray.shutdown()

    def broadcast(self, weights: bytes) -> None:
        self._weights = weights
        shared = self._ray.put(weights)  # stored once a machine, whatever the number of actors there
        loading = [actor.load.remote(shared) for actor in self.pool]
        for place, reference in enumerate(loading):
            if not self._answered(reference):
                self._replace(place)

    def run(self, jobs: Sequence[Job], progress: Callable[[], None] = lambda: None) -> list[Trajectory]:
        found: dict[int, Trajectory] = {}
        waiting, deaths = deque(range(len(jobs))), [0] * len(jobs)
        flying: dict[Any, tuple[int, int]] = {}  # -> place of the actor, index of the job
        idle = deque(range(len(self.pool)))
        while len(found) < len(jobs):
            while waiting and idle:
                place, index = idle.popleft(), waiting.popleft()
                flying[self.pool[place].run.remote(encode_jobs([jobs[index]]))] = place, index
            done, _ = self._ray.wait(list(flying), num_returns=1)
            place, index = flying.pop(done[0])
            idle.append(place)
            answer = self._answer(done[0])
            if answer is None:
                self._replace(place)
                deaths[index] += 1
                if deaths[index] < _MOST_DEATHS:
                    waiting.appendleft(index)
                    continue
            found[index] = lost(jobs[index]) if answer is None else decode_trajectory(answer)
            progress()
        return [found[i] for i in range(len(jobs))]

    def _answer(self, reference: Any) -> bytes | None:
        """What an actor found, or None when it has died. Raises `VolarError` with its reason."""
        return self._ray.get(reference) if self._answered(reference) else None

    def _answered(self, reference: Any) -> bool:
        """False when the actor has died. Raises `VolarError` with its reason when it failed, or could not begin."""
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise VolarError(str(error)) from error
            return False
        except self._ray.exceptions.RayTaskError as error:
            raise VolarError(str(error.cause)) from error
        return True

    def _replace(self, place: int) -> None:
        self.deaths += 1
        self.pool[place] = self._actor.remote(self._setup)
        if self._weights:
            self.pool[place].load.remote(self._weights)
