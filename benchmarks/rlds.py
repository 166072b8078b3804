"""Figures of RLDS reading and conversion. `python benchmarks/rlds.py [--gigabytes 20]`

Writes two shards of episodes in DROID's form (three 180 x 320 cameras as JPEG, 200 steps), lets the folder's
`dataset_info.json` name them again and again until they are as many gigabytes as asked for, and streams all of it:
MB/s of file read and the largest resident memory of the process, once with the record framing alone, once with numbers,
once with every image decoded (on a part), and once through `volar-convert` (on a part). Nothing is kept.
"""

import argparse
import json
import resource
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from volar.datasets.convert import ConvertConfig, convert
from volar.datasets.rlds import RldsDataset, RldsEpisode
from volar.datasets.tf_example import example_class
from volar.datasets.tfrecord import masked_crc

CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
STEPS, EPISODES, SHARDS = 200, 12, 2
NUMBERS = {
    "action_dict/cartesian_velocity": 6,
    "action_dict/gripper_position": 1,
    "observation/cartesian_position": 6,
    "observation/gripper_position": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=20.0, help="to stream, with numbers")
    parser.add_argument("--decoded", type=float, default=0.5, help="gigabytes of which every image is decoded")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "droid"
        size = write_shards(root)
        print(f"{SHARDS} shards of {EPISODES} episodes, {STEPS} steps, {len(CAMERAS)} cameras: {size / 1e6:.0f} MB")
        for what, gigabytes, touch in (
            ("record framing and CRC", options.gigabytes, lambda e: None),
            ("states, actions, instructions", options.gigabytes, read_numbers),
            ("and every image", options.decoded, read_images),
        ):
            repeat(root, max(1, round(gigabytes * 1e9 / size)))
            began, episodes = time.perf_counter(), 0
            for episode in RldsDataset.open(root).episodes():
                touch(episode)
                episodes += 1
            read = episodes * size / (SHARDS * EPISODES)
            report(what, read, episodes, time.perf_counter() - began)
        repeat(root, 1)
        began = time.perf_counter()
        convert(ConvertConfig("rlds", root, Path(folder) / "out", image_size=128))
        report("volar-convert image_size=128", size, SHARDS * EPISODES, time.perf_counter() - began)


def report(what: str, read: float, episodes: int, seconds: float) -> None:
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rate = f"{read / 1e6 / seconds:7.0f} MB/s {episodes * STEPS / seconds:9.0f} steps/s"
    print(f"{what:32} {read / 1e9:6.2f} GB {rate}  largest resident memory so far {resident / 1e6:.0f} MB", flush=True)


def read_numbers(episode: RldsEpisode) -> None:
    for key in NUMBERS:
        episode[f"steps/{key}"]
    episode["steps/language_instruction"]


def read_images(episode: RldsEpisode) -> None:
    read_numbers(episode)
    for camera in CAMERAS:
        episode[f"steps/observation/{camera}"]


def repeat(root: Path, times: int) -> None:
    """`dataset_info.json` and links that make the shards `times` as many."""
    count = SHARDS * times
    for path in root.glob("droid-train*"):
        path.unlink()
    for i in range(count):
        (root / f"droid-train.tfrecord-{i:05d}-of-{count:05d}").symlink_to(root / f"shard-{i % SHARDS}")
    split = {"name": "train", "shardLengths": [str(EPISODES)] * count}
    (root / "dataset_info.json").write_text(json.dumps({"name": "droid", "version": "1.0.0", "splits": [split]}))


def write_shards(root: Path) -> int:
    """Both shards and `features.json`; returns their bytes."""
    root.mkdir()
    (root / "features.json").write_text(json.dumps(dictionary(steps={"sequence": {"feature": step_features()}})))
    rng = np.random.default_rng(0)
    total = 0
    for shard in range(SHARDS):
        path = root / f"shard-{shard}"
        with path.open("wb") as file:
            for data in (episode_bytes(rng) for _ in range(EPISODES)):
                length = struct.pack("<Q", len(data))
                file.write(length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data)))
        total += path.stat().st_size
    return total


def dictionary(**features: object) -> dict[str, Any]:
    return {"featuresDict": {"features": features}}


def step_features() -> dict[str, Any]:
    """Of `features.json`, below `steps`."""
    picture = {"image": {"shape": {"dimensions": ["180", "320", "3"]}, "dtype": "uint8", "encodingFormat": "jpeg"}}
    groups: dict[str, dict[str, Any]] = {"observation": dict.fromkeys(CAMERAS, picture), "action_dict": {}}
    for key, size in NUMBERS.items():
        group, _, name = key.rpartition("/")
        groups[group][name] = {"tensor": {"shape": {"dimensions": [str(size)]}, "dtype": "float64"}}
    return dictionary(
        language_instruction={"text": {}}, **{name: dictionary(**leaves) for name, leaves in groups.items()}
    )


def episode_bytes(rng: np.random.Generator) -> bytes:
    example = example_class()()
    for key, size in NUMBERS.items():
        values = rng.uniform(0, 1, STEPS * size).tolist()
        example.features.feature[f"steps/{key}"].float_list.value.extend(values)
    for camera in CAMERAS:
        example.features.feature[f"steps/observation/{camera}"].bytes_list.value.extend(pictures(rng))
    example.features.feature["steps/language_instruction"].bytes_list.value.extend([b"put the cup away"] * STEPS)
    data: bytes = example.SerializeToString()
    return data


def pictures(rng: np.random.Generator) -> Iterator[bytes]:
    """Smooth random images, a little different in each step, as JPEG of the size that DROID's are (about 20 kB)."""
    base = cv2.resize(rng.integers(0, 256, (24, 40, 3), np.uint8), (320, 180), interpolation=cv2.INTER_CUBIC)
    for _ in range(STEPS):
        noisy = cv2.add(base, rng.integers(0, 24, base.shape, np.uint8))
        yield bytes(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])


if __name__ == "__main__":
    main()
