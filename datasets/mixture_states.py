"""One state vector for datasets whose states differ: a place for each named number, or no state at all.

With `pad` the vector has a place for every (name, unit) that some dataset has, in the order in which they first come.
A dataset fills its own places; the others hold what its normalizer makes 0 and are masked (`Batch.state_mask`). By
name, not by position: a network must not read a joint's angle where another dataset has metres.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from volar.robots.contract import FieldStatistics, PolicyContract

STATE = "observation.state"
NO_STATE = ("no_state", "1")  # a constant 0: what a policy without proprioception is given

States = Literal["refuse", "pad", "drop"]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class StateLayout:
    """The numbers (name, unit) of the common vector, and the places in it of each dataset's own, (S_i,) each."""

    named: tuple[tuple[str, str], ...]
    places: tuple[Places, ...]

    @staticmethod
    def of(contracts: Sequence[PolicyContract], states: States) -> "StateLayout | None":
        """None where the datasets' own vectors are used as they are."""
        own = [list(zip(c.state_names, c.state_units, strict=True)) for c in contracts]
        if states == "drop":
            return StateLayout((NO_STATE,), tuple(np.zeros(0, np.int64) for _ in own))
        if states == "refuse" or all(named == own[0] for named in own):
            return None
        named = tuple(dict.fromkeys(item for items in own for item in items))
        places = tuple(np.array([named.index(item) for item in items], np.int64) for items in own)
        return StateLayout(named, places)

    def contract(self, contract: PolicyContract, statistics: FieldStatistics | None) -> PolicyContract:
        """The contract with the common vector, and those statistics of it (or none).

        Where a name comes again in another unit, that unit is part of it.
        """
        names = [name for name, _ in self.named]
        told = tuple(name if name not in names[:i] else f"{name} [{unit}]" for i, (name, unit) in enumerate(self.named))
        kept = {key: value for key, value in contract.statistics.items() if key != STATE}
        kept |= {STATE: statistics} if statistics is not None else {}
        units = tuple(unit for _, unit in self.named)
        return replace(contract, state_names=told, state_units=units, statistics=kept)

    def spread(self, dataset: int, statistics: FieldStatistics) -> FieldStatistics:
        """A dataset's own statistics, at its places; the others are constant 0."""
        values: dict[str, Any] = {"count": statistics.count}
        for item in fields(FieldStatistics):
            if item.name != "count":
                row: list[float | bool] = [item.name == "mask"] * len(self.named)
                for place, value in zip(self.places[dataset].tolist(), getattr(statistics, item.name), strict=False):
                    row[place] = value
                values[item.name] = tuple(float(v) if item.name != "mask" else bool(v) for v in row)
        return FieldStatistics(**values)
