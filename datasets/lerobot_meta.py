"""The files of `meta/` in a LeRobotDataset v3, written and read: info, rows of episodes, tasks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from volar.datasets.lerobot_layout import (
    CODEBASE_VERSION,
    DATA_PATH,
    FILES_PER_CHUNK,
    PARQUET,
    features,
    frames_per_second,
    parquet_file,
)
from volar.datasets.lerobot_v21 import by_index
from volar.datasets.statistics import lerobot_statistics
from volar.datasets.video_files import VIDEO_PATH
from volar.robots.contract import PolicyContract

# Of `meta/episodes`, what is read of every dataset.
_INDICES = ("episode_index", "length", "dataset_from_index", "dataset_to_index")
EPISODE_COLUMNS = (*_INDICES, "data/chunk_index", "data/file_index")


def info_of(contract: PolicyContract, episodes: int, frames: int, tasks: int, *, video: bool) -> dict[str, Any]:
    """What `info.json` says of a dataset with so many episodes, frames and instructions."""
    return {
        "codebase_version": CODEBASE_VERSION,
        "fps": frames_per_second(contract),
        "features": features(contract, video=video),
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if video else None,
        "robot_type": contract.robot,
        "splits": {"train": f"0:{episodes}"},
    }


def checked_info(info: Any) -> dict[str, Any]:
    """An `info.json` that was read. Raises `ValueError` when a key is missing or of another type than LeRobot's."""
    types: dict[str, Any] = {"fps": (int, float), "features": dict, "data_path": str, "total_episodes": int}
    if not isinstance(info, dict):
        raise ValueError("it is no mapping")
    missing = [key for key in types if key not in info]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    wrong = [f"{key} is {info[key]!r}" for key, kind in types.items() if not isinstance(info[key], kind)]
    if wrong:
        raise ValueError(", ".join(wrong))
    unknown = [key for key, feature in info["features"].items() if not {"dtype", "shape"} <= {*feature}]
    if unknown:
        raise ValueError(f"the features {', '.join(unknown)} have no dtype or no shape")
    return info


def episode_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of one file of `meta/episodes`, without the statistics columns. Raises `ValueError` where one is missing."""
    names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
    missing = [name for name in EPISODE_COLUMNS if name not in names]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    # Through the file, not the dataset API, which would read `chunk-000` as a partition.
    rows: list[dict[str, Any]] = parquet_file(path).read(names).to_pylist()
    return rows


def tasks_of(path: Path) -> tuple[str, ...]:
    """The instruction of each `task_index`."""
    rows = parquet_file(path).read()
    # Pandas keeps its index, the instruction, in the last column.
    text = next(n for n in ("task", "__index_level_0__") if n in rows.column_names)
    return by_index(dict(zip(rows.column("task_index").to_pylist(), rows.column(text).to_pylist(), strict=True)))


def shard_place(shard: int) -> dict[str, Any]:
    """Where a shard's files are, as the paths' templates and rows name it."""
    return {"chunk_index": shard // FILES_PER_CHUNK, "file_index": shard % FILES_PER_CHUNK}


def episode_row(facts: dict[str, Any], episode: int, frame: int, steps: int, task: int, shard: int) -> dict[str, Any]:
    """LeRobot's row of `meta/episodes`; what is Volar's own starts with `volar/`."""
    place = shard_place(shard)
    whole = {"episode_index": np.full(steps, episode), "index": np.arange(frame, frame + steps)}
    whole["task_index"] = np.full(steps, task)
    statistics = facts["statistics"] | {name: lerobot_statistics(x) for name, x in whole.items()}
    return {
        "episode_index": episode,
        "tasks": [facts["instruction"]],
        "length": steps,
        **{f"data/{key}": value for key, value in place.items()},
        "dataset_from_index": frame,
        "dataset_to_index": frame + steps,
        **{f"meta/episodes/{key}": value for key, value in place.items()},
        **{f"volar/{key}": facts[key] for key in ("task", "seed", "success")},
        **({"volar/info": json.dumps(facts["info"])} if facts["info"] else {}),
        **{f"stats/{key}/{name}": v for key, values in statistics.items() for name, v in values.items()},
    }


def episodes_file(rows: list[dict[str, Any]]) -> bytes:
    """A file of `meta/episodes` with these rows."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, **PARQUET)
    return bytes(sink.getvalue())


def tasks_file(instructions: list[str]) -> bytes:
    """`tasks.parquet` with the instruction of each `task_index`."""
    import pandas as pd  # LeRobot reads this file as a frame indexed by the instruction

    frame = pd.DataFrame({"task_index": range(len(instructions))}, index=pd.Index(instructions, name="task"))
    data: bytes = frame.to_parquet(write_page_checksum=True)
    return data
