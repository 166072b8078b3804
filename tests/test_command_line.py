"""Settings arrive as the dataclass says, and every mistake is answered in one line with the right exit code."""

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volar.robots.command_line import parse, run
from volar.robots.errors import Unknown, UsageError, VolarError

ROOT = Path(__file__).parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
HEAVY = ("torch", "hydra", "omegaconf", "lerobot", "mujoco", "transformers", "gymnasium", "onnxruntime", "datasets")


@dataclass(frozen=True)
class Model:
    width: int = field(default=64, metadata={"help": "hidden size"})
    dropout: float | None = None


@dataclass(frozen=True)
class Config:
    output: Path = field(metadata={"help": "where it goes"})
    episodes: int = field(default=4, metadata={"help": "how many"})
    rate: float = 1e-3
    tasks: tuple[str, ...] = ("lift",)
    size: tuple[int, int] = (64, 64)
    instruction: str = "lift the red block"
    kind: Literal["bins", "fast"] = "bins"
    seed: int | None = 0
    weights: dict[str, float] = field(default_factory=dict)
    model: Model = field(default_factory=Model)
    recipe: str = field(default="none", metadata={"help": "named settings", "group": True})
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.episodes < 0:
            raise ValueError(f"episodes={self.episodes} must not be negative")


def call(
    words: list[str], error: BaseException | None = None, config_dir: Path | None = None, writes: bool = False
) -> int:
    def main(config: Config) -> None:
        assert isinstance(config, Config)
        if writes:
            config.output.mkdir(exist_ok=True)
            (config.output / "begun").touch()
        if error is not None:
            raise error

    return run("volar-try", Config, main, doc="Tries.", config_dir=config_dir, positional=("output",), argv=words)


def test_defaults_and_types() -> None:
    assert parse(Config, ["output=a/b"]) == Config(Path("a/b"))
    words = ["output=a", "episodes=7", "rate=1", "tasks=[lift,reach]", "size=8,9"]
    found = parse(Config, [*words, "kind=fast", "seed=null", "resume=true"])
    assert found == Config(Path("a"), 7, 1.0, ("lift", "reach"), (8, 9), kind="fast", seed=None, resume=True)
    assert isinstance(found.rate, float)


def test_nested_values() -> None:
    found = parse(Config, ["output=a", "model.width=128", "model.dropout=0.5", "weights.lift=2", "weights.reach=1"])
    assert found.model == Model(128, 0.5)
    assert found.weights == {"lift": 2.0, "reach": 1.0}


def test_a_list_needs_no_brackets() -> None:
    assert parse(Config, ["output=a", "tasks=lift,reach"]).tasks == ("lift", "reach")
    assert parse(Config, ["output=a", "tasks=reach"]).tasks == ("reach",)
    assert parse(Config, ["output=a", "tasks=[]"]).tasks == ()


@settings(max_examples=40)
@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12).filter(lambda t: "${" not in t))
def test_text_arrives_as_typed(text: str) -> None:
    if text == "???":  # OmegaConf's mark of a missing value
        return
    assert parse(Config, ["output=a", f"instruction={text}"]).instruction == text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a", "episods=3"], ["episods", "did you mean episodes"]),
        (["a", "model.widht=3"], ["model.widht", "model.width"]),
        (["a", "episodes.x=3"], ["episodes.x"]),
        (["a", "episodes=ten"], ["episodes=ten", "int"]),
        (["a", "episodes=2.5"], ["episodes=2.5", "int"]),
        (["a", "episodes=-1"], ["episodes=-1", "negative"]),
        (["a", "model.width=wide"], ["model.width=wide", "int"]),
        (["a", "resume=perhaps"], ["resume=perhaps", "bool"]),
        (["a", "kind=fats"], ["fats", "did you mean fast", "bins"]),
        (["a", "size=[1,2,3]"], ["size", "3 entries", "2"]),
        (["a", "seed=1,2"], ["seed=1,2"]),
        (["a", "rate=[1"], ["rate=[1"]),
        (["a", "b"], ["'b'", "key=value"]),
        (["a", "episodes=5", "rate=1", "episodes=9"], ["episodes is given twice", "episodes=5 and episodes=9"]),
        (["a", "output=b"], ["output is given twice", "output=a and output=b"]),
        (["a", "model.width=3", "model.width=3"], ["model.width is given twice"]),
        (["a", "--episodes=3"], ["--episodes=3", "write episodes=3"]),
        (["episodes=3"], ["missing output=..."]),
        (["output="], ["output", "path"]),
    ],
)
def test_a_wrong_command_line_is_named_in_one_line(
    words: list[str], says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("volar-try: error: ")
    assert said.count("\n") == 1
    for part in says:
        assert part in said


def test_unknown_settings_are_refused_before_hydra_is_imported() -> None:
    code = (
        "import sys; from volar.robots.doctor import main; sys.argv[1:] = ['artefact=a']; "
        "assert main() == 2; assert 'hydra' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "did you mean artifact" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (VolarError("no such robot\nhere"), 1, "no such robot here"),
        (UsageError("wrong"), 2, "wrong"),
        (Unknown("task", "lfit", ["lift"]), 2, "did you mean lift"),
        (RuntimeError("it broke"), 1, "RuntimeError: it broke (-v shows the traceback)"),
        (OSError(28, "No space left on device", "x.mp4"), 1, "the disk is full (x.mp4)"),
        (KeyboardInterrupt(), 130, "before anything was written; start again with: volar-try a episodes=3"),
    ],
)
def test_failures_are_one_line(error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["a", "episodes=3"], error) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert says in said


def test_the_way_to_go_on_after_an_interrupt_does_not_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"{tmp_path}/a", "overwrite=true", "episodes=3", "resume=false"]
    assert call(words, KeyboardInterrupt(), writes=True) == 130
    assert capsys.readouterr().err.endswith(f"; continue with: volar-try {tmp_path}/a episodes=3 resume=true\n")
    assert call([f"{tmp_path}/a", "resume=true"], KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.endswith(f"; continue with: volar-try {tmp_path}/a resume=true\n")


def test_resuming_where_nothing_is_says_in_one_line_that_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    begun = tmp_path / "killed" / "meta" / ".writer.json.tmp"  # a kill in the middle of its first file
    begun.parent.mkdir(parents=True)
    begun.touch()
    for name, words, says in (
        ("absent", ["resume=true"], f"nothing to resume in {tmp_path / 'absent'} yet: beginning anew\n"),
        ("empty", ["resume=true"], f"nothing to resume in {tmp_path / 'empty'} yet: beginning anew\n"),
        ("killed", ["resume=true"], f"nothing to resume in {tmp_path / 'killed'} yet: beginning anew\n"),
        ("absent", ["resume=true"], ""),  # the call before wrote there
        ("new", [], ""),
    ):
        assert call([str(tmp_path / name), *words], writes=True) == 0
        assert capsys.readouterr().out == says
    monkeypatch.setenv("RANK", "1")  # the second process of torchrun or accelerate
    assert call([str(tmp_path / "again"), "resume=true"]) == 0
    assert capsys.readouterr().out == ""


def test_an_interrupt_before_anything_is_replaced_does_not_lead_to_what_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "another_run").touch()
    assert call([str(tmp_path), "overwrite=true"], KeyboardInterrupt()) == 130
    said = capsys.readouterr().err
    assert said.endswith(f"written; start again with: volar-try {tmp_path} overwrite=true\n")


def test_every_verb_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--version"]) == 0
    assert capsys.readouterr().out == f"volar-try {metadata.version('volar')}\n"


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["a", "-v"], RuntimeError("it broke")) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("volar-try: error: RuntimeError: it broke\n")


def test_the_exit_code_of_main_is_kept() -> None:
    assert run("volar-try", Config, lambda config: 1, doc=None, argv=["output=a"]) == 1


def test_a_group_lies_between_defaults_and_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "demo.yaml").write_text("episodes: 9\nmodel: {width: 3}\ntasks: [reach]\n")
    (tmp_path / "recipe" / "typo.yaml").write_text("model: {widht: 9}\n")
    found = parse(Config, ["output=a", "recipe=demo", "model.width=5"], config_dir=tmp_path)
    assert (found.episodes, found.model.width, found.tasks, found.recipe) == (9, 5, ("reach",), "demo")
    assert call(["a", "recipe=dmo"], config_dir=tmp_path) == 2
    assert "did you mean demo" in capsys.readouterr().err
    assert call(["a", "recipe=typo"], config_dir=tmp_path) == 2
    assert "typo.yaml: unknown setting 'model.widht'" in capsys.readouterr().err


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--help"]) == 0
    said = capsys.readouterr().out
    for part in ("Tries.", "[OUTPUT]", "required. where it goes", "episodes=4", "bins|fast", "model.width=64"):
        assert part in said


def test_nothing_is_written_and_no_directory_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(["a", "episodes=1"]) == 0
    assert Path.cwd() == tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", SCRIPTS)
def test_help_of_each_verb_imports_nothing_heavy(verb: str, tmp_path: Path) -> None:
    module, _, function = SCRIPTS[verb].partition(":")
    code = (
        f"import sys; from {module} import {function}; sys.argv = [{verb!r}, '--help']; assert {function}() == 0; "
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]; assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: {verb}" in done.stdout
    assert "examples:" in done.stdout


@pytest.mark.parametrize("verb", SCRIPTS)
def test_each_verb_refuses_an_unknown_setting(verb: str, tmp_path: Path) -> None:
    module, _, function = SCRIPTS[verb].partition(":")
    code = f"import sys; from {module} import {function}; sys.argv[1:] = ['no_such_setting=1']; sys.exit({function}())"
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"{verb}: error: unknown setting 'no_such_setting'")
