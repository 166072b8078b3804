"""Scenes are determined by their seed alone; making them can be cut and continued, and takes no one else's folder."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.datasets.durable_file import OutputExists
from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_format import load_contract
from volar.robots.errors import UsageError, VolarError
from volar.sim import collect_scenes
from volar.sim.collect import CollectConfig, collect
from volar.sim.collect_scenes import SHARD

SCENES = SHARD + 20  # two shards
SETTINGS = {"kind": "scenes", "scenes": SCENES, "image_size": 16}


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("scenes") / "one"
    collect(CollectConfig(output, workers=1, **SETTINGS))
    return output


def test_they_are_a_frame_cache_with_a_contract(scenes: Path) -> None:
    cache, contract = FrameCache.open(scenes), load_contract(scenes)
    assert len(cache) == SCENES
    assert list(cache.images) == [camera.name for camera in contract.cameras] == ["front", "wrist"]
    assert all(images.std(axis=(1, 2, 3)).min() > 0 for images in cache.images.values())
    assert np.isfinite(cache.points[:, 0]).all()
    np.testing.assert_allclose(cache.points[:, 2, :3], cache.state[:, :3], atol=1e-5)  # the hand
    assert set(contract.statistics) == {"observation.state"}
    assert not (scenes / "shards").exists()


def test_two_workers_make_the_same_bytes(scenes: Path, tmp_path: Path) -> None:
    collect(CollectConfig(tmp_path / "two", workers=2, **SETTINGS))
    assert _bytes(tmp_path / "two") == _bytes(scenes)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_to_the_same_bytes(scenes: Path, tmp_path: Path, how: signal.Signals) -> None:
    output = tmp_path / "cut"
    words = [f"{key}={value}" for key, value in SETTINGS.items()]
    # The signal comes after the first of two shards, from within: from outside it could come after the last.
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits that it is ignored
        "from volar.sim import collect_scenes\n"
        "from volar.sim.collect import main\n"
        "write = collect_scenes._write_shards\n"
        "def cut(*arguments):\n"
        "    for shard in write(*arguments):\n"
        f"        os.kill(os.getpid(), {how.value})\n"
        "        yield shard\n"
        "collect_scenes._write_shards = cut\n"
        "raise SystemExit(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words, f"output={output}", "workers=1"], stderr=subprocess.PIPE, text=True
    )
    _, said = process.communicate()
    assert not (output / "cache.json").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "resume=true" in said
    with pytest.raises(OutputExists, match="resume=true"):
        collect(CollectConfig(output, workers=1, **SETTINGS))
    collect(CollectConfig(output, workers=1, resume=True, **SETTINGS))
    assert _bytes(output) == _bytes(scenes)


def test_a_replacement_that_is_killed_leaves_no_shard_without_its_images(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, write, remove = tmp_path / "cut", collect_scenes._write_shards, shutil.rmtree

    def first_shard(*arguments: Any) -> Iterator[None]:
        yield next(write(*arguments))
        raise KeyboardInterrupt

    def first_folder(folder: Path, **_: Any) -> None:
        remove(folder)
        raise KeyboardInterrupt

    for name, killed, overwrite in (("_write_shards", first_shard, False), ("shutil.rmtree", first_folder, True)):
        with monkeypatch.context() as patch:
            patch.setattr(f"volar.sim.collect_scenes.{name}", killed)
            with pytest.raises(KeyboardInterrupt):
                collect(CollectConfig(output, workers=1, overwrite=overwrite, **SETTINGS))
    collect(CollectConfig(output, workers=1, resume=True, **SETTINGS))
    assert _bytes(output) == _bytes(scenes)


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from volar.sim.worker_pool import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    with worker_pool(1) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    script = tmp_path / "killed.py"
    script.write_text(code)
    # The worker inherits the pipe: reading to its end waits until the worker is gone.
    killed = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=False, timeout=180)
    assert killed.returncode == -signal.SIGKILL
    assert int(killed.stdout)  # the worker did run


def test_complete_scenes_are_accepted_refused_or_replaced(scenes: Path, tmp_path: Path) -> None:
    before = _bytes(scenes)
    collect(CollectConfig(scenes, workers=1, resume=True, **SETTINGS))
    with pytest.raises(OutputExists, match="resume=true, replace them with overwrite=true"):
        collect(CollectConfig(scenes, workers=1, **SETTINGS))
    with pytest.raises(VolarError, match="seed: 0, now 1"):
        collect(CollectConfig(scenes, workers=1, seed=1, resume=True, **SETTINGS))
    assert _bytes(scenes) == before
    old = shutil.copytree(scenes, tmp_path / "old")
    settings = json.loads((old / "scenes.json").read_text())
    (old / "scenes.json").write_text(json.dumps({key: v for key, v in settings.items() if key != "points"}))
    with pytest.raises(VolarError, match="points: None, now "):
        collect(CollectConfig(old, workers=1, resume=True, **SETTINGS))
    small = SETTINGS | {"scenes": 2}
    collect(CollectConfig(tmp_path / "small", workers=1, seed=1, **small))
    (tmp_path / "small" / "notes.txt").write_text("mine")
    collect(CollectConfig(tmp_path / "small", workers=1, seed=2, overwrite=True, **small))
    collect(CollectConfig(tmp_path / "other", workers=1, seed=2, **small))
    assert _bytes(tmp_path / "small") == _bytes(tmp_path / "other") | {"notes.txt": b"mine"}


def test_what_is_drawn_once_follows_from_the_seed(tmp_path: Path) -> None:
    terms = tmp_path / "startup.yaml"
    terms.write_text("terms:\n  - {field: ambient, mode: startup, distribution: {uniform: [0.1, 0.9]}}\n")
    settings = SETTINGS | {"scenes": 8, "workers": 1, "randomization": str(terms)}
    light = []
    for seed in (0, 1, 2):
        collect(CollectConfig(tmp_path / str(seed), seed=seed, **settings))
        light.append(FrameCache.open(tmp_path / str(seed)).images["front"].mean())
    assert np.ptp(light) > 10  # layouts alone change it by less than 3


def test_another_kind_of_folder_is_left_alone(scenes: Path, tmp_path: Path) -> None:
    demonstrations = tmp_path / "demonstrations"
    collect(CollectConfig(demonstrations, tasks=("reach",), episodes=1, image_size=16, workers=1))
    before = _bytes(demonstrations), _bytes(scenes)
    for overwrite in (False, True):
        with pytest.raises(OutputExists, match=r"something else \(data, meta\); give another output"):
            collect(CollectConfig(demonstrations, workers=1, overwrite=overwrite, **SETTINGS))
        with pytest.raises(OutputExists, match="something else"):
            collect(CollectConfig(scenes, tasks=("reach",), episodes=1, workers=1, overwrite=overwrite))
    assert (_bytes(demonstrations), _bytes(scenes)) == before


def test_a_disk_without_room_is_said_before_anything_is_rendered(tmp_path: Path) -> None:
    """A limit on the size of a file stands for the full disk, which a test cannot have."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(VolarError, match="File too large"):
            collect(CollectConfig(tmp_path / "full", workers=1, **SETTINGS))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert not list(tmp_path.glob("full/images/*"))


def test_settings_that_do_nothing_or_cannot_be_trained_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tasks= is for demonstrations"):
        collect(CollectConfig(tmp_path / "x", tasks=("reach",), **SETTINGS))
    for given, says in (
        ({"kind": "scenes", "episodes": 3}, "episodes= is for kind=demonstrations, not for kind=scenes"),
        ({"kind": "questions", "suite": "starter", "noise": 0.0}, "suite=, noise= is for kind=demonstrations"),
        ({"scenes": 3}, "scenes= is for kind=scenes or questions, not for kind=demonstrations"),
    ):
        with pytest.raises(UsageError, match=says):
            collect(CollectConfig(tmp_path / "x", **given))
    with pytest.raises(UsageError, match="image_size=100 is no multiple of 8"):
        CollectConfig(tmp_path / "x", image_size=100)
    for kind in ("scenes", "demonstrations"):
        for cameras in (("wrist", "front"), ("wrist",), ()):
            with pytest.raises(UsageError, match="cameras must begin with front"):
                collect(CollectConfig(tmp_path / "x", kind=kind, cameras=cameras))
    assert not (tmp_path / "x").exists()
