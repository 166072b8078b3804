"""What the datasets of a mixture must have in common, and the statistics they are normalized with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_layout import DatasetError
from volar.datasets.sketch import FieldSketch
from volar.datasets.statistics import action_mask
from volar.robots.contract import ContractError, FieldStatistics, Mismatch, PolicyContract, differences
from volar.robots.errors import Unknown

OWN = ("statistics", "chunk_length", "execute_steps", "format_version")  # not the data's
ALLOWED = (
    *(f"action.{name}" for name in ("names", "low", "high", "units", "frame", "rotation", "gripper", "rate_hz")),
    *("action", "robot", "cameras", "state_names", "state_units", "instruction_template", "preprocessing"),
)


@dataclass(frozen=True)
class MixtureRules:
    """How datasets that differ are mixed.

    `weights`: of the samples (`share`), or multiplied by each dataset's number of frames first (`frames`, as Octo's
    and OpenVLA's mixtures mean them). `statistics`: of all frames together (`joint`), or each dataset normalized
    with its own (`own`, as OpenVLA does; the policy then carries the first dataset's). `missing_cameras`: a dataset
    without a wanted camera is refused, or has it black and masked (`pad`). `allow`: fields in which the others
    may differ from the first dataset (`robot`, `action.rate_hz`, ...); `cameras`: other sizes, which are scaled.
    """

    weights: Literal["share", "frames"] = field(
        default="share", metadata={"help": "of the samples, or times each dataset's frames"}
    )
    statistics: Literal["joint", "own"] = field(
        default="joint", metadata={"help": "normalize with those of all frames, or of each dataset"}
    )
    missing_cameras: Literal["refuse", "pad"] = field(default="refuse", metadata={"help": "pad: black and masked"})
    allow: tuple[str, ...] = field(default=(), metadata={"help": "contract fields that may differ (robot,cameras,...)"})

    def __post_init__(self) -> None:
        for name in self.allow:
            if name not in ALLOWED:
                raise Unknown("field to allow", name, ALLOWED)


def require_fit(wanted: PolicyContract, name: str, found: PolicyContract, rules: MixtureRules) -> None:
    """Raises `ContractError` listing every field in which dataset `name` does not fit, and what would let it in.

    Cameras that it has and nobody wants are no difference. Sizes of state and action must be equal in any case.
    """
    listed = [m for m in differences(wanted, found, ignore=(*OWN, "cameras")) if not _allowed(m.field, rules.allow)]
    for size_of, a, b in (
        ("state_names", len(wanted.state_names), len(found.state_names)),
        ("action.names", wanted.action.size, found.action.size),
    ):
        if a != b and all(m.field != size_of for m in listed):
            listed.append(Mismatch(size_of, f"{a} of them", f"{b}; another size cannot be allowed"))
    listed += _cameras(wanted, found, rules)
    if listed:
        fix = "leave it out, or allow the fields (mix.allow=[...]); missing cameras: mix.missing_cameras=pad"
        raise ContractError(f"dataset {name} does not fit the mixture: {'; '.join(map(str, listed))}. {fix}")


def joint_statistics(
    caches: Sequence[FrameCache], contracts: Sequence[PolicyContract]
) -> Mapping[str, FieldStatistics]:
    """Of every frame of all datasets: their own statistics cannot be merged, quantiles least of all.

    Only of the fields that every contract has statistics for (generated scenes have no actions).
    """
    arrays = {"action": [c.action for c in caches], "observation.state": [c.state for c in caches]}
    joint = {}
    for key, pieces in arrays.items():
        if all(key in contract.statistics for contract in contracts):
            sketch = FieldSketch(pieces[0].shape[1])
            for piece in pieces:
                sketch.update(piece)
            joint[key] = sketch.statistics(action_mask(contracts[0].action) if key == "action" else None)
    return joint


def mixture_contracts(
    names: Sequence[str], caches: Sequence[FrameCache], contracts: Sequence[PolicyContract], rules: MixtureRules
) -> list[PolicyContract]:
    """Each dataset's contract with the statistics it is normalized with; the first is the policy's.

    Raises `ContractError` when one does not fit the first, `DatasetError` when there is none.
    """
    if not contracts:
        raise DatasetError("a mixture of no datasets")
    for name, contract in zip(names[1:], contracts[1:], strict=True):
        require_fit(contracts[0], name, contract, rules)
    if len(contracts) == 1 or rules.statistics == "own":
        return list(contracts)
    joint = joint_statistics(caches, contracts)
    return [replace(contract, statistics=joint) for contract in contracts]


def _allowed(name_of: str, allow: Sequence[str]) -> bool:
    return any(name_of == name or name_of.startswith(f"{name}.") for name in allow)


def _cameras(wanted: PolicyContract, found: PolicyContract, rules: MixtureRules) -> list[Mismatch]:
    has = {camera.name: f"{camera.width}x{camera.height}" for camera in found.cameras}
    listed = []
    for camera in wanted.cameras:
        size = f"{camera.width}x{camera.height}"
        if camera.name not in has:
            if rules.missing_cameras == "refuse":
                listed.append(Mismatch(f"cameras.{camera.name}", size, f"none (it has {', '.join(has) or 'none'})"))
        elif has[camera.name] != size and "cameras" not in rules.allow:
            listed.append(Mismatch(f"cameras.{camera.name}", size, has[camera.name]))
    return listed
