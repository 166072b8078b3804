"""A policy from a path: an exported artifact, or a policy directory through the entry points of `volar.policies`.

This is how evaluation and control run any policy without importing the package that made it: a distribution
declares `[project.entry-points."volar.policies"] name = "module:load"`, where `name` is the `"type"` in the
directory's `config.json` and `load(path: Path) -> Policy`. Any other type is LeRobot's (`lerobot_policy`), if the
folder holds LeRobot's processors; `lerobot:PATH` says so explicitly.
"""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import volar
from volar.robots.contract import PolicyContract
from volar.robots.errors import Unknown, VolarError
from volar.robots.interface import Policy
from volar.robots.lerobot_statistics import PREPROCESSOR

ENTRY_POINT_GROUP = "volar.policies"
ARTIFACT_FILE = "artifact.json"
CONFIG_FILE = "config.json"
CONTRACT_FILE = "contract.json"
LEROBOT = "lerobot:"  # before a path


class PolicyNotFound(VolarError):
    """A path that holds no policy."""

    def __init__(self, path: Path, found: str) -> None:
        super().__init__(
            f"no policy at {path}: {found}; a policy is a folder with {CONFIG_FILE} and model.safetensors (volar-train "
            f"leaves one at OUTPUT/checkpoints/last/pretrained_model) or with {ARTIFACT_FILE} (volar-export leaves one)"
        )


def load_policy(path: Path, *, verify: bool = True, threads: int | None = None) -> Policy:
    """The policy in a folder, ready to predict.

    `path`: an exported artifact, a policy directory, or a training output above one (see `find_policy`).
    `verify=False` skips an artifact's golden set; `threads`: of ONNX Runtime or of LeRobot's torch.
    Raises `PolicyNotFound` naming the path, `Unknown` for a type nobody provides, `VolarError` for a damaged
    configuration or a missing installation extra; the loaders raise their own `VolarError`s.
    """
    folder = find_policy(path)
    if (folder / ARTIFACT_FILE).is_file():
        from volar.robots.exported_policy import ExportedPolicy

        return ExportedPolicy(folder, verify=verify, threads=threads or 1)
    if is_lerobot(folder):
        from volar.robots.lerobot_policy import LeRobotPolicy

        return LeRobotPolicy(folder, threads)
    point = _entry_point(policy_type(folder))
    try:
        load: Callable[[Path], Policy] = point.load()
    except ModuleNotFoundError as error:
        # `robots` alone runs artifacts without torch; a policy directory needs the whole installation.
        raise VolarError(
            f"a policy of type {point.name!r} needs {error.name!r}, which is not installed here; install what "
            f"{point.value.partition(':')[0]} needs, or run volar-export where it is installed and use the artifact"
        ) from error
    return load(folder)


def is_lerobot(folder: Path) -> bool:
    """True for a policy directory that LeRobot runs: a type without an entry point here, with LeRobot's processors."""
    if not (folder / PREPROCESSOR).is_file():
        return False
    return policy_type(folder) not in {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}


def read_contract(folder: Path) -> PolicyContract:
    """The contract of the policy in `folder` (of `find_policy`), without loading its weights where that is possible.

    Raises `VolarError` naming what is wrong with it.
    """
    if (folder / CONTRACT_FILE).is_file():
        return PolicyContract.load(folder / CONTRACT_FILE)
    if is_lerobot(folder):
        from volar.robots import lerobot_contract

        return lerobot_contract.read_contract(folder)
    return load_policy(folder).contract


def policy_sha256(folder: Path, contract: PolicyContract) -> str:
    """Tells whether the policy in `folder` (of `find_policy`) has been replaced: of its contract and `artifact.json`,
    which has the hashes of all other files; in a policy directory of its configuration and when weights were written.
    """
    named = folder / ARTIFACT_FILE
    found = hashlib.sha256(contract.sha256.encode())
    if named.is_file():
        found.update(named.read_bytes())
        return found.hexdigest()
    found.update((folder / CONFIG_FILE).read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        found.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return found.hexdigest()


def find_policy(path: Path) -> Path:
    """The folder that holds the policy itself, at or below `path`; `path` may be

    an artifact or a policy directory, a checkpoint (`checkpoints/000100`), `checkpoints`, or a run's output; after
    `lerobot:` one that LeRobot runs.
    Raises `PolicyNotFound` naming the path and what was there, `VolarError` where LeRobot's processors are missing.
    """
    if str(path).startswith(LEROBOT):
        folder = find_policy(Path(str(path).removeprefix(LEROBOT)))
        if not (folder / PREPROCESSOR).is_file():
            raise VolarError(
                f"{folder} has no {PREPROCESSOR}: it is not a policy directory of LeRobot 0.6 or newer; "
                "python -m lerobot.processor.migrate_policy_normalization makes one of an older one"
            )
        return folder
    if not path.exists():
        raise PolicyNotFound(path, "no such folder")
    if not path.is_dir():
        raise PolicyNotFound(path, "it is a file")
    for below in ("", "pretrained_model", "last/pretrained_model", "checkpoints/last/pretrained_model"):
        folder = path / below
        if (folder / ARTIFACT_FILE).is_file() or (folder / CONFIG_FILE).is_file():
            return folder
    names = sorted(item.name for item in path.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise PolicyNotFound(path, f"the folder holds {', '.join(names[:5]) or 'nothing'}{more}")


def policy_type(folder: Path) -> str:
    """The `"type"` of a policy directory. Raises `VolarError` where `config.json` is damaged or has none."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise VolarError(f"{path} cannot be read ({error}); the checkpoint is damaged, use another one") from error
    if not isinstance(config, dict) or not isinstance(config.get("type"), str):
        raise VolarError(f'{path} has no "type"; it is not the configuration of a LeRobot policy')
    return str(config["type"])


def default_policy() -> Path:
    """The shipped policy, `vla/checkpoints/tiny`, as data. Raises `PolicyNotFound` in an installation without it."""
    # By place, not by import: `robots` must not import `vla`, and an import of it would cost seconds.
    for root in volar.__path__:
        folder = Path(root) / "vla" / "checkpoints" / "tiny"
        if folder.is_dir():
            return find_policy(folder)
    raise PolicyNotFound(Path(volar.__path__[0]) / "vla" / "checkpoints" / "tiny", "this installation ships none")


def _entry_point(name: str) -> EntryPoint:
    known = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in known:
        raise Unknown("policy type", name, known)
    return known[name]
