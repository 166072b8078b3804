"""A run that is killed, wherever, or whose disk is full, ends with the bits of one that was not."""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from volar.robots.errors import VolarError
from volar.vla.train import TrainConfig, train

Settings = Callable[..., TrainConfig]
FILES = ("pretrained_model/model.safetensors", "training_state/state.safetensors")


def assert_same(a: Path, b: Path) -> None:
    """Policies (averaged weights), weights and moments, bit for bit."""
    for name in FILES:
        one, other = (load_file(output / "checkpoints" / "last" / name) for output in (a, b))
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one), name


def killed(where: str, config: TrainConfig) -> None:
    """Trains in another process until a line of code there, which sends SIGKILL; the rest are its settings."""
    names = ("dataset", "scenes", "questions", "output", "steps", "batch_size", "warmup_steps", "precision", "threads")
    names += ("width", "layers", "accumulate", "validation", "save_every_steps", "resume", "seed")
    given = {name: getattr(config, name) for name in (*names, "validate_every_steps")}
    words = [f"{name}={value}".replace("True", "true").replace("False", "false") for name, value in given.items()]
    words = [word for word in words if not word.endswith("=None")]
    code = f"import os, signal, sys\nfrom volar.vla import train, training_checkpoint, training_run\n{where}\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}raise SystemExit(train.main())", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def before_calling(owner: str, name: str, condition: str) -> str:
    return (
        f"do = {owner}.{name}\n"
        f"def cut(self, *args, **kwargs):\n"
        f"    if {condition}: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"    return do(self, *args, **kwargs)\n"
        f"{owner}.{name} = cut"
    )


def test_sigkill_anywhere_costs_nothing_but_time(
    settings: Settings, dataset: Path, questions: Path, tmp_path: Path
) -> None:
    """With accumulation, averages, held-out episodes, and scenes and questions beside the actions."""
    config = settings(
        scenes=dataset,
        questions=questions,
        validation=0.2,
        accumulate=2,
        steps=9,
        batch_size=12,
        width=32,
        layers=2,
        save_every_steps=2,
    )
    train(replace(config, output=tmp_path / "whole"))
    last = config.output / "checkpoints" / "last"
    # Between the two halves of a step: the first, that after a checkpoint, the last but one. Each run goes on from the
    # kill before; from the first, of which there is no checkpoint, it begins anew.
    for step, saved in ((0, None), (4, "000004"), (7, "000006")):
        where = before_calling("training_run.TrainingRun", "_losses", f"self.step == {step} and args[-1] == 1")
        killed(where, replace(config, resume=True))
        assert (last.resolve().name if last.exists() else None) == saved
    # Then with a checkpoint complete, but not yet at its place.
    killed(before_calling("training_checkpoint", "publish", "args[0] == 8"), replace(config, resume=True))
    assert last.resolve().name == "000006"
    train(replace(config, resume=True))
    assert last.resolve().name == "000009"
    assert_same(tmp_path / "whole", config.output)


def test_what_was_to_be_measured_of_a_checkpoint_is_measured_after_all(settings: Settings, tmp_path: Path) -> None:
    """Killed between the two, in the middle of a run and at its end."""
    config = settings(validation=0.2, validate_every_steps=2, save_every_steps=2, steps=5, width=16, layers=1)
    train(replace(config, output=tmp_path / "whole"))
    where = "from volar.vla import validation\n"
    where += before_calling("validation.Validation", "measure", "self._training.step == 2")
    killed(where, config)
    killed(where.replace("== 2", "== 5"), replace(config, save_every_steps=5, resume=True))
    assert (config.output / "checkpoints" / "last").resolve().name == "000005"
    train(replace(config, resume=True))
    train(replace(config, resume=True))  # there is nothing more to do
    found = [(config.output / "metrics.jsonl").read_text(), (tmp_path / "whole" / "metrics.jsonl").read_text()]
    mine, whole = ([json.loads(line) for line in text.splitlines()] for text in found)
    assert [row["step"] for row in mine] == [row["step"] for row in whole] == [2, 4, 5]
    for one, other in zip(mine, whole, strict=True):
        for name in ("token_accuracy", "l1_m", "l1_rad", "l1_gripper"):
            assert one[f"validation/{name}"] == other[f"validation/{name}"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`disk(size)`: a real file system of that many bytes; again, the same one with another size."""
    folder = tmp_path / "disk"

    def mount(size: int) -> Path:
        there = folder.exists()
        folder.mkdir(exist_ok=True)
        how = f"{'remount,' if there else ''}size={size}"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
        return folder

    try:
        yield mount
    finally:
        subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def test_a_full_disk_costs_nothing_but_time(settings: Settings, tmp_path: Path, disk: Callable[[int], Path]) -> None:
    small = settings(width=32, layers=1, steps=3)
    train(replace(small, output=tmp_path / "whole"))
    folder = tmp_path / "whole" / "checkpoints" / "last"
    size = sum(path.stat().st_size for path in folder.resolve().rglob("*") if path.is_file())
    config = replace(small, output=disk(3 * size // 2) / "run", save_every_steps=1, keep=1)
    with pytest.raises(VolarError, match=r"step 2 .*/run/checkpoints .*No space left.*[\d,]+ bytes free.*resume=true"):
        train(config)
    last = config.output / "checkpoints" / "last"
    assert last.resolve().name == "000001"
    assert [path.name for path in sorted(last.parent.iterdir())] == ["000001", "last"]  # no half of one
    disk(4 * size)
    train(replace(config, resume=True))
    assert_same(tmp_path / "whole", config.output)


def test_a_file_that_may_not_grow_is_a_full_disk(settings: Settings) -> None:
    train(settings(steps=1))
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        with pytest.raises(VolarError, match="free some space, then continue with resume=true"):
            train(settings(steps=2, resume=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    train(settings(steps=2, resume=True))
