"""Where distractors stand: on the table, within the robot's reach, clear of everything that the task needs."""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.sim.scene_stage import Stage
from volar.sim.scene_variation import distractor_height_m
from volar.sim.table import table_of
from volar.sim.tasks.layout import NoLayout

Vector = NDArray[np.float64]
# Lengths in table coordinates.
_CLEAR_M = 0.05  # from their edge to the edge of anything: half an open hand
_PATH_M = 0.12  # from where the task moves something to
_LOW_M = 0.15  # what is higher above the table is in nobody's way
_ATTEMPTS = 4000


def sample_poses(stage: Stage, seed: int, destination: Vector) -> list[list[float]]:
    """(x, y, yaw) of each [m, rad], after everything else was placed. `destination` (3,): NaN where there is none. All
    in the base frame.

    Raises `NoLayout`, naming the seed, when the table is too full for them.
    """
    rng = np.random.default_rng([seed, zlib.crc32(b"randomization"), zlib.crc32(b"distractor_poses")])
    scale = table_of(stage.robot).scale
    clear_m = scale * _CLEAR_M
    centres, radii = _obstacles(stage, scale * _LOW_M)
    if np.isfinite(destination).all():
        centres, radii = np.vstack([centres, destination[:2]]), np.append(radii, scale * _PATH_M - clear_m)
    low, high = np.array(stage.robot.workspace_low[:2]), np.array(stage.robot.workspace_high[:2])
    size = distractor_height_m(stage.robot) * np.sqrt(2)
    poses: list[list[float]] = []
    for _ in range(_ATTEMPTS):
        if len(poses) == stage.distractors:
            return poses
        x, y, yaw = rng.uniform([*low, -np.pi], [*high, np.pi]).tolist()
        if (np.hypot(*(centres - [x, y]).T) > radii + size + clear_m).all():
            poses.append([x, y, yaw])
            centres, radii = np.vstack([centres, [x, y]]), np.append(radii, size)
    raise NoLayout(
        f"seed {seed}: {len(poses)} of {stage.distractors} distractors found room in {_ATTEMPTS} attempts; "
        "lower distractor_count"
    )


def stand(stage: Stage, poses: list[list[float]]) -> None:
    """Puts the first distractors there; the others stay out of sight. Recomputes positions."""
    import mujoco

    for i, (x, y, yaw) in enumerate(poses):
        body = stage.model.body(f"distractor_{i}").id
        stage.model.body_pos[body] = x, y, distractor_height_m(stage.robot)
        stage.model.body_quat[body] = np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)
    mujoco.mj_forward(stage.model, stage.data)


def _obstacles(stage: Stage, low_m: float) -> tuple[Vector, Vector]:
    """Centres (N, 2) and radii (N,) [m] of everything that comes near the table."""
    model, data = stage.model, stage.data
    named: dict[str, Any] = {n: i for n, i in stage.geoms.items() if n.startswith(("robot/", "object/"))}
    geoms = np.array(list(named.values()))
    radii: Vector = model.geom_rbound[geoms]
    low = data.geom_xpos[geoms, 2] - radii < low_m
    geoms = geoms[low & (data.geom_xpos[geoms, 2] + radii > 0)]
    return data.geom_xpos[geoms, :2].copy(), model.geom_rbound[geoms].copy()
