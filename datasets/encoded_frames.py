"""Frames of a dataset without a decoded copy: the PNG or JPEG bytes are held, images are decoded when asked for.

For a dataset whose decoded frames (`frame_cache.py`) do not fit the disk, see `choose_frames.py`. It needs the memory
of the encoded images, which forked workers share; a sample costs the decoding of its images.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from volar.datasets.frame_cache import FrameCache, camera_masks
from volar.datasets.lerobot_format import DatasetInfo, load_info, points_of, readable, vectors
from volar.datasets.lerobot_layout import POINTS, POINTS_VALID, DatasetError, decode_image, parquet_file


class EncodedImages:
    """N encoded images that are indexed as an array uint8 (N, H, W, 3) would be."""

    def __init__(self, data: pa.ChunkedArray, size: tuple[int, int]) -> None:
        self.data, self.shape, self.dtype = data.combine_chunks(), (len(data), *size, 3), np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return decode_image(self.data[int(rows)].as_py())
        images = [decode_image(self.data[row].as_py()) for row in rows.tolist()]
        return np.stack(images) if images else np.zeros((0, *self.shape[1:]), np.uint8)


def encoded_frames(root: Path, progress: Callable[[int, int], None] | None = None) -> FrameCache:
    """A dataset as a `FrameCache` whose images are `EncodedImages`.

    Raises `DatasetError` for one with videos, whose frames cannot be decoded one by one, or that cannot be read.
    """
    info = load_info(root)
    _require_images(info)
    tables, done = [], 0
    wanted = ["observation.state", "action", "task_index", *info.camera_keys.values()]
    wanted += [name for name in (POINTS, POINTS_VALID) if name in info.features]
    for path, _ in info.by_file():
        tables.append(readable(path, lambda p: parquet_file(p).read(wanted)).replace_schema_metadata(None))
        done += len(tables[-1])
        if progress is not None:
            progress(done, info.frames)
    table = pa.concat_tables(tables)
    if len(table) != info.frames:
        raise DatasetError(f"{root}: its data files hold {len(table)} frames, its episodes {info.frames}")
    images = {name: EncodedImages(_bytes(table, key), info.cameras[name]) for name, key in info.camera_keys.items()}
    return FrameCache(
        images=cast(dict[str, NDArray[np.uint8]], images),
        state=vectors(table, "observation.state").astype(np.float32),
        action=vectors(table, "action").astype(np.float32),
        points=points_of(table),
        episode_end=np.repeat([e["dataset_to_index"] for e in info.episodes], [e["length"] for e in info.episodes]),
        instruction_id=table.column("task_index").to_numpy().astype(np.int32),
        instructions=info.tasks,
        camera_mask=camera_masks(info),
    )


def encoded_bytes(info: DatasetInfo) -> int:
    """The memory that its images need. Raises `DatasetError` for videos."""
    _require_images(info)
    total = 0
    for path, _ in info.by_file():
        about = readable(path, pq.read_metadata)
        for group in range(about.num_row_groups):
            columns = [about.row_group(group).column(k) for k in range(about.num_columns)]
            wanted = [c for c in columns if c.path_in_schema.removesuffix(".bytes") in info.camera_keys.values()]
            total += sum(column.total_uncompressed_size for column in wanted)
    return total


def _require_images(info: DatasetInfo) -> None:
    videos = [name for name, key in info.camera_keys.items() if info.features[key]["dtype"] == "video"]
    if videos:
        raise DatasetError(
            f"{info.root} has videos ({', '.join(videos)}), whose frames must be decoded once: make room, "
            "or copy it to where there is some"
        )


def _bytes(table: pa.Table, key: str) -> pa.ChunkedArray:
    chunks = [pc.struct_field(chunk, "bytes") for chunk in table.column(key).chunks]
    if any(chunk.null_count for chunk in chunks):
        raise DatasetError(f"images of {key} are in files of their own, which must be decoded once: make room")
    return pa.chunked_array(chunks).cast(pa.large_binary())
