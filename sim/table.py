"""The table that layouts, predicates and experts are written for, and where it lies before each robot.

They are written once, in the frame and for the reach of an arm of the FR3's size: *table coordinates*. In front of a
smaller arm the same table stands scaled down, things on it included, around its own centre.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volar.robots.spec import RobotSpec

Vector = NDArray[np.float64]

CENTRE_X_M = 0.46  # of the layouts, table coordinates; y = 0


@dataclass(frozen=True)
class Table:
    """Base frame = centre + `scale` * (table coordinates - centre); heights are scaled too, the table top is z = 0 in
    both. `centre_x_m`: where the layouts' centre lies in the base frame [m]."""

    scale: float = 1.0
    centre_x_m: float = CENTRE_X_M

    def to_base(self, points: Vector) -> Vector:
        """(..., 3) table coordinates -> base frame [m]; the same bits where the two are the same."""
        if self == Table():
            return points
        return self._origin + self.scale * points

    def to_table(self, points: Vector) -> Vector:
        """Inverse of `to_base`."""
        if self == Table():
            return points
        return np.asarray((points - self._origin) / self.scale)

    @property
    def _origin(self) -> Vector:
        return np.array([self.centre_x_m - self.scale * CENTRE_X_M, 0.0, 0.0])


# The SO-101 reaches 0.27 m with its fingers down: blocks of 22 mm, 0.11 to 0.28 m before it.
_TABLES = {"so101": Table(scale=0.55, centre_x_m=0.20)}


def table_of(robot: RobotSpec) -> Table:
    """The table in front of that robot; the FR3's own unless it needs another."""
    return _TABLES.get(robot.name, Table())
