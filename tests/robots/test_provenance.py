"""The command in a report is the one that makes it again, and the machine is this one."""

import os
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

import pytest

from volar.robots.command_line import parse
from volar.robots.provenance import changed, command, machine, made, processor


@dataclass(frozen=True)
class Config:
    policy: Path
    output: Path = Path("runs/a")
    name: str = "plain"
    tasks: tuple[str, ...] | None = None
    rates: tuple[float, ...] = (1.0, 2.0)
    seed: int = 0
    rate: float = 1e-4
    minutes: float | None = 3.0
    kind: Literal["one", "other"] = "one"
    films: bool = True
    weights: dict[str, float] = field(default_factory=dict)
    resume: bool = False
    overwrite: bool = False


@pytest.mark.parametrize(
    "config",
    [
        Config(Path("runs/policy")),
        Config(Path("../my runs/it's"), output=Path("/tmp/$HOME/a=b"), name='a "word", {b} \\'),
        Config(Path("p"), tasks=("reach", "it's two", "true", "7", "a,b"), name="none,full"),
        Config(Path("p"), tasks=(), rates=(), films=False),
        Config(Path("p"), rates=(0.5, 1e-9, 3.0), seed=-3, rate=2.5e-7, minutes=None, kind="other"),
        Config(Path("p"), rate=2.0, minutes=1e20, weights={"lift": 0.5}),
    ],
)
def test_a_shell_reads_the_command_as_the_same_settings(config: Config) -> None:
    words = shlex.split(command("volar-try", config))
    assert words[0] == "volar-try"
    assert parse(Config, words[1:]) == config


def test_only_what_differs_from_the_defaults_is_said() -> None:
    config = Config(Path("runs/policy"), seed=4, tasks=("reach", "lift"), films=False)
    assert command("volar-try", config) == "volar-try policy=runs/policy tasks=reach,lift seed=4 films=false"
    assert changed(config)["seed"] == ("4", "0")


def test_how_to_begin_in_a_folder_is_left_out() -> None:
    """A reader has no folder to go on in, or to replace."""
    assert command("volar-try", Config(Path("p"), resume=True)) == "volar-try policy=p"
    assert command("volar-try", Config(Path("p"), overwrite=True)) == "volar-try policy=p"


def test_the_date_is_in_utc() -> None:
    now = datetime(2026, 3, 1, 1, 30, 5, 999, timezone(timedelta(hours=2)))
    assert made("volar-try", Config(Path("p")), now)["date"] == "2026-02-28T23:30:05+00:00"
    assert datetime.fromisoformat(made("volar-try", Config(Path("p")), now)["date"]).tzinfo == UTC


def test_the_processor_has_its_model_for_a_name() -> None:
    assert processor("processor\t: 0\nmodel\t\t: 17\nmodel name\t: Some CPU @ 2.0GHz\nmodel name\t: no\n") == (
        "Some CPU @ 2.0GHz"
    )
    assert processor("Features : fp asimd\n") == os.uname().machine


def test_graphics_processors_are_named_or_where_they_are(tmp_path: Path) -> None:
    found = machine(tmp_path)
    assert found["gpu"] is None
    assert found["cpus"] == len(os.sched_getaffinity(0))
    assert found["cpu"]
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert machine(tmp_path)["gpu"] == "/dev/nvidia0"
    for bus, model in (("0000:01", "NVIDIA A"), ("0000:02", "NVIDIA B"), ("0000:03", "NVIDIA B")):
        folder = tmp_path / "proc" / "driver" / "nvidia" / "gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ: 5\n")
    assert machine(tmp_path)["gpu"] == "NVIDIA A, 2 × NVIDIA B"
