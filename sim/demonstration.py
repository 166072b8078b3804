"""One demonstration: a scripted expert acting in a task, disturbed, as an episode."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from volar.datasets.episode import Episode
from volar.robots.errors import VolarError
from volar.sim.scene import LABELLED_CAMERA
from volar.sim.sim_robot import SimulationDiverged
from volar.sim.tasks.layout import NoLayout
from volar.sim.world import StepDriver

# The action (A,) for the state of a driver's world now, and the share of the episode's steps that are still to come.
Expert = Callable[[StepDriver, float], NDArray[np.float64]]


def scripted(driver: StepDriver, left: float) -> NDArray[np.float64]:
    """The task's own expert; it has no hurry."""
    return driver.world.expert()


class Demonstrator(Protocol):
    """Who demonstrates in the scripted experts' place; each worker process gets a copy."""

    @property
    def source(self) -> Mapping[str, str | int | float | bool]:
        """What names it in a dataset; one that another began is not resumed."""
        ...

    def expert(self) -> Expert:
        """Made once for each worker process and task."""
        ...


@dataclass(frozen=True)
class Disturbances:
    """Disturbances of what a demonstration executes; what it records stays the expert's answer.

    Laskey, Lee, Fox, Dragan, Goldberg, "DART: Noise Injection for Robust Imitation Learning" (CoRL 2017): the
    states around the expert's path are visited, with the way back from them. Pushes start with
    `push_probability` in each step, last up to `push_steps` steps and displace by up to `push_m` [m] a step;
    `jitter_m` [m] is white noise in every step. With `slip_probability` a step begins up to `slip_steps` steps in
    which the gripper does the opposite: without them no demonstration shows what to do after a missed grasp, and
    a policy that closes its fingers beside a block stays so. `scale` multiplies sizes and probability of slips;
    0 is a clean demonstration.
    """

    scale: float = 1.0
    push_probability: float = 0.06
    push_steps: int = 4
    push_m: float = 0.015
    jitter_m: float = 0.002
    slip_probability: float = 0.02
    slip_steps: int = 9


class DisturbanceSampler:
    """Temporally correlated disturbances, one episode's worth; `executed` once a step."""

    def __init__(self, config: Disturbances, rng: np.random.Generator) -> None:
        self._config, self._rng = config, rng
        self._left = self._slipping = 0
        self._push: NDArray[np.float64] = np.zeros(3)

    def executed(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        """What happens instead of `action` (7,) in this step."""
        disturbed = action.copy()
        disturbed[:3] += self._displacement()
        if self._slips():
            disturbed[-1] = 1.0 - disturbed[-1]
        return disturbed

    def _slips(self) -> bool:
        config, rng = self._config, self._rng
        if self._slipping == 0 and rng.random() < config.scale * config.slip_probability:
            self._slipping = int(rng.integers(2, config.slip_steps + 1))
        slipping = self._slipping > 0
        self._slipping = max(0, self._slipping - 1)
        return slipping

    def _displacement(self) -> NDArray[np.float64]:
        """The displacement (3,) [m] to add to this step."""
        config, rng = self._config, self._rng
        if self._left == 0 and rng.random() < config.push_probability:
            direction = rng.normal(size=3)
            self._push = direction / np.linalg.norm(direction) * rng.uniform(0.3, 1.0) * config.push_m
            self._left = int(rng.integers(1, config.push_steps + 1))
        push = self._push if self._left > 0 else np.zeros(3)
        self._left = max(0, self._left - 1)
        return np.asarray(config.scale * (push + rng.normal(scale=config.jitter_m, size=3)))


def rollout(driver: StepDriver, seed: int, noise: Disturbances | None = None, expert: Expert = scripted) -> Episode:
    """One demonstration; determined by the arguments alone.

    Each step records the images, the state and the points before its action, and the expert's own answer to
    them; what is executed is that answer, disturbed. What randomization drew is in `Episode.info`. Ends
    `steps_after_success` steps after success, or after the task's `max_steps`. Raises `SimulationDiverged`;
    `ValueError` when the first camera is not the one in whose image the points are.
    """
    if next(iter(driver.world.body.cameras), LABELLED_CAMERA) != LABELLED_CAMERA:
        raise ValueError(f"the first camera must be {LABELLED_CAMERA}, are {driver.world.body.cameras}")
    noise = noise or Disturbances()
    driver.reset(seed)
    world = driver.world
    sampler = DisturbanceSampler(noise, np.random.default_rng([seed, 1]))
    low, high = np.array(world.spec.action.low), np.array(world.spec.action.high)
    images: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in world.body.cameras}
    states, actions, points = [], [], []
    success, left = False, world.task.steps_after_success
    for step in range(world.task.max_steps):
        for name, image in world.body.images().items():
            images[name].append(image)
        states.append(driver.proprio())
        points.append(world.points())
        answer = np.clip(expert(driver, 1.0 - step / world.task.max_steps), low, high)
        actions.append(answer.astype(np.float32))
        driver.step(np.clip(sampler.executed(answer), low, high).astype(np.float32))
        success = success or world.success()
        if success:
            if left == 0:
                break
            left -= 1
    return Episode(
        images={name: np.stack(frames) for name, frames in images.items()},
        state=np.stack(states),
        actions=np.stack(actions),
        points=np.stack(points),
        instruction=world.instruction,
        task=world.task.name,
        success=success,
        seed=seed,
        info={"draws": dict(world.draws)} if world.draws else {},
    )


# Above every seed that evaluations use; the attempts of one demonstration are this far apart.
_FIRST_SEED, _SEEDS_A_RUN, _SEEDS_AN_ATTEMPT = 2**32, 2**32, 2**28
_ATTEMPTS = 16  # as many as there are seeds for: an expert that succeeds in half of its episodes hardly ever has none


class NeverSucceeded(VolarError):
    """No attempt at a demonstration succeeded."""


def demonstration_seed(run_seed: int, number: int, attempt: int = 0) -> int:
    """The environment seed of demonstration `number` of a run; distinct for all, and from evaluation seeds."""
    return _FIRST_SEED + run_seed * _SEEDS_A_RUN + attempt * _SEEDS_AN_ATTEMPT + number


@dataclass(frozen=True)
class DemonstrationMaker:
    """Successful demonstrations of one task, each determined by its run's seed and its number."""

    driver: StepDriver
    noise: Disturbances
    expert: Expert = scripted

    def successful(self, run_seed: int, number: int) -> Episode:
        """The first attempt that succeeds. Raises `NeverSucceeded` naming the seeds when none does."""
        for attempt in range(_ATTEMPTS):
            try:
                episode = rollout(self.driver, demonstration_seed(run_seed, number, attempt), self.noise, self.expert)
            except (SimulationDiverged, NoLayout):
                continue
            if episode.success:
                return episode
        task, seed = self.driver.world.task.name, demonstration_seed(run_seed, number)
        raise NeverSucceeded(
            f"the expert for {task} failed {_ATTEMPTS} times (seeds {seed} + k 2^28); "
            f"noise is {self.noise.scale}, try less"
        )
