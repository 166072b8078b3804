"""The rules of DESIGN.md that hold the code together: layout, import order, light imports, no side effects."""

import ast
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AREAS = ("robots", "datasets", "vla", "sim", "rl")
RANK = {"robots": 0, "datasets": 1, "vla": 2, "sim": 2, "rl": 3}
ROBOTS_MAY_IMPORT = {"numpy", "volar", *sys.stdlib_module_names}
# The adapter to ROS 2 is a folder: classes of nodes derive from rclpy's.
ROS2_MAY_IMPORT = {"rclpy", *(f"{name}_msgs" for name in ("diagnostic", "rosgraph", "sensor", "std", "trajectory"))}
ROS2_MAY_IMPORT |= {"rcl_interfaces", "std_srvs"}
HEAVY = ("torch", "mujoco", "lerobot", "hydra", "onnxruntime", "rclpy", "gymnasium", "transformers", "mink", "ruckig")
LONG, TOO_LONG = 300, 400  # lines of a file: a warning, and a failure


def sources(*areas: str) -> list[Path]:
    return sorted(path for area in areas for path in (ROOT / area).rglob("*.py") if "__pycache__" not in path.parts)


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("volar", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import; write `from volar.area.module import Name`"
        # `from volar import robots` names an area too.
        return [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "volar" else [str(node.module)]
    return []


def at_module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements that run on import: not inside functions, not under `if TYPE_CHECKING`."""
    open_nodes: list[ast.AST] = list(tree.body)
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            open_nodes += node.orelse
            continue
        yield node
        open_nodes += list(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", sources(*AREAS), ids=names(sources(*AREAS)))
def test_imports_follow_the_order(path: Path) -> None:
    area = path.relative_to(ROOT).parts[0]
    for node in ast.walk(ast.parse(path.read_text())):
        for name in imported(node):
            parts = name.split(".")
            assert parts[0] not in {"robots", "vla", "sim", "rl", "launch", "tests"}, f"import volar.{name}, not {name}"
            if parts[0] == "volar" and len(parts) > 1 and parts[1] in RANK and parts[1] != area:
                assert RANK[parts[1]] < RANK[area], f"{name} in {area}: robots < datasets < {{vla, sim}} < rl"


@pytest.mark.parametrize("path", sources("robots"), ids=names(sources("robots")))
def test_robots_import_only_numpy_at_module_level(path: Path) -> None:
    allowed = ROBOTS_MAY_IMPORT | (ROS2_MAY_IMPORT if path.parent.name == "ros2" else set())
    for node in at_module_level(ast.parse(path.read_text())):
        for name in imported(node):
            assert name.split(".")[0] in allowed, f"line {node.lineno}: import {name} inside what needs it"  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", sources(*AREAS), ids=names(sources(*AREAS)))
def test_nothing_is_pickled(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        for name in imported(node):
            assert name.split(".")[0] not in {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def test_files_tell_one_story() -> None:
    files = names(sources(*AREAS, "tests", "benchmarks"))
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in files}
    for name, lines in sorted(lengths.items()):
        if lines > LONG:
            warnings.warn(f"{name} has {lines} lines, more than {LONG}", stacklevel=1)
    assert {name: lines for name, lines in lengths.items() if lines > TOO_LONG} == {}


def test_areas_are_not_packages_at_the_root() -> None:
    # A regular package `datasets` in the root would hide HuggingFace's wherever the root is on sys.path.
    assert [name for name in (*AREAS, "tests", "launch") if (ROOT / name / "__init__.py").exists()] == []
    for area in AREAS:
        link = ROOT / ".src" / "volar" / area
        assert link.is_symlink()
        assert link.resolve() == ROOT / area


def test_launch_holds_no_importable_code() -> None:
    for path in (ROOT / "launch").rglob("*.py"):
        assert path.name == "setup.py" or path.name.endswith(".launch.py"), f"{path.name} belongs to an area"


def test_huggingface_datasets_is_the_one_imported_from_the_root() -> None:
    import datasets

    assert hasattr(datasets, "Dataset")  # also under `python -m pytest`, which puts the root on sys.path
    code = "import sys, datasets; assert sys.path[0] == ''; print(datasets.Dataset.__module__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("datasets.")


@pytest.mark.parametrize(("ros2", "heavy"), [(False, []), (True, ["rclpy"])])
def test_importing_robots_is_light(ros2: bool, heavy: list[str]) -> None:
    """Only the adapter to ROS 2 brings rclpy, and nothing but that."""
    modules = [module_of(path) for path in sources("robots") if (path.parent.name == "ros2") == ros2]
    code = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(heavy)


def test_importing_does_nothing(tmp_path: Path) -> None:
    """Every module imports, and none of ours sets up logging, changes paths or environment, or starts CUDA."""
    modules = [module_of(path) for path in sources(*AREAS)]
    code = f"""
import importlib, logging, os, sys
import datasets, gymnasium, lerobot, mujoco, torch, transformers
import lerobot.datasets.lerobot_dataset, lerobot.policies.pretrained
log = logging.getLogger()
state = lambda: (list(log.handlers), log.level, list(sys.path), os.getcwd(), dict(os.environ))
before = state()
for name in {modules!r}:
    importlib.import_module(name)
for was, now in zip(before, state()):
    assert was == now, (was, now)
assert not torch.cuda.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
