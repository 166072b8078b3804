"""What is kept of an episode, and the file that an evaluation can be continued from."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from volar.robots.errors import VolarError
from volar.robots.limit_margins import LimitMargins


@dataclass(frozen=True)
class EpisodeRecord:
    """What happened in one episode.

    `index`: its number within the task; `steps`: at the policy's rate; `episode_sha256`: over its start (what
    `start_sha256` is of), every command and the final state, so that equal hashes are equal bits. `holds`: control
    periods in which the arm braked or held, by reason; `refused`: chunks not taken, by reason. `draws`: what
    randomization drew, by axis. `start_sha256`: over the initial state, what is true in it and the draws: equal for
    every policy.

    `valid`: False when the scene itself is not what the task takes for granted (see `volar.sim.premise`); such an
    episode was not run and never counts. `broken`: it crashed, and counts as a failure; `replay`: the file, beside
    the results, that runs it again. `reason`: of either.
    """

    task: str
    condition: str
    index: int
    seed: int
    instruction: str
    success: bool
    steps: int
    episode_sha256: str
    valid: bool
    reason: str
    holds: Mapping[str, int]
    refused: Mapping[str, int]
    margins: LimitMargins
    draws: Mapping[str, Any] = field(default_factory=dict)
    broken: bool = False
    start_sha256: str = ""
    replay: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the other episodes of an evaluation."""
        return self.task, self.condition, self.index

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> "EpisodeRecord":
        return EpisodeRecord(**{**raw, "margins": LimitMargins(**raw["margins"])})


def append_record(path: Path, record: EpisodeRecord) -> None:
    """One line of JSON, on the disk when this returns to the caller's process."""
    with path.open("a") as file:
        file.write(json.dumps(record.to_dict()) + "\n")


def read_records(path: Path) -> list[EpisodeRecord]:
    """The records of an interrupted evaluation; a last line cut short is dropped from the file.

    Raises `VolarError` naming any other line that cannot be read.
    """
    if not path.is_file():
        return []
    records, whole = [], 0
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            records.append(EpisodeRecord.from_dict(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise VolarError(f"{path}, line {number} is no episode ({error}); give another output=") from error
            break
        whole += len(line.encode())
    os.truncate(path, whole)
    return records
