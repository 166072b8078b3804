"""Random still scenes for grounding: everywhere on the table, near each other, held, and any pose of the hand."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from volar.robots.kinematics import Arm, Pose
from volar.robots.spec import load_robot
from volar.sim.colors import COLORS
from volar.sim.props import PLATE_HALF_HEIGHT_M
from volar.sim.scene import BLOCK_ON_PLATE_Z_M, BLOCK_ON_TABLE_Z_M, Placement
from volar.sim.table import table_of

Vector = NDArray[np.float64]

_FINGERS_DOWN = np.diag([1.0, -1.0, -1.0])
# Fingertip positions of the bank of arm poses, table coordinates as all here [m]; joint noise makes each use differ.
_BANK_SEED, _BANK_SIZE = 7, 400
_BANK_LOW, _BANK_HIGH = np.array([0.35, -0.27, 0.02]), np.array([0.63, 0.27, 0.26])
_LOW_SHARE, _LOW_TOP_M = 0.45, 0.06  # of the bank has the fingers among the blocks, below that height
_JOINT_NOISE_RAD = 0.02

_TABLE_LOW, _TABLE_HIGH = np.array([0.34, -0.25]), np.array([0.63, 0.25])
_YAW_MAX_RAD = 0.4
_BLOCKS_APART_M, _PLATE_APART_M = 0.053, 0.088  # centres: nearly touching
_ATTEMPTS = 200
_FREE, _HELD, _BETWEEN, _BESIDE = range(4)  # how the hand relates to one chosen block
_HIGH_SHARES = (0.45, 0.25, 0.30, 0.0)
_LOW_SHARES = (0.0, 0.35, 0.45, 0.20)
_ON_PLATE_SHARE = 0.15


class LayoutSampler:
    """Draws placements of one robot's scene."""

    def __init__(self, robot: str = "fr3") -> None:
        self.spec = load_robot(robot)
        self.arm = Arm(self.spec)
        self.table = table_of(self.spec)
        self._bank = _bank(robot)

    def sample(self, rng: np.random.Generator) -> tuple[Placement, int]:
        """A placement, and the index of the block in the gripper or -1."""
        q = self._bank[rng.integers(len(self._bank))] + rng.uniform(-1, 1, self.spec.joints) * _JOINT_NOISE_RAD
        tcp = self.table.to_table(self.arm.forward(q).position)
        relation = int(rng.choice(4, p=_LOW_SHARES if tcp[2] < _LOW_TOP_M else _HIGH_SHARES))
        chosen = int(rng.integers(len(COLORS)))
        width_m = self._width(relation, rng) * self.table.scale
        for _ in range(_ATTEMPTS):
            placement = self._layout(rng, q, tcp, width_m, relation, chosen)
            if placement is not None:
                return placement, chosen if relation == _HELD else -1
        # So crowded a hand has no layout around it: take the next draw.
        return self.sample(rng)

    def _width(self, relation: int, rng: np.random.Generator) -> float:
        """Of the gripper, in table coordinates."""
        widest = self.spec.gripper_width_max / self.table.scale
        if relation == _HELD:
            return 0.04
        if relation == _BESIDE:
            return 0.0
        if relation == _BETWEEN:
            return float(rng.choice([widest, rng.uniform(0.06, widest)]))
        return float(rng.choice([widest, 0.0, rng.uniform(0.0, widest)]))

    def _layout(
        self, rng: np.random.Generator, q: Vector, tcp: Vector, width_m: float, relation: int, chosen: int
    ) -> Placement | None:
        count = len(COLORS)
        blocks = np.full((count, 3), BLOCK_ON_TABLE_Z_M)
        blocks[:, :2] = rng.uniform(_TABLE_LOW, _TABLE_HIGH, (count, 2))
        plate = np.array([*rng.uniform(_TABLE_LOW, _TABLE_HIGH), PLATE_HALF_HEIGHT_M])
        yaw = rng.uniform(-_YAW_MAX_RAD, _YAW_MAX_RAD, count)
        if relation == _HELD:
            blocks[chosen] = tcp + rng.uniform(-0.006, 0.006, 3) * [1.0, 0.0, 1.0]
            blocks[chosen, 2] = max(blocks[chosen, 2], BLOCK_ON_TABLE_Z_M)
            yaw[chosen] = 0.0
        elif relation == _BETWEEN:
            blocks[chosen, :2] = tcp[:2] + rng.uniform(-0.012, 0.012, 2)
        elif relation == _BESIDE:
            blocks[chosen, 0] = tcp[0] + rng.uniform(-0.015, 0.015)
            blocks[chosen, 1] = tcp[1] + rng.choice([-1, 1]) * rng.uniform(0.036, 0.08)
        others = np.arange(count) != chosen
        if rng.random() < _ON_PLATE_SHARE:
            on = int(rng.choice(np.flatnonzero(others if relation == _HELD else np.ones(count, bool))))
            plate[:2] = blocks[on, :2] + rng.uniform(-0.02, 0.02, 2)
            blocks[on, 2] = BLOCK_ON_PLATE_Z_M
        placement = Placement(blocks, yaw, plate, q, width_m)
        hand_low = bool(tcp[2] < 0.075)
        free = others if relation != _FREE else np.ones(count, bool)
        if hand_low and ((np.abs(blocks[free, 0] - tcp[0]) < 0.05) & (np.abs(blocks[free, 1] - tcp[1]) < 0.095)).any():
            return None
        return placement if _apart(placement, chosen if relation == _HELD else -1) else None


def _apart(placement: Placement, held: int) -> bool:
    """Nothing is inside anything else; a held block above the table is in nobody's way."""
    blocks = placement.blocks
    if held >= 0 and blocks[held, 2] > 0.07:
        blocks = np.delete(blocks, held, axis=0)
    gaps = np.linalg.norm(blocks[:, None, :2] - blocks[None, :, :2], axis=-1) + np.eye(len(blocks))
    on_table = blocks[blocks[:, 2] < (BLOCK_ON_TABLE_Z_M + BLOCK_ON_PLATE_Z_M) / 2]
    to_plate = np.linalg.norm(on_table[:, :2] - placement.plate[:2], axis=-1)
    return bool(gaps.min() >= _BLOCKS_APART_M and (to_plate >= _PLATE_APART_M).all())


@lru_cache(maxsize=4)
def _bank(robot: str) -> Vector:
    """Joint positions (N, J) with the fingers down all over the workspace; always the same ones."""
    spec, rng = load_robot(robot), np.random.default_rng(_BANK_SEED)
    arm, q, table = Arm(spec), np.array(spec.home), table_of(spec)
    bank = []
    for i in range(_BANK_SIZE):
        position = rng.uniform(_BANK_LOW, _BANK_HIGH)
        if i < _LOW_SHARE * _BANK_SIZE:
            position[2] = rng.uniform(_BANK_LOW[2], _LOW_TOP_M)
        bank.append(arm.solve(Pose(table.to_base(position), _FINGERS_DOWN), q, tolerance_m=2e-3))
    return np.stack(bank)
