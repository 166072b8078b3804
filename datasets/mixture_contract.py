"""What the datasets of a mixture must have in common, and the statistics they are normalized with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_layout import DatasetError
from volar.datasets.mixture_states import STATE, StateLayout, States
from volar.datasets.statistics import action_mask, field_statistics
from volar.robots.contract import ContractError, FieldStatistics, Mismatch, PolicyContract, differences
from volar.robots.errors import Unknown, UsageError

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
    without a wanted camera is refused, or has it black and masked (`pad`); so is one with episodes that lack it.
    `states`: vectors that differ are refused, joined by name with what a dataset lacks masked (`pad`), or nobody's are
    used (`drop`: a policy without proprioception), see `mixture_states.py`. `allow`: fields in which the others
    may differ from the first dataset (`robot`, `action.rate_hz`, ...); `cameras`: other sizes, which are scaled.
    """

    weights: Literal["share", "frames"] = field(
        default="share", metadata={"help": "of the samples, or times each dataset's frames"}
    )
    statistics: Literal["joint", "own"] = field(
        default="joint", metadata={"help": "normalize with those of all frames, or of each dataset"}
    )
    missing_cameras: Literal["refuse", "pad"] = field(
        default="refuse", metadata={"help": "pad: black and masked, also in single episodes"}
    )
    states: States = field(default="refuse", metadata={"help": "that differ; pad: join by name, drop: use none"})
    allow: tuple[str, ...] = field(default=(), metadata={"help": "contract fields that may differ (robot,cameras,...)"})

    @property
    def one_state(self) -> bool:
        """Whether a normalized number of the state means the same in every dataset."""
        return self.statistics == "joint" and self.states == "refuse"

    def require_one_state(self, reader: str) -> None:
        """Raises `UsageError` unless `one_state`; `reader` is what reads positions from the state."""
        if not self.one_state:
            has = f"mix.statistics={self.statistics} mix.states={self.states}"
            fix = "use mix.statistics=joint mix.states=refuse"
            raise UsageError(f"{reader} reads positions from the state, which are one dataset's with {has}; {fix}")

    def __post_init__(self) -> None:
        for name in self.allow:
            if name not in ALLOWED:
                raise Unknown("field to allow", name, ALLOWED)


def require_fit(wanted: PolicyContract, name: str, found: PolicyContract, rules: MixtureRules) -> None:
    """Raises `ContractError` listing every field in which dataset `name` does not fit, and what would let it in.

    Cameras that it has and nobody wants are no difference. Sizes of state and action must be equal in any case, but
    for states that are padded or dropped.
    """
    ignore = (*OWN, "cameras", *(("state_names", "state_units") if rules.states != "refuse" else ()))
    listed = [m for m in differences(wanted, found, ignore=ignore) if not _allowed(m.field, rules.allow)]
    for size_of, a, b in (
        ("state_names", len(wanted.state_names), len(found.state_names)),
        ("action.names", wanted.action.size, found.action.size),
    ):
        if a != b and size_of not in ignore and all(m.field != size_of for m in listed):
            listed.append(Mismatch(size_of, f"{a} of them", f"{b}; another size cannot be allowed"))
    listed += _cameras(wanted, found, rules)
    if listed:
        fix = "leave it out, or allow the fields (mix.allow=[...]); missing cameras: mix.missing_cameras=pad; other "
        fix += "states: mix.states=pad or drop"
        raise ContractError(f"dataset {name} does not fit the mixture: {'; '.join(map(str, listed))}. {fix}")


def require_cameras(wanted: PolicyContract, name: str, frames: FrameCache, rules: MixtureRules) -> None:
    """Raises `ContractError` when episodes of a dataset lack a wanted camera and `rules` do not say `pad`."""
    lacking = {c.name: int((~frames.camera_mask[c.name]).sum()) for c in wanted.cameras if c.name in frames.camera_mask}
    if lacking and rules.missing_cameras == "refuse":
        said = "; ".join(f"camera {camera} in {count} of {len(frames)} frames" for camera, count in lacking.items())
        raise ContractError(
            f"episodes of dataset {name} lack {said}: mix.missing_cameras=pad masks what is missing, "
            "or convert with cameras=[...] to have only those that are there"
        )


def joint_statistics(
    caches: Sequence[FrameCache], contracts: Sequence[PolicyContract], layout: StateLayout | None = None
) -> Mapping[str, FieldStatistics]:
    """Of every frame of all datasets: their own statistics cannot be merged, quantiles least of all.

    Only of the fields that every contract has statistics for (generated scenes have no actions). `layout`: of states
    that differ; a number's statistics are then of the datasets that have it.
    """
    joint = {}
    if all("action" in contract.statistics for contract in contracts):
        joint["action"] = field_statistics((c.action for c in caches), action_mask(contracts[0].action))
    if not all(STATE in contract.statistics for contract in contracts):
        return joint
    if layout is None:
        return joint | {STATE: field_statistics(c.state for c in caches)}
    return joint | {STATE: _of_layout(caches, layout)}


def _of_layout(caches: Sequence[FrameCache], layout: StateLayout) -> FieldStatistics:
    columns = []
    for place in range(len(layout.named)):
        held = [c.state[:, np.flatnonzero(at == place)] for c, at in zip(caches, layout.places, strict=True)]
        pieces = [piece for piece in held if piece.shape[1]]
        columns.append(field_statistics(pieces or [np.zeros((sum(map(len, caches)), 1), np.float32)]))
    parts = {f.name: [getattr(column, f.name) for column in columns] for f in fields(FieldStatistics)}
    joined: dict[str, Any] = {name: sum(found, ()) for name, found in parts.items() if name != "count"}
    return FieldStatistics(**joined, count=sum(map(len, caches)))


def mixture_contracts(
    names: Sequence[str], caches: Sequence[FrameCache], contracts: Sequence[PolicyContract], rules: MixtureRules
) -> tuple[list[PolicyContract], StateLayout | None]:
    """Each dataset's contract with the statistics it is normalized with, and where its states go (None: as they are).

    The first is the policy's. Raises `ContractError` when one does not fit it, `DatasetError` when there is none.
    """
    if not contracts:
        raise DatasetError("a mixture of no datasets")
    for name, contract in zip(names[1:], contracts[1:], strict=True):
        require_fit(contracts[0], name, contract, rules)
    for name, cache in zip(names, caches, strict=True):
        require_cameras(contracts[0], name, cache, rules)
    layout = StateLayout.of(contracts, rules.states)
    if len(contracts) > 1 and rules.statistics == "joint":
        joint = joint_statistics(caches, contracts, layout)
        bare = [replace(contract, statistics={}) for contract in contracts]
        fitted = [layout.contract(contract, None) for contract in bare] if layout else bare
        return [replace(contract, statistics=joint) for contract in fitted], layout
    if layout is None:
        return list(contracts), None
    own = [layout.spread(i, c.statistics[STATE]) if STATE in c.statistics else None for i, c in enumerate(contracts)]
    return [layout.contract(c, statistics) for c, statistics in zip(contracts, own, strict=True)], layout


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
