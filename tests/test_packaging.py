"""A wheel built from the checkout works outside it, and CI's versions are pinned."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
AREAS = ("robots", "datasets", "vla", "sim", "rl")


def data_files(root: Path) -> set[str]:
    """What must be in a wheel besides Python files: paths relative to the areas' parent. Notes for readers stay."""
    return {
        str(path.relative_to(root))
        for area in AREAS
        for path in (root / area).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and path != root / area / "README.md"
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout: setuptools leaves `build/` where it works."""
    source = tmp_path_factory.mktemp("source")
    for name in (".src", *AREAS):
        ignore = shutil.ignore_patterns("*.egg-info", "__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed."""
    wheels, target = (tmp_path_factory.mktemp(name) for name in ("wheels", "target"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(wheels)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = wheels.glob("volar-*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--no-compile", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True)
    return target


def test_the_shipped_policy_stays_small() -> None:
    """It is in every clone and every wheel."""
    folder = ROOT / "vla/checkpoints/tiny"
    assert 1_000_000 < sum(path.stat().st_size for path in folder.rglob("*")) < 15_000_000


def outside(installed: Path, code: str, cwd: Path) -> str:
    """Runs code far from the checkout with the installed `volar` before the editable one."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = (
        "import volar; from volar.robots.fr3 import FR3; from volar.robots.spec import load_robot; "
        "assert load_robot('fr3') is FR3; print(volar.__file__)"
    )
    assert Path(outside(installed, code, tmp_path)).is_relative_to(installed)


def test_the_wheel_carries_the_data(source: Path, installed: Path) -> None:
    wanted = data_files(source)
    assert any(name.startswith("vla/tokenizers/") for name in wanted)
    assert data_files(installed / "volar") == wanted
    assert (installed / "volar" / "py.typed").is_file()


def test_the_wheel_carries_every_module(source: Path, installed: Path) -> None:
    def modules(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for area in AREAS for path in (root / area).rglob("*.py")}

    assert modules(installed / "volar") == modules(source)


def test_the_wheel_declares_scripts_and_policies(installed: Path, tmp_path: Path) -> None:
    assert {path.name for path in (installed / "bin").iterdir()} == set(PROJECT["scripts"])
    code = "from volar.robots.doctor import main; import sys; sys.argv[1:] = ['-h']; sys.exit(main())"
    assert "volar-doctor" in outside(installed, code, tmp_path)


def test_declared_objects_exist() -> None:
    points = {**PROJECT["scripts"], **{k: v for g in PROJECT["entry-points"].values() for k, v in g.items()}}
    for value in points.values():
        module, _, name = value.partition(":")
        assert callable(getattr(import_module(module), name))


def test_every_dependency_is_pinned() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    for line in lines:  # a name and a version: no path, no address of an index
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", line), line
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    extras = [item for group in PROJECT["optional-dependencies"].values() for item in group]
    for text in [*PROJECT["dependencies"], *extras]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), text
