"""Distances between the parts of an arm, and to what stands around it, through MuJoCo; cheap enough for every tick.

A distance can only shrink as fast as the parts move: a joint that turns by dq carries a shape by at most dq times the
shape's farthest reach from that joint's axis. Each pair keeps its last exact distance and is measured again only when
the joints have moved so far since that the gap could be closed.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import Unknown
from volar.robots.kinematics import ancestors, indices
from volar.robots.spec import RobotSpec, load_robot

Vector = NDArray[np.float64]
Configuration = Vector | list[float]  # (J,) [rad]

MARGIN_M: Final = 0.005  # smallest distance allowed; the shapes are larger than the links they stand for
SLACK_M: Final = 0.001  # a joint that is about to turn back overshoots by less while it brakes
FAR_M: Final = 5.0  # distances are not told apart beyond


@dataclass(frozen=True)
class Box:
    """Something the arm must not touch: a box along the axes of the base frame. `name`: for errors.

    Raises `ValueError` on a half size that is not positive.
    """

    name: str
    center: tuple[float, float, float]  # [m]
    half_size: tuple[float, float, float]  # [m]

    def __post_init__(self) -> None:
        if not all(half > 0 for half in self.half_size):
            raise ValueError(f"box {self.name!r}: every half_size must be positive, is {self.half_size}")


class CollisionGuard:
    """What of one robot could touch what: its primitive shapes, those of neighbouring links left out.

    Pairs that are nearer than the margin at home are left out, too: their shapes overlap by construction. A user's
    own model of a robot is judged by that robot's primitives. Fingers count as open. `obstacles`: boxes in the base
    frame, for every shape but the base's.
    """

    def __init__(self, spec: RobotSpec, obstacles: Iterable[Box] = (), margin_m: float = MARGIN_M) -> None:
        import mujoco

        self._spec, self.margin_m = spec, margin_m
        self._geom_distance, self._kinematics = mujoco.mj_geomDistance, mujoco.mj_kinematics
        self.model: Any = _model(spec, obstacles)
        self._data = mujoco.MjData(self.model)
        self._at = self._data.qpos  # a view
        self._joints = indices([int(self.model.joint(name).qposadr[0]) for name in spec.joint_names])
        fingers = [self.model.joint(name).qposadr[0] for name in spec.gripper_joint_names]
        self._data.qpos[fingers] = spec.finger_positions(spec.gripper_width_max)
        chain = [int(self.model.joint(name).bodyid[0]) for name in spec.joint_names]
        self._place(np.array(spec.home))
        self.pairs = [
            pair for pair in _pairs(self.model, chain) if self._exact(pair) >= margin_m
        ]  # (P,) of (geom, geom)
        self._gain = _gains(self.model, chain, self.pairs)  # (P, J) [m/rad]
        self._q = np.zeros((len(self.pairs), spec.joints))  # where each pair was measured last
        self._distance = np.full(len(self.pairs), -np.inf)  # then

    def near(self, q: Vector, stop: Vector) -> NDArray[np.intp]:
        """Indices of the pairs that could come nearer than the margin from q (J,) [rad] to `stop` (J,), the rest after
        braking; each joint goes one way. Usually none, without a look at the model."""
        limit_m = self.margin_m + SLACK_M
        swept = np.maximum(np.abs(q - self._q), np.abs(stop - self._q))  # (P, J)
        near = np.flatnonzero(self._distance - (swept * self._gain).sum(axis=1) < limit_m)
        if near.size:
            self._measure(near, q)
            near = near[self._distance[near] - self._gain[near] @ np.abs(stop - q) < limit_m]
        return near

    def touching(
        self, near: NDArray[np.intp], q_now: Configuration, path: Iterable[Configuration]
    ) -> tuple[str, str] | None:
        """Names of two shapes, of those `near`, that come nearer than the margin on a path; else None.

        Those that are nearer already in q_now (J,) [rad] may not come nearer still.
        """
        pairs = [self.pairs[index] for index in near]
        self._place(q_now)
        distance, model, data = self._geom_distance, self.model, self._data
        far_m = max(self.margin_m, 0.0) + SLACK_M  # farther is not told apart here, which is quicker
        # (first, second, how near they may come)
        allowed = [(a, b, min(distance(model, data, a, b, far_m, None), self.margin_m) - 1e-9) for a, b in pairs]
        for q in path:
            self._place(q)
            for first, second, allowed_m in allowed:
                if distance(model, data, first, second, far_m, None) < allowed_m:
                    return self.model.geom(first).name, self.model.geom(second).name
        return None

    def distance(self, q: Vector) -> tuple[float, tuple[str, str]]:
        """The smallest distance [m] of all pairs at q (J,) [rad], negative where they overlap, and whose it is."""
        self._place(q)
        distances = [self._exact(pair) for pair in self.pairs]
        first, second = self.pairs[int(np.argmin(distances))]
        return min(distances), (self.model.geom(first).name, self.model.geom(second).name)

    def _measure(self, which: NDArray[np.intp], q: Vector) -> None:
        self._place(q)
        for index in which:
            self._distance[index] = self._exact(self.pairs[index])
        self._q[which] = q

    def _place(self, q: Configuration) -> None:
        self._at[self._joints] = q
        self._kinematics(self.model, self._data)

    def _exact(self, pair: tuple[int, int]) -> float:
        return float(self._geom_distance(self.model, self._data, *pair, FAR_M, None))


def _model(spec: RobotSpec, obstacles: Iterable[Box]) -> Any:
    """The robot's primitives alone, with the obstacles; names every shape."""
    import mujoco

    with suppress(Unknown):  # a robot that is not one of ours has shapes of its own
        spec = load_robot(spec.name)
    mj_spec = mujoco.MjSpec()
    spec.add_to(mj_spec)
    for body in mj_spec.bodies:
        for i, geom in enumerate(body.geoms):
            geom.name = geom.name or f"{body.name}_{i}"
    for box in obstacles:
        mj_spec.worldbody.add_geom(
            name=box.name, type=mujoco.mjtGeom.mjGEOM_BOX, pos=box.center, size=box.half_size, contype=1
        )
    return mj_spec.compile()


def _links(model: Any, chain: list[int]) -> dict[int, int]:
    """Colliding geom -> how many of the arm's joints carry it: 0 for the base; -1 for what stands in the world."""
    solid = [g for g in range(model.ngeom) if model.geom_contype[g] or model.geom_conaffinity[g]]
    bodies = {g: int(model.geom_bodyid[g]) for g in solid}
    return {g: sum(joint in ancestors(model, body) for joint in chain) if body else -1 for g, body in bodies.items()}


def _pairs(model: Any, chain: list[int]) -> list[tuple[int, int]]:
    """Pairs that can touch: links that are not neighbours, the outer one second; obstacles with all but the base."""
    links = _links(model, chain)
    return [
        (a, b)
        for a, inner in links.items()
        for b, outer in links.items()
        if outer > 0 and (inner == -1 or 0 <= inner <= outer - 2)
    ]


def _gains(model: Any, chain: list[int], pairs: list[tuple[int, int]]) -> Vector:
    """(P, J) [m/rad]: how much nearer the shapes of a pair can come for one radian of a joint."""
    links, gains = _links(model, chain), np.zeros((len(pairs), len(chain)))
    for row, (a, b) in enumerate(pairs):
        reach = float(np.linalg.norm(model.geom_pos[b]) + model.geom_rbound[b])
        for body in ancestors(model, int(model.geom_bodyid[b])):
            if body not in chain:
                reach += _stroke(model, body)
            if body in chain and chain.index(body) >= max(links[a], 0):
                gains[row, chain.index(body)] = reach + float(np.linalg.norm(model.jnt_pos[model.body_jntadr[body]]))
            reach += float(np.linalg.norm(model.body_pos[body]))
    return gains


def _stroke(model: Any, body: int) -> float:
    """How far a sliding finger goes from its body's place [m]; 0 for any other body."""
    import mujoco

    joint = int(model.body_jntadr[body])
    sliding = joint >= 0 and model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE
    return float(np.abs(model.jnt_range[joint]).max()) if sliding else 0.0
