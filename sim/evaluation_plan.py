"""Which episodes an evaluation consists of, and which of them are still to be run."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from volar.sim.closed_loop import episode_seed
from volar.sim.episode_record import EpisodeRecord
from volar.sim.evaluation import Job
from volar.sim.results import summarize, summarize_sequential
from volar.sim.sequential import SequentialStop


@dataclass(frozen=True)
class Plan:
    """`episodes` of each task under each condition, or fewer where `margin` says when they are enough.

    Tell it of every record with `add`; `missing` looks at what has been told each time it is asked for one more.
    """

    tasks: tuple[str, ...]
    conditions: tuple[str, ...]
    episodes: int
    seed: int
    output: Path
    margin: float | None = None
    _stops: dict[tuple[str, str], SequentialStop] = field(default_factory=dict)
    _done: set[tuple[str, str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.margin is not None:
            self._stops.update(((t, c), SequentialStop(self.margin)) for c in self.conditions for t in self.tasks)

    def add(self, record: EpisodeRecord) -> None:
        """An episode is over."""
        self._done.add(record.key)
        if stop := self._stops.get(record.key[:2]):
            stop.add(record.index, record.success if record.valid else None)

    def missing(self) -> Iterator[Job]:
        """The episodes that are still wanted, in order."""
        for condition in self.conditions:
            for task in self.tasks:
                for index in range(self.episodes):
                    if index >= self._end(task, condition):
                        break
                    seed = episode_seed(self.seed, task, index)
                    job = Job(task, condition, index, seed, output=str(self.output))
                    if job.key not in self._done:
                        yield job

    @property
    def wanted(self) -> int:
        """Episodes in all, as far as is known now."""
        return sum(self._end(task, condition) for task in self.tasks for condition in self.conditions)

    @property
    def done(self) -> int:
        """Those of them that are over."""
        return sum(
            task in self.tasks and condition in self.conditions and index < self._end(task, condition)
            for task, condition, index in self._done
        )

    def summary(self, records: Sequence[EpisodeRecord], condition: str) -> dict[str, Any]:
        """Rates under a condition, from the plan's own episodes alone."""
        own = [r for r in self.own(records) if r.condition == condition]
        if self.margin is None:
            return summarize(own, self.tasks)
        ends = {task: self._stops[task, condition].end for task in self.tasks}
        reached = {task: end if end is not None and end <= self.episodes else None for task, end in ends.items()}
        return summarize_sequential(own, reached, self.margin)

    def own(self, records: Iterable[EpisodeRecord]) -> list[EpisodeRecord]:
        """Without what a larger plan, or a worker that was ahead, left in the folder."""
        return [
            r
            for r in records
            if r.task in self.tasks and r.condition in self.conditions and r.index < self._end(r.task, r.condition)
        ]

    def _end(self, task: str, condition: str) -> int:
        stop = self._stops.get((task, condition))
        return self.episodes if stop is None or stop.end is None else min(stop.end, self.episodes)
