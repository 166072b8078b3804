"""TFRecord files without TensorFlow.

A record is its length (uint64), the masked CRC32C of those 8 bytes (uint32), the data, and the masked CRC32C of
the data (uint32), all little-endian; source: tensorflow/core/lib/io/record_writer.h. The mask is
rotate_right(crc, 15) + 0xa282ead8, so that a CRC of data that holds CRCs stays a good one.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from volar.datasets.lerobot_layout import DatasetError

_LENGTH = struct.Struct("<QI")  # length, its masked CRC
_CRC = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


class CorruptRecord(DatasetError):
    """A record that is damaged: which shard, which record (from 0), at which byte it begins, and what is wrong.

    `rest_lost`: nothing behind it in the shard can be found either.
    """

    def __init__(self, path: Path, record: int, offset: int, what: str, *, rest_lost: bool = False) -> None:
        self.path, self.record, self.offset, self.what, self.rest_lost = path, record, offset, what, rest_lost
        super().__init__(f"{path}: record {record} at byte {offset}: {what}")


@dataclass(frozen=True)
class Record:
    """The data of record number `number` (from 0), which begins at byte `offset` of its file."""

    number: int
    offset: int
    data: bytes


def masked_crc(data: bytes) -> int:
    import google_crc32c

    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def read_records(path: Path, damaged: Callable[[CorruptRecord], None], first: int = 0) -> Iterator[Record]:
    """The records of a file from number `first` on, one in memory at a time.

    Each damaged one is handed to `damaged`, which raises it or returns to go on: behind bad data whose length is
    right with the next record, else the file ends there. Raises `DatasetError` when the file cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        size = path.stat().st_size
        number = offset = 0
        while offset < size:
            end = size - offset
            header = file.read(_LENGTH.size)
            if len(header) < _LENGTH.size:
                what = f"the file ends after {end} of the {_LENGTH.size} bytes of its header (truncated)"
                return damaged(CorruptRecord(path, number, offset, what, rest_lost=True))
            length, crc = _LENGTH.unpack(header)
            if crc != masked_crc(header[:8]):
                what = f"the CRC of its length ({length}) is wrong; where the next record begins is unknown"
                return damaged(CorruptRecord(path, number, offset, what, rest_lost=True))
            whole = _LENGTH.size + length + _CRC.size
            if whole > end:
                what = f"it is {whole} bytes long, the file ends after {end} of them (truncated)"
                return damaged(CorruptRecord(path, number, offset, what, rest_lost=True))
            if number < first:
                file.seek(length + _CRC.size, 1)
            else:
                data = file.read(length)
                (crc,) = _CRC.unpack(file.read(_CRC.size))
                if crc != masked_crc(data):
                    damaged(CorruptRecord(path, number, offset, f"the CRC of its {length} bytes of data is wrong"))
                else:
                    yield Record(number, offset, data)
            number, offset = number + 1, offset + whole
    return None
