"""LeRobotDataset v3 on disk: file names, features, and the encoding of an episode.

Images are lossless PNG inside the data files (dtype "image"), which LeRobot, HuggingFace `datasets` and
DuckDB read alike. LeRobot's own writer took 0.40 s for an episode of 40 steps and two 96 x 96 cameras on one
core (150 episodes a minute at most, in the one process that writes); `encode_episode` takes about a tenth,
in whichever process made the episode. Writing the files: `episode_writer.py`; reading: `lerobot_format.py`; what
`meta/` holds: `lerobot_meta.py`.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from volar.datasets.episode import POINT_FIELDS, POINT_NAMES, Episode
from volar.datasets.statistics import lerobot_image_statistics, lerobot_statistics
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.errors import VolarError

CODEBASE_VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILES_PER_CHUNK = 1000  # LeRobot's default
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
CONTRACT = "meta/volar_contract.json"
WRITER = "meta/volar_writer.json"
FRAMES = "cache.json"  # of a folder of decoded frames, see `frame_cache.py`

IMAGE_PREFIX = "observation.images."
IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
# Statistics over NaN are NaN, so what is not there is stored as zero with False beside it.
POINTS, POINTS_VALID = "annotation.points", "annotation.points_valid"
# Frames of an episode whose pixels enter its image statistics.
STATISTICS_FRAMES = 4
# Frames that are encoded, written and read at a time: those of a row group. An episode begins a new one.
ROWS = 128
PARQUET: dict[str, Any] = {"compression": "snappy", "use_dictionary": False, "write_page_checksum": True}


class DatasetError(VolarError):
    """A folder that is not a readable dataset, or not the one that is wanted."""


def parquet_file(path: Path) -> Any:
    """A Parquet file to read, whose pages are checked where they carry checksums, as ours do. pyarrow's errors."""
    return pq.ParquetFile(path, page_checksum_verification=True)


def frames_per_second(contract: PolicyContract) -> int:
    """LeRobot wants whole frames a second. Raises `VolarError` for another rate."""
    rate = contract.action.rate_hz
    if rate != int(rate):
        raise VolarError(f"LeRobotDataset needs a whole number of frames a second, the contract has {rate} Hz")
    return int(rate)


def features(contract: PolicyContract, *, video: bool = False) -> dict[str, dict[str, Any]]:
    """`info.json`'s description of every column, in the order of the data files; with `video`, cameras are none."""
    from volar.datasets.video_files import video_feature

    def entry(dtype: str, names: list[str] | None, *shape: int) -> dict[str, Any]:
        return {"dtype": dtype, "shape": list(shape), "names": names}

    point_names = [f"{name}.{field}" for name in POINT_NAMES for field in POINT_FIELDS]
    return {
        **{
            IMAGE_PREFIX + c.name: video_feature(c, frames_per_second(contract))
            if video
            else entry("image", ["height", "width", "channels"], c.height, c.width, 3)
            for c in contract.cameras
        },
        "observation.state": entry("float32", list(contract.state_names), len(contract.state_names)),
        "action": entry("float32", list(contract.action.names), contract.action.size),
        POINTS: entry("float32", point_names, len(point_names)),
        POINTS_VALID: entry("bool", point_names, len(point_names)),
        "next.reward": entry("float32", None, 1),
        "next.done": entry("bool", None, 1),
        "next.success": entry("bool", None, 1),
        "timestamp": entry("float32", None, 1),
        **{name: entry("int64", None, 1) for name in ("frame_index", "episode_index", "index", "task_index")},
    }


def height_and_width(feature: dict[str, Any]) -> tuple[int, int]:
    """Writers put the channels first or last, and name the axes when they are LeRobot."""
    shape, names = [int(n) for n in feature["shape"]], feature.get("names")
    first = str(names[0]).startswith("channel") if isinstance(names, list) and names else shape[0] == 3 != shape[-1]
    return (shape[1], shape[2]) if first else (shape[0], shape[1])


def feature_names(feature: dict[str, Any]) -> tuple[str, ...]:
    """Of the numbers of a vector; their places where it does not name them all."""
    size, names = int(feature["shape"][0]), feature.get("names")
    if isinstance(names, dict):  # {"motors": [...]}, as v2.1 has it
        names = next(iter(names.values()), None)
    fits = isinstance(names, list) and len(names) == size
    return tuple(map(str, names)) if fits and names is not None else tuple(str(i) for i in range(size))


def is_depth(feature: dict[str, Any]) -> bool:
    """As LeRobot tells it, `is_depth_map` or the older `video.is_depth_map`."""
    about = (feature.get("video_info") or {}) | (feature.get("info") or {})
    return bool(about.get("is_depth_map") or about.get("video.is_depth_map"))


def arrow_schema(contract: PolicyContract, *, video: bool = False) -> pa.Schema:
    """Types of the data files' columns, with the metadata that HuggingFace `datasets` knows them by."""
    types: dict[str, pa.DataType] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, feature in features(contract, video=video).items():
        if feature["dtype"] == "video":
            continue
        if feature["dtype"] == "image":
            types[name], described[name] = IMAGE_TYPE, {"_type": "Image"}
            continue
        types[name] = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}[feature["dtype"]]
        described[name] = {"dtype": feature["dtype"], "_type": "Value"}
        if feature["shape"] != [1]:
            length = feature["shape"][0]
            types[name] = pa.list_(pa.field("element", types[name]), length)
            described[name] = {"feature": described[name], "length": length, "_type": "List"}
    return pa.schema(types, metadata={"huggingface": json.dumps({"info": {"features": described}})})


def encode_image(image: NDArray[np.uint8]) -> bytes:
    """uint8 (H, W, 3) RGB -> PNG. Level 1 with run lengths is the fastest and, on renderings, the smallest."""
    import cv2

    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise VolarError(f"an image {image.shape} could not be encoded as PNG")
    return bytes(data)


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """PNG or JPEG -> uint8 (H, W, 3) RGB. Raises `DatasetError` when it is cut or no image."""
    import cv2

    image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    if image is None:
        raise DatasetError(f"an image of {len(data)} bytes cannot be decoded")
    return image.astype(np.uint8, copy=False)


@dataclass(frozen=True)
class EncodedEpisode:
    """An episode's columns that do not depend on its place in a dataset, as an Arrow stream in `file`.

    `facts`: instruction, task, seed, success, info and statistics, as JSON values. `steps`: T.
    """

    facts: dict[str, Any]
    steps: int
    file: IO[bytes]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The columns in pieces of at most `ROWS` frames."""
        self.file.seek(0)
        yield from pa.ipc.open_stream(pa.PythonFile(self.file, "r"))


def encode_frames(
    episode: Episode, images: Mapping[str, Iterable[NDArray[np.uint8]]], contract: PolicyContract, file: IO[bytes]
) -> EncodedEpisode:
    """An episode into an empty file that can be read too, with no more than `ROWS` of its frames in memory.

    `images`: camera -> its frames (H, W, 3) in order, taken once; those of `episode` are not looked at. Raises
    `DatasetError` when they do not fit the contract.
    """
    steps = len(episode)
    vectors, scalars = _vectors(episode), _scalars(episode, contract)
    statistics: dict[str, object] = {k: lerobot_statistics(v) for k, v in (vectors | scalars).items()}
    sample = set(np.linspace(0, steps - 1, STATISTICS_FRAMES).round().astype(int).tolist())
    picked: dict[str, list[NDArray[np.uint8]]] = {camera.name: [] for camera in contract.cameras}
    frames = {c.name: _checked(iter(images[c.name]), c, steps) for c in contract.cameras}
    writer: Any = None
    for start in range(0, steps, ROWS):
        rows = range(start, min(start + ROWS, steps))
        columns: dict[str, pa.Array] = {}
        for name, stream in frames.items():
            encoded = []
            for k in rows:
                frame = next(stream)
                encoded.append({"bytes": encode_image(frame), "path": None})
                if k in sample:
                    picked[name].append(frame)
            columns[IMAGE_PREFIX + name] = pa.array(encoded, IMAGE_TYPE)
        here = slice(rows.start, rows.stop)
        for name, x in vectors.items():
            flat = pa.array(x[here].ravel())
            # LeRobot keeps a vector of one number as a number.
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, x.shape[1]) if x.shape[1] > 1 else flat
        columns |= {name: pa.array(x[here]) for name, x in scalars.items()}
        batch = pa.record_batch(columns)
        writer = writer or pa.ipc.new_stream(pa.PythonFile(file, "w"), batch.schema)
        writer.write_batch(batch)
    writer.close()
    for stream in frames.values():
        next(stream, None)  # raises where there are more frames than steps
    statistics |= {IMAGE_PREFIX + name: lerobot_image_statistics(np.stack(found)) for name, found in picked.items()}
    facts = {
        "instruction": episode.instruction,
        "task": episode.task,
        "seed": episode.seed,
        "success": bool(episode.success),
        "info": dict(episode.info),
        "statistics": statistics,
    }
    return EncodedEpisode(facts, steps, file)


def encode_episode(episode: Episode, contract: PolicyContract) -> bytes:
    """An episode as plain bytes, made in any process, ready for `EpisodeWriter.append`.

    They are a line of JSON, then the Arrow stream. Raises `VolarError` when it does not fit the contract.
    """
    _check_fits(episode, contract)
    file = io.BytesIO()
    encoded = encode_frames(episode, episode.images, contract, file)
    return json.dumps({"steps": encoded.steps, "facts": encoded.facts}).encode() + b"\n" + file.getvalue()


def decode_stream(data: bytes) -> EncodedEpisode:
    """What `encode_episode` made. Raises `DatasetError` on other bytes."""
    head, _, stream = data.partition(b"\n")
    try:
        about = json.loads(head)
        pa.ipc.open_stream(stream)
        return EncodedEpisode(about["facts"], int(about["steps"]), io.BytesIO(stream))
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"these {len(data)} bytes are no encoded episode: {error}") from error


def _vectors(episode: Episode) -> dict[str, NDArray[Any]]:
    """Columns (T, D)."""
    points = episode.points.reshape(len(episode), -1)
    valid = np.isfinite(points)
    return {
        "observation.state": episode.state,
        "action": episode.actions,
        POINTS: np.where(valid, points, 0.0).astype(np.float32),
        POINTS_VALID: valid,
    }


def _scalars(episode: Episode, contract: PolicyContract) -> dict[str, NDArray[Any]]:
    """Columns (T,)."""
    steps = np.arange(len(episode), dtype=np.int64)
    last = steps == len(episode) - 1
    return {
        "next.reward": (last & episode.success).astype(np.float32),
        "next.done": last,
        "next.success": last & episode.success,
        "timestamp": (steps / frames_per_second(contract)).astype(np.float32),
        "frame_index": steps,
    }


def _checked(frames: Iterator[NDArray[np.uint8]], camera: CameraSpec, steps: int) -> Iterator[NDArray[np.uint8]]:
    """The frames, of the contract's size and number. Raises `DatasetError`."""
    wanted, count = (camera.height, camera.width, 3), 0
    for frame in frames:
        if frame.shape != wanted or frame.dtype != np.uint8:
            raise DatasetError(f"camera {camera.name} is {frame.dtype} {frame.shape}, the contract uint8 {wanted}")
        count += 1
        if count <= steps:
            yield frame
    if count != steps:
        raise DatasetError(f"camera {camera.name} has {count} images, the episode {steps} steps")


def _check_fits(episode: Episode, contract: PolicyContract) -> None:
    wrong = []
    cameras = {c.name: (c.height, c.width, 3) for c in contract.cameras}
    if cameras.keys() != episode.images.keys():
        wrong.append(f"cameras {sorted(episode.images)}, the contract {sorted(cameras)}")
    for name in cameras.keys() & episode.images.keys():
        image = episode.images[name]
        if image.shape[1:] != cameras[name] or image.dtype != np.uint8:
            wrong.append(f"camera {name} {image.dtype} {image.shape[1:]}, the contract uint8 {cameras[name]}")
    for name, x, size in (
        ("state", episode.state, len(contract.state_names)),
        ("actions", episode.actions, contract.action.size),
    ):
        if x.dtype != np.float32 or x.shape[1:] != (size,):
            wrong.append(f"{name} {x.dtype} {x.shape[1:]}, the contract float32 ({size},)")
    if wrong:
        raise VolarError("the episode does not fit the contract: " + "; ".join(sorted(wrong)))
