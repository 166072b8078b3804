"""What `meta/` of a LeRobotDataset v2.1 says, as rows of v3's `meta/episodes`.

v2.1 keeps one Parquet file and one video for each episode, and JSON lines in `meta/`:

    meta/info.json            data_path, video_path with {episode_chunk}, {episode_index}, {video_key}; chunks_size
    meta/episodes.jsonl       {"episode_index": 1, "tasks": ["put the block in the bowl"], "length": 266}
    meta/tasks.jsonl          {"task_index": 1, "task": "put the block in the bowl"}
    meta/episodes_stats.jsonl (v2.0: stats.json), not read here

Source: lerobot 0.6.1, scripts/convert_dataset_v21_to_v30.py, and its `meta/info.json` of v2.1.
"""

import json
from pathlib import Path
from typing import Any

VERSIONS = ("v2.1", "v2.0")  # they differ in the statistics only
EPISODES, TASKS = "meta/episodes.jsonl", "meta/tasks.jsonl"
CHUNKS_SIZE = 1000  # episodes in a chunk, LeRobot's default


def v21_rows(path: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    """`episodes.jsonl` -> a row for each episode, in order, with the columns that `DatasetInfo` has in v3.

    Raises `ValueError` on lines that are no JSON or lack a key.
    """
    videos = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    rows, start = [], 0
    for line in sorted(_lines(path, "episode_index", "tasks", "length"), key=lambda line: line["episode_index"]):
        index, length = int(line["episode_index"]), int(line["length"])
        place = {"chunk_index": index // int(info.get("chunks_size", CHUNKS_SIZE)), "file_index": index}
        rows.append(
            {
                "episode_index": index,
                "tasks": line["tasks"],
                "length": length,
                "dataset_from_index": start,
                "dataset_to_index": start + length,
                **{f"data/{key}": value for key, value in place.items()},
                **{f"videos/{video}/{key}": value for video in videos for key, value in place.items()},
                **{f"videos/{video}/from_timestamp": 0.0 for video in videos},
            }
        )
        start += length
    return rows


def v21_tasks(path: Path) -> tuple[str, ...]:
    """`tasks.jsonl` -> the instruction of each `task_index`. Raises `ValueError` as `v21_rows`."""
    return by_index({int(line["task_index"]): str(line["task"]) for line in _lines(path, "task_index", "task")})


def by_index(texts: dict[int, str]) -> tuple[str, ...]:
    """`task_index` -> instruction, as a tuple; one that no task has is empty."""
    return tuple(texts.get(i, "") for i in range(max(texts, default=-1) + 1))


def _lines(path: Path, *keys: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        missing = [key for key in keys if key not in line]
        if missing:
            raise ValueError(f"entry {number} lacks {', '.join(missing)}")
    return lines
