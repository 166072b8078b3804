"""Figures of RLDS reading and conversion. `python -P benchmarks/rlds.py [--gigabytes 20] [--tfds PYTHON]`

Writes two shards of episodes in DROID's form (three 180 x 320 cameras as JPEG, 200 steps), lets the folder's
`dataset_info.json` name them again and again until they are as many gigabytes as asked for, and reads all of it: each
figure is a process of its own, so that its resident memory is its own, and those that are compared are taken in turn, a
few rounds, of which the median counts. `--tfds` names a Python with `tensorflow-datasets`, which then reads the same
folder. Last, `volar-convert` of long episodes: three of 1,500 steps and two 256 x 256 cameras. Nothing is kept.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
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
LONG_STEPS, LONG_EPISODES = 1500, 3
NUMBERS = {
    "action_dict/cartesian_velocity": 6,
    "action_dict/gripper_position": 1,
    "observation/cartesian_position": 6,
    "observation/gripper_position": 1,
}
# Every step of an episode in one batch, which is the fastest way to its arrays; `skip` leaves images encoded.
TFDS = """
import json, resource, sys, time
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
cameras = json.loads(sys.argv[3])
skip = {"steps": {"observation": {name: tfds.decode.SkipDecoding() for name in cameras}}}
read = builder.as_dataset(split="train", decoders=skip if sys.argv[2] == "skip" else None)
next(iter(next(iter(read))["steps"]))
began, episodes = time.perf_counter(), 0
for episode in read:
    for steps in episode["steps"].batch(2000).as_numpy_iterator():
        assert len(steps["action_dict"]["gripper_position"]) > 0
    episodes += 1
seconds = time.perf_counter() - began
print(json.dumps([seconds, episodes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=20.0, help="to stream, with numbers")
    parser.add_argument("--decoded", type=float, default=0.3, help="gigabytes of which every image is decoded, a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tfds", type=Path, help="a Python that has tensorflow-datasets, to compare with")
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        return one_task(options.task[0], Path(options.task[1]))
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {load}, {date.today()}")
    with tempfile.TemporaryDirectory() as folder:
        root, long = Path(folder) / "droid", Path(folder) / "long"
        size = write_shards(root)
        print(f"{SHARDS} shards of {EPISODES} episodes, {STEPS} steps, {len(CAMERAS)} cameras: {size / 1e6:.0f} MB")
        repeat(root, max(1, round(options.gigabytes * 1e9 / size)))
        for task in ("framing", "numbers"):
            report(size, {task: [measured(task, root, options)]})
        repeat(root, max(1, round(options.decoded * 1e9 / size)))
        compared = ["encoded", "images"] + (["tfds skip", "tfds images"] if options.tfds else [])
        rounds = [{task: measured(task, root, options) for task in compared} for _ in range(options.rounds)]
        report(size, {task: [found[task] for found in rounds] for task in compared})
        repeat(root, 1)
        report(size, {"convert": [measured("convert", root, options)]})
        size = write_long(long)
        print(f"{LONG_EPISODES} episodes of {LONG_STEPS} steps, 2 cameras of 256 x 256: {size / 1e6:.0f} MB")
        for task in ("convert long", "convert long video"):
            report(size, {task: [measured(task, long, options)]}, LONG_EPISODES, LONG_STEPS)
    return None


def measured(task: str, root: Path, options: argparse.Namespace) -> tuple[float, int, float]:
    """Seconds, episodes, and the largest resident memory [MiB] of the process that did it."""
    command = [sys.executable, "-P", __file__, "--task", task, str(root)]
    if task.startswith("tfds"):
        command = [str(options.tfds), "-c", TFDS, str(root), task.split()[1], json.dumps(CAMERAS)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds, episodes, resident = json.loads(done.stdout.strip().splitlines()[-1])
    return float(seconds), int(episodes), float(resident)


def one_task(task: str, root: Path) -> None:
    """In its own process: does it, and prints what `measured` returns."""
    touch = {"framing": lambda e: None, "numbers": read_numbers, "encoded": read_encoded, "images": read_images}
    began, episodes = time.perf_counter(), 0
    if task in touch:
        for episode in RldsDataset.open(root).episodes():
            touch[task](episode)
            episodes += 1
    else:
        video = "video" if task.endswith("video") else "images"
        out, size = root.with_name("out " + task), None if "long" in task else 128
        convert(ConvertConfig("rlds", root, out, dataset="droid", image_size=size, images=video))  # type: ignore[arg-type]
        episodes = LONG_EPISODES if "long" in task else SHARDS * EPISODES
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([time.perf_counter() - began, episodes, resident]))


def report(
    size: int, found: dict[str, list[tuple[float, int, float]]], of: int = SHARDS * EPISODES, steps: int = STEPS
) -> None:
    """`size`: bytes of `of` episodes."""
    for task, rounds in found.items():
        rates = [episodes / seconds for seconds, episodes, _ in rounds]  # episodes/s
        rate, episodes, resident = statistics.median(rates), rounds[0][1], max(r for _, _, r in rounds)
        spread = f" ({min(rates) * size / of / 1e6:.0f} to {max(rates) * size / of / 1e6:.0f})" * (len(rates) > 1)
        print(
            f"{task:20} {episodes * size / of / 1e9:6.2f} GB {rate * size / of / 1e6:7.0f} MB/s{spread} "
            f"{rate * steps:9.0f} steps/s, resident at most {resident:.0f} MB",
            flush=True,
        )


def read_numbers(episode: RldsEpisode) -> None:
    for key in NUMBERS:
        episode[f"steps/{key}"]
    episode["steps/language_instruction"]


def read_encoded(episode: RldsEpisode) -> None:
    """Everything, images as the bytes they are."""
    read_numbers(episode)
    for camera in CAMERAS:
        list(episode.example.strings(f"steps/observation/{camera}"))


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
    write_info(root, [EPISODES] * count)


def write_info(root: Path, lengths: list[int]) -> None:
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"name": "train", "shardLengths": [str(n) for n in lengths], "filepathTemplate": template}
    info = {"name": "droid", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (root / "dataset_info.json").write_text(json.dumps(info))


def write_shards(root: Path) -> int:
    """Both shards and `features.json`; returns their bytes."""
    root.mkdir()
    write_features(root, CAMERAS, 180, 320)
    rng = np.random.default_rng(0)
    total = 0
    for shard in range(SHARDS):
        path = root / f"shard-{shard}"
        write_records(path, (episode_bytes(rng, STEPS, CAMERAS, 180, 320) for _ in range(EPISODES)))
        total += path.stat().st_size
    return total


def write_long(root: Path) -> int:
    cameras = (CAMERAS[0], CAMERAS[2])
    root.mkdir()
    write_features(root, cameras, 256, 256)
    path, rng = root / "droid-train.tfrecord-00000-of-00001", np.random.default_rng(0)
    write_records(path, (episode_bytes(rng, LONG_STEPS, cameras, 256, 256) for _ in range(LONG_EPISODES)))
    write_info(root, [LONG_EPISODES])
    return path.stat().st_size


def write_records(path: Path, records: Iterator[bytes]) -> None:
    with path.open("wb") as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data)))


def write_features(root: Path, cameras: tuple[str, ...], height: int, width: int) -> None:
    def leaf(name: str, **about: object) -> dict[str, Any]:
        return {"pythonClassName": f"tensorflow_datasets.core.features.{name}", **about}

    def dictionary(**features: object) -> dict[str, Any]:
        return leaf("features_dict.FeaturesDict", featuresDict={"features": features})

    shape = {"dimensions": [str(height), str(width), "3"]}
    picture = leaf("image_feature.Image", image={"shape": shape, "dtype": "uint8", "encodingFormat": "jpeg"})
    groups: dict[str, dict[str, Any]] = {"observation": dict.fromkeys(cameras, picture), "action_dict": {}}
    for key, size in NUMBERS.items():
        group, _, name = key.rpartition("/")
        tensor = {"shape": {"dimensions": [str(size)]}, "dtype": "float64", "encoding": "none"}
        groups[group][name] = leaf("tensor_feature.Tensor", tensor=tensor)
    text = leaf("text_feature.Text", text={})
    steps = dictionary(language_instruction=text, **{name: dictionary(**leaves) for name, leaves in groups.items()})
    sequence = leaf("dataset_feature.Dataset", sequence={"feature": steps, "length": "-1"})
    (root / "features.json").write_text(json.dumps(dictionary(steps=sequence)))


def episode_bytes(rng: np.random.Generator, steps: int, cameras: tuple[str, ...], height: int, width: int) -> bytes:
    example = example_class()()
    for key, size in NUMBERS.items():
        values = rng.uniform(0, 1, steps * size).tolist()
        example.features.feature[f"steps/{key}"].float_list.value.extend(values)
    for camera in cameras:
        images = pictures(rng, steps, height, width)
        example.features.feature[f"steps/observation/{camera}"].bytes_list.value.extend(images)
    example.features.feature["steps/language_instruction"].bytes_list.value.extend([b"put the cup away"] * steps)
    data: bytes = example.SerializeToString()
    return data


def pictures(rng: np.random.Generator, steps: int, height: int, width: int) -> Iterator[bytes]:
    """Smooth random images, a little different in each step, as JPEG of the size that DROID's are (about 20 kB)."""
    small = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    base = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(steps):
        noisy = cv2.add(base, rng.integers(0, 24, base.shape, np.uint8))
        yield bytes(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])


if __name__ == "__main__":
    main()
