"""Draws what a `Randomization` declares and applies it to a scene: restored exactly, then changed, at each reset."""

import fnmatch
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.spec import load_robot
from volar.sim import distractors, scene_variation
from volar.sim.colors import COLORS
from volar.sim.disturbed_robot import Disturbance
from volar.sim.props import PROPS
from volar.sim.randomization import INTERVAL_DRAWS, PRESETS, Draws, Randomization, Term
from volar.sim.randomization_axes import AXES
from volar.sim.scene import BLOCK_HALF_M, Placement
from volar.sim.scene_stage import Stage
from volar.sim.table import table_of
from volar.sim.tasks import load_task

if TYPE_CHECKING:
    import mujoco

Vector = NDArray[np.float64]
# Among the draws, beside the terms' own: (x, y, yaw) of each distractor, which depend on the layout as well, and what
# decides the noise of sensors.
DISTRACTOR_POSES, SENSING_SEED = "distractor_poses", "sensing_seed"
_SENSING = zlib.crc32(SENSING_SEED.encode())
_ORDER = {name: i for i, name in enumerate(AXES)}


class Randomizer:
    """The scene of one world and what varies in it.

    `world_seed` decides the startup terms, an episode's seed all others; layouts come from elsewhere and never
    change. Raises `Unknown` when a scope's pattern names nothing in any task's scene, `UsageError` when a value would
    leave its axis's range.
    """

    def __init__(self, randomization: Randomization, robot: str, props: tuple[str, ...], world_seed: int = 0) -> None:
        self.randomization = randomization
        self.stage = Stage(scene_variation.compiled(robot, props, randomization.needs), load_robot(robot))
        self._robot = robot
        self._scale = table_of(self.stage.robot).scale
        # In the order of `AXES`, whatever the file's: a colour before its hue.
        self._terms = sorted(randomization.terms, key=lambda term: (_ORDER[term.field], term.key))
        self._elements = {term.key: self._scope(term) for term in self._terms}
        for term in self._terms:
            self._check_range(term)
        self._startup = {t.key: t.draw(world_seed, self._elements[t.key]) for t in self._terms if t.mode == "startup"}
        self._intervals = [term for term in self._terms if term.mode == "interval"]
        self._derived = any(term.axis.derived for term in self._terms)
        self._places = any(term.axis.needs == "distractors" for term in self._terms)
        self._draws: dict[str, Any] = {}
        self._before: dict[str, dict[str, Any]] = {}  # of interval terms: the episode's own values
        self._next: dict[str, int] = {}
        self._due_ns = np.inf

    @property
    def model(self) -> "mujoco.MjModel":
        return self.stage.model

    @property
    def disturbs(self) -> bool:
        """Whether something lies between the body and its controller."""
        return any(term.axis.part == "sensing" for term in self._terms)

    def elements(self, term: Term) -> Mapping[str, Any]:
        """Name -> index of what a term acts on; {"": None} where there is only one of it."""
        return self._elements[term.key]

    def draw(self, seed: int) -> dict[str, Any]:
        """What the terms draw for an episode, JSON values; distractors' poses follow in `settle`."""
        drawn = {t.key: t.draw(seed, self._elements[t.key]) for t in self._terms if t.mode != "startup"}
        noise = (
            {SENSING_SEED: int(np.random.SeedSequence([seed, _SENSING]).generate_state(1)[0])} if self.disturbs else {}
        )
        return self._startup | drawn | noise

    def begin(self, seed: int, draws: Draws | None = None) -> None:
        """Restores the scene and applies the episode's draws, or those given. Raises `VolarError` for others' draws."""
        self._draws = self.draw(seed) if draws is None else self._checked(draws)
        self.stage.restore()
        for term in self._terms:
            if term.mode != "interval":
                self._apply(term, self._draws[term.key])
        if self._derived:
            self._set_constants()
        self._before = {
            t.key: {e: t.axis.read(self.stage, i) for e, i in self.elements(t).items()} for t in self._intervals
        }
        self._next = dict.fromkeys(self._before, 0)
        self._due_ns = min((self._time_ns(term) for term in self._intervals), default=np.inf)

    def placed(self, placement: Placement) -> Placement:
        """The placement with blocks of another size where they rested: on the table, or on each other."""
        grown = np.array([self._growth_m(color) for color in COLORS])  # (4,) of half an edge
        if not grown.any():
            return placement
        blocks, bottom = placement.blocks.copy(), placement.blocks[:, 2] - BLOCK_HALF_M
        for i in np.argsort(bottom, kind="stable"):
            blocks[i, 2] += grown[i]
            for j in range(len(COLORS)):
                under = abs(bottom[j] + 2 * BLOCK_HALF_M - bottom[i]) < 0.5 * BLOCK_HALF_M
                near = np.linalg.norm(placement.blocks[i, :2] - placement.blocks[j, :2]) < BLOCK_HALF_M
                if i != j and under and near:  # its top rose by what the centre did and half an edge more
                    blocks[i, 2] += blocks[j, 2] - placement.blocks[j, 2] + grown[j]
        return replace(placement, blocks=blocks)

    def settle(self, seed: int, destination: Vector) -> dict[str, Any]:
        """Stands distractors beside what has been placed; returns all draws of the episode. Raises `NoLayout`."""
        if self._places:
            if DISTRACTOR_POSES not in self._draws:
                self._draws[DISTRACTOR_POSES] = distractors.sample_poses(self.stage, seed, destination)
            distractors.stand(self.stage, self._draws[DISTRACTOR_POSES])
        return self._draws

    def tick(self, now_ns: int) -> None:
        """Applies the interval terms that are due; called before each control period."""
        if now_ns < self._due_ns:
            return
        for term in self._intervals:
            if now_ns >= self._time_ns(term):
                values = self._draws[term.key]
                self._apply(term, values[self._next[term.key] % INTERVAL_DRAWS], self._before[term.key])
                self._next[term.key] += 1
        self._due_ns = min(self._time_ns(term) for term in self._intervals)

    def _time_ns(self, term: Term) -> float:
        """When an interval term acts next."""
        return (self._next[term.key] + 1) * term.interval_s * 1e9

    def disturbance(self) -> Disturbance:
        """Of the episode that has begun."""
        return Disturbance(**self.stage.sensing, seed=self._draws[SENSING_SEED])

    @property
    def base_height_m(self) -> float:
        """Of the robot's base frame above the table top's plane."""
        return float(self.model.body_pos[self.stage.robot_base, 2]) - self.stage.base_z_m

    def _growth_m(self, color: str) -> float:
        """Of half an edge, table coordinates [m]."""
        half_m = float(self.model.geom_size[self.stage.blocks[f"object/block_{color}"], 0])
        return half_m / self._scale - BLOCK_HALF_M

    def _scope(self, term: Term) -> dict[str, Any]:
        """Name -> index of the elements a term acts on; {"": None} where there is only one."""
        if term.axis.elements is None:
            return {"": None}
        named = term.axis.elements(self.stage)
        for pattern in term.scope:
            if not fnmatch.filter(named, pattern):
                every = term.axis.elements(self._with_all_props())  # a term about a drawer is idle where there is none
                if not fnmatch.filter(every, pattern):
                    raise Unknown(f"scope of {term.field}", pattern, every)
        return {name: i for name, i in named.items() if any(fnmatch.fnmatchcase(name, p) for p in term.scope)}

    def _with_all_props(self) -> Stage:
        return Stage(scene_variation.compiled(self._robot, tuple(PROPS), self.randomization.needs), self.stage.robot)

    def _check_range(self, term: Term) -> None:
        """What is added to or multiplied with the scene's own values must leave them possible. Raises `UsageError`."""
        axis, support = term.axis, term.distribution.support
        if support is None or term.operation == "set" or axis.clips:
            return
        for name, i in self.elements(term).items():
            base = np.asarray(axis.read(self.stage, i), np.float64)
            ends = [base * bound if term.operation == "scale" else base + bound for bound in support]
            if np.min(ends) < axis.low or np.max(ends) > axis.high:
                raise UsageError(
                    f"randomization {self.randomization.name}: {term.field} of {name} would be {np.min(ends):.4g} to "
                    f"{np.max(ends):.4g} {axis.unit}, outside [{axis.low:.4g}, {axis.high:.4g}]"
                )

    def _apply(self, term: Term, drawn: Any, before: Mapping[str, Any] | None = None) -> None:
        for name, i in self.elements(term).items():
            value = drawn[name] if isinstance(drawn, Mapping) else drawn
            if not isinstance(value, str | bool):
                base = term.axis.read(self.stage, i) if before is None else before[name]
                value = np.broadcast_to(np.atleast_1d(np.asarray(value, np.float64)), term.axis.size)
                value = {"set": value, "add": base + value, "scale": base * value}[term.operation]
            term.axis.write(self.stage, i, value)

    def _set_constants(self) -> None:
        import mujoco

        mujoco.mj_setConst(self.model, mujoco.MjData(self.model))

    def _checked(self, draws: Draws) -> dict[str, Any]:
        wanted = {term.key for term in self._terms}
        wanted |= ({DISTRACTOR_POSES} if self._places else set()) | ({SENSING_SEED} if self.disturbs else set())
        if draws.keys() != wanted:
            raise VolarError(
                f"these draws are not of randomization {self.randomization.name}: "
                f"missing {sorted(wanted - draws.keys())}, unknown {sorted(draws.keys() - wanted)}"
            )
        return dict(draws)


def require_possible(randomizations: Sequence[str], tasks: Sequence[str], robot: str) -> None:
    """Raises `Unknown` or `UsageError` for a file of terms that one of the tasks' scenes cannot have.

    Before anything is written: what is wrong in it would otherwise show hours later. Presets are not looked at.
    """
    for name in randomizations:
        if name not in PRESETS:
            terms = Randomization.of(name)
            for props in {load_task(task).props for task in tasks}:
                Randomizer(terms, robot, props)
