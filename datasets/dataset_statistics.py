"""Statistics of a written dataset, one shard in memory at a time: those of the contract, and LeRobot's `stats.json`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from volar.datasets.lerobot_format import readable, vectors
from volar.datasets.lerobot_layout import IMAGE_PREFIX, decode_image, features, parquet_file
from volar.datasets.sketch import FieldSketch
from volar.datasets.statistics import (
    action_mask,
    lerobot_image_statistics,
    lerobot_index_statistics,
    lerobot_sketch_statistics,
)
from volar.datasets.video_files import decode_frames
from volar.robots.contract import PolicyContract

IMAGE_SAMPLE = 256  # images of a camera, evenly over the dataset, that make its entry in stats.json
INDEX = "index"


def dataset_statistics(
    contract: PolicyContract, files: Sequence[Path], video: Callable[[int, str], Path] | None
) -> tuple[PolicyContract, dict[str, object], int]:
    """The contract with statistics, the entries of `stats.json`, and the number of frames N.

    `files`: of data, in order. `video(k, column)`: the camera's video beside file k; None where images are in it.
    """
    described = features(contract)  # video or not
    columns = [name for name, feature in described.items() if feature["dtype"] != "image" and name != INDEX]
    sketches = {name: FieldSketch(int(described[name]["shape"][0])) for name in columns}
    counts = []
    for path in files:
        # Through the file, not the dataset API, which would read `chunk-000` as a partition.
        table = readable(path, lambda p: parquet_file(p).read(columns))
        counts.append(len(table))
        for name, sketch in sketches.items():
            sketch.update(vectors(table, name).astype(np.float32, copy=False))
    frames = sum(counts)
    mask = action_mask(contract.action)
    statistics = {
        "action": sketches["action"].statistics(mask),
        "observation.state": sketches["observation.state"].statistics(),
    }
    entries: dict[str, object] = {name: lerobot_sketch_statistics(sketch) for name, sketch in sketches.items()}
    entries[INDEX] = lerobot_index_statistics(frames)
    entries = {name: entries[name] for name in described if name in entries}
    entries |= _images([IMAGE_PREFIX + camera.name for camera in contract.cameras], files, counts, video)
    return replace(contract, statistics=statistics), entries, frames


def _images(
    keys: Sequence[str], files: Sequence[Path], counts: Sequence[int], video: Callable[[int, str], Path] | None
) -> dict[str, object]:
    frames, start = sum(counts), 0
    wanted = np.unique(np.linspace(0, frames - 1, IMAGE_SAMPLE).round().astype(np.int64))
    found: dict[str, list[NDArray[np.uint8]]] = {key: [] for key in keys}
    for k, (path, count) in enumerate(zip(files, counts, strict=True)):
        rows = wanted[(wanted >= start) & (wanted < start + count)] - start
        start += count
        if video is not None:
            for key in keys:
                found[key].extend(decode_frames(video(k, key), rows))
        elif len(rows):
            for key, images in _picked(path, keys, rows).items():
                found[key].extend(decode_image(data) for data in images)
    return {key: lerobot_image_statistics(np.stack(images)) for key, images in found.items()}


def _picked(path: Path, keys: Sequence[str], rows: NDArray[np.int64]) -> dict[str, list[bytes]]:
    """The encoded images of some rows (ascending), read by row group."""
    file, start = readable(path, parquet_file), 0
    picked: dict[str, list[Any]] = {key: [] for key in keys}
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        here = rows[(rows >= start) & (rows < start + count)] - start
        start += count
        if len(here):
            table = readable(path, lambda _, k=group: file.read_row_group(k, list(keys))).take(pa.array(here))  # type: ignore[misc]
            for key in keys:
                picked[key] += [item["bytes"] for item in table.column(key).to_pylist()]
    return picked
