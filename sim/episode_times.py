"""How long an evaluation's episodes took, by the wall clock and summed over every time it was continued.

A line a finished episode, beside the records and not in them: records of equal episodes are equal. An interrupted part
counts up to its last finished episode, whichever way it ended.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from volar.sim.evaluation_folder import EPISODES, TIMES


class EpisodeTimes:
    """One part of an evaluation, from now on. `clock`: monotonic [s]."""

    def __init__(self, output: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock, self._began_s = output / TIMES, clock, clock()
        self._part = max((line["part"] for line in _read(self._path)), default=-1) + 1
        self._separator = "\n" if self._path.is_file() and not self._path.read_text().endswith("\n") else ""

    def add(self) -> None:
        """An episode is over; call before its record is kept, so that none is kept without its time."""
        line = json.dumps({"part": self._part, "elapsed_s": round(self._clock() - self._began_s, 3)})
        with self._path.open("a") as file:
            file.write(f"{self._separator}{line}\n")
        self._separator = ""  # of what a kill cut short


def time_taken(output: Path) -> dict[str, Any]:
    """`seconds` that `timed` of the `episodes` in the folder took; fewer than all where a part left no times."""
    lines, file = _read(output / TIMES), output / EPISODES
    ends = {line["part"]: line["elapsed_s"] for line in lines}  # the last of each part
    episodes = len(file.read_text().splitlines()) if file.is_file() else 0
    return {"seconds": round(sum(ends.values()), 3), "timed": min(len(lines), episodes), "episodes": episodes}


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines: one that was cut short is an episode without a time."""
    found = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
            found.append({"part": int(line["part"]), "elapsed_s": float(line["elapsed_s"])})
        except (ValueError, TypeError, KeyError):
            continue
    return found
