"""LeRobotDataset v3 on disk: file names, features, and the encoding of an episode.

Images are lossless PNG inside the data files (dtype "image"), which LeRobot, HuggingFace `datasets` and
DuckDB read alike. LeRobot's own writer took 0.40 s for an episode of 40 steps and two 96 x 96 cameras on one
core (150 episodes a minute at most, in the one process that writes); `encode_episode` takes about a tenth,
in whichever process made the episode. Writing the files: `episode_writer.py`; reading: `lerobot_format.py`.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from volar.datasets.episode import POINT_FIELDS, POINT_NAMES, Episode
from volar.datasets.statistics import lerobot_image_statistics, lerobot_statistics
from volar.robots.contract import PolicyContract
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


class DatasetError(VolarError):
    """A folder that is not a readable dataset, or not the one that is wanted."""


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


def encode_episode(episode: Episode, contract: PolicyContract) -> bytes:
    """An episode as an Arrow stream, ready for `EpisodeWriter.append`: plain bytes, made in any process.

    It holds every column that does not depend on the episode's place in the dataset, and as metadata its
    instruction, task, seed, success, info and statistics. Raises `VolarError` when it does not fit the contract.
    """
    _check_fits(episode, contract)
    steps = len(episode)
    points = episode.points.reshape(steps, -1)
    valid = np.isfinite(points)
    last = np.arange(steps) == steps - 1
    vectors: dict[str, NDArray[Any]] = {
        "observation.state": episode.state,
        "action": episode.actions,
        POINTS: np.where(valid, points, 0.0).astype(np.float32),
        POINTS_VALID: valid,
    }
    scalars: dict[str, NDArray[Any]] = {
        "next.reward": (last & episode.success).astype(np.float32),
        "next.done": last,
        "next.success": last & episode.success,
        "timestamp": (np.arange(steps) / frames_per_second(contract)).astype(np.float32),
        "frame_index": np.arange(steps, dtype=np.int64),
    }
    statistics: dict[str, object] = {k: lerobot_statistics(v) for k, v in (vectors | scalars).items()}
    columns: dict[str, pa.Array] = {}
    sample = np.unique(np.linspace(0, steps - 1, STATISTICS_FRAMES).round().astype(int))
    for camera in contract.cameras:
        frames = episode.images[camera.name]
        rows = [{"bytes": encode_image(frame), "path": None} for frame in frames]
        columns[IMAGE_PREFIX + camera.name] = pa.array(rows, IMAGE_TYPE)
        statistics[IMAGE_PREFIX + camera.name] = lerobot_image_statistics(frames[sample])
    for name, x in vectors.items():
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    columns |= {name: pa.array(x) for name, x in scalars.items()}
    facts = {
        "instruction": episode.instruction,
        "task": episode.task,
        "seed": episode.seed,
        "success": bool(episode.success),
        "info": dict(episode.info),
        "statistics": statistics,
    }
    table = pa.table(columns).replace_schema_metadata({"volar": json.dumps(facts)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def decode_stream(encoded: bytes) -> tuple[pa.Table, dict[str, Any]]:
    """What `encode_episode` made: the columns and the facts. Raises `DatasetError` on other bytes."""
    try:
        table = pa.ipc.open_stream(encoded).read_all()
        return table, json.loads(table.schema.metadata[b"volar"])
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise DatasetError(f"these {len(encoded)} bytes are no encoded episode: {error}") from error


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
