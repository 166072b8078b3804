"""The file that a broken episode leaves: enough, with the policy, to run it again, and to look at its end without.

A NumPy archive without pickles: `facts`, a JSON text, and the arrays of `Trace.arrays`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import VolarError
from volar.sim.episode_record import EpisodeRecord
from volar.sim.trace import Trace

FORMAT = 1


@dataclass(frozen=True)
class ReplayFile:
    """`facts`: the policy and its hash, robot, latency, randomization and versions; `record`: of the episode;
    `traceback`: what ended it; `arrays`: its commands and last states."""

    facts: Mapping[str, Any]
    record: EpisodeRecord
    traceback: str
    arrays: Mapping[str, NDArray[np.float64]]

    @property
    def periods(self) -> int:
        """Control periods that were commanded before it ended."""
        return len(self.arrays["q"])


def write_replay(path: Path, facts: Mapping[str, Any], record: EpisodeRecord, trace: Trace) -> None:
    """Writes the file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, "traceback": trace.traceback, "record": record.to_dict(), **facts})
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, facts=np.array(text), **trace.arrays())
    temporary.rename(path)


def read_replay(path: Path) -> ReplayFile:
    """Raises `VolarError` for a file that is not there, or is none of these."""
    if not path.is_file():
        raise VolarError(f"no replay file {path}; volar-evaluate leaves them in OUTPUT/replays when an episode breaks")
    if path.suffix != ".npz":
        raise VolarError(
            f"{path} is no replay file: volar-evaluate leaves them as OUTPUT/replays/TASK_NUMBER_CONDITION.npz"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name != "facts"}
            facts = json.loads(str(archive["facts"]))
        if facts.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        record = EpisodeRecord.from_dict(facts.pop("record"))
        return ReplayFile(facts, record, facts.pop("traceback"), arrays)
    except Exception as error:  # NumPy raises what zipfile, json or its own parser does
        raise VolarError(f"{path} is not a replay file of volar-evaluate ({error})") from error
