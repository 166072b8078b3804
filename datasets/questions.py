"""Questions about pictures, with answers of one word: vision-language data to train on beside demonstrations.

A folder of frames (`frame_cache.py`) whose instructions are the questions, and beside it

    questions.json    {"answers": [..], "kinds": [..]}: the answer to each instruction, and what it is about

A question that has several answers, on different pictures, is several instructions with the same text.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from volar.datasets.durable_file import write_durably
from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_layout import DatasetError

FILE = "questions.json"


@dataclass(frozen=True)
class Questions:
    """Frames with their questions. `answers`, `kinds`: one for each of the frames' instructions."""

    frames: FrameCache
    answers: tuple[str, ...]
    kinds: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.answers) == len(self.kinds) == len(self.frames.instructions):
            raise ValueError(
                f"{len(self.answers)} answers and {len(self.kinds)} kinds for {len(self.frames.instructions)} questions"
            )

    @staticmethod
    def open(folder: Path) -> "Questions":
        """Raises `DatasetError` when the folder holds no complete questions."""
        try:
            about = json.loads((folder / FILE).read_text())
            return Questions(FrameCache.open(folder), tuple(about["answers"]), tuple(about["kinds"]))
        except (OSError, ValueError, KeyError) as error:
            fix = "volar-collect kind=questions makes them"
            raise DatasetError(f"{folder} holds no questions ({error}); {fix}") from error


def write_answers(folder: Path, answers: list[str], kinds: list[str]) -> None:
    """To be written before the frames are completed. Raises `DiskFull`."""
    write_durably(folder / FILE, json.dumps({"answers": answers, "kinds": kinds}).encode())
