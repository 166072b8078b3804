"""A policy from a path: an exported artifact, or a policy directory through the entry points of `volar.policies`.

This is how evaluation and control run any policy without importing the package that made it: a distribution
declares `[project.entry-points."volar.policies"] name = "module:load"`, where `name` is the `"type"` in the
directory's `config.json` and `load(path: Path) -> Policy`.
"""

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

import volar
from volar.robots.errors import Unknown, VolarError
from volar.robots.interface import Policy

if TYPE_CHECKING:
    from volar.robots.contract import PolicyContract

ENTRY_POINT_GROUP = "volar.policies"
ARTIFACT_FILE = "artifact.json"
CONFIG_FILE = "config.json"


class PolicyNotFound(VolarError):
    """A path that holds no policy."""

    def __init__(self, path: Path, found: str) -> None:
        super().__init__(
            f"no policy at {path}: {found}; a policy is a folder with {CONFIG_FILE} and model.safetensors (volar-train "
            f"leaves one at OUTPUT/checkpoints/last/pretrained_model) or with {ARTIFACT_FILE} (volar-export leaves one)"
        )


def load_policy(path: Path) -> Policy:
    """The policy in a folder, ready to predict.

    `path`: an exported artifact, a policy directory, or a training output above one (see `find_policy`).
    Raises `PolicyNotFound` naming the path, `Unknown` for a type nobody provides, `VolarError` for a damaged
    configuration or a missing installation extra; the loaders raise their own `VolarError`s.
    """
    folder = find_policy(path)
    if (folder / ARTIFACT_FILE).is_file():
        from volar.robots.exported_policy import ExportedPolicy

        return ExportedPolicy(folder)
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


def find_policy(path: Path) -> Path:
    """The folder that holds the policy itself, at or below `path`; `path` may be

    an artifact or a policy directory, a checkpoint (`checkpoints/000100`), `checkpoints`, or a run's output.
    Raises `PolicyNotFound` naming the path and what was there.
    """
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


def read_contract(folder: Path) -> "PolicyContract":
    """The contract of a policy's folder, without loading its weights where it lies beside them."""
    from volar.robots.contract import PolicyContract

    if (folder / "contract.json").is_file():
        return PolicyContract.load(folder / "contract.json")
    return load_policy(folder).contract


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
