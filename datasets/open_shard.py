"""The shard of a dataset that is being filled: its data file, and its videos, which grow with each episode.

They are under temporary names until `commit`; a row group holds at most `lerobot_layout.ROWS` frames of one episode.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from volar.datasets.durable_file import DurableFile, disk_errors
from volar.datasets.lerobot_format import readable
from volar.datasets.lerobot_layout import PARQUET, DatasetError, parquet_file
from volar.datasets.video_files import VideoEncoder
from volar.robots.contract import CameraSpec


class OpenShard:
    """`schema`: of the data file `data`. `videos`: column of images -> its camera and file. Raises `DiskFull`."""

    def __init__(
        self, data: Path, schema: pa.Schema, videos: Mapping[str, tuple[CameraSpec, Path]], frames_per_second: int
    ) -> None:
        self.data, self.schema = data, schema
        self._files = {key: DurableFile(path) for key, (_, path) in videos.items()}
        self._videos = {
            key: VideoEncoder(self._files[key].file, camera, frames_per_second) for key, (camera, _) in videos.items()
        }
        self._file = DurableFile(data)
        with disk_errors(data):
            self._parquet: Any = pq.ParquetWriter(self._file.file, schema, **PARQUET)

    def add(self, tables: Iterable[pa.Table]) -> None:
        """Each as a row group; columns that `schema` does not have are cameras of videos. Raises `DiskFull`."""
        with disk_errors(self.data):
            for table in tables:
                for key, video in self._videos.items():
                    for item in table.column(key).to_pylist():
                        video.add(item["bytes"])
                self._parquet.write_table(table.select(self.schema.names).cast(self.schema))

    def commit(self) -> None:
        """Videos first: a data file without them is of no use. Raises `DiskFull`."""
        with ExitStack() as unless_done, disk_errors(self.data):
            unless_done.callback(self.abandon)
            for key, video in self._videos.items():
                video.close()
                self._files[key].commit()
            self._parquet.close()
            self._file.commit()
            unless_done.pop_all()

    def abandon(self) -> None:
        """Removes what is not committed."""
        for closing in (*(video.close for video in self._videos.values()), self._parquet.close):
            with suppress(Exception):  # they write their ends to files that go, on a disk that may be full
                closing()
        for file in (*self._files.values(), self._file):
            file.abandon()


def first_rows(path: Path, frames: int) -> Iterator[pa.Table]:
    """The row groups of a data file that make its first `frames` frames. Raises `DatasetError` when they do not."""
    if not frames:
        return
    file = readable(path, parquet_file)
    group = 0
    while frames > 0 and group < file.num_row_groups:
        table = readable(path, lambda _, k=group: file.read_row_group(k))  # type: ignore[misc]
        yield table.replace_schema_metadata(None)
        frames, group = frames - len(table), group + 1
    if frames:
        raise DatasetError(f"{path} does not end with an episode: {abs(frames)} frames are missing or too many")
