"""A trained baseline in the scripted expert's place: what it would do, where a demonstration is."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from volar.rl.state_baselines import RESULTS
from volar.rl.state_env import StateEnv, observe, whole_action
from volar.rl.state_learner import MODEL, Algorithm, load_weights, make_learner
from volar.robots.errors import VolarError
from volar.sim.demonstration import Expert
from volar.sim.wilson import wilson_interval
from volar.sim.world import StepDriver


@dataclass(frozen=True)
class StateTeacher:
    """What `python -m volar.rl.state_baselines` left in `folder`, by its results.json; a `Demonstrator`.

    `step_m`: see `whole_action`. `successes` of `episodes`: as it was evaluated, without disturbances.
    """

    folder: Path
    task: str
    algorithm: Algorithm
    robot: str
    step_m: float
    steps: int
    successes: int
    episodes: int

    @staticmethod
    def load(folder: Path) -> "StateTeacher":
        """Raises `VolarError` where there is no baseline, or one that has never succeeded."""
        path = folder / RESULTS
        for name in (RESULTS, MODEL):
            if not (folder / name).is_file():
                train = f"python -m volar.rl.state_baselines output={folder}"
                raise VolarError(f"{folder} holds no finished baseline, it has no {name}; make one: {train}")
        try:
            found = json.loads(path.read_text())
            names = ("task", "algorithm", "robot", "step_m", "steps", "successes", "episodes")
            teacher = StateTeacher(folder, **{name: found[name] for name in names})
        except (ValueError, LookupError, TypeError) as error:
            raise VolarError(f"{path} is not of this version, or damaged: {error}; train it again") from error
        if teacher.successes == 0:
            raise VolarError(f"{folder} cannot teach {teacher.task}: {teacher.rate}; train it for more steps")
        return teacher

    @property
    def rate(self) -> str:
        low, high = wilson_interval(self.successes, self.episodes)
        return f"it succeeded in {self.successes} of {self.episodes} ({100 * low:.1f} to {100 * high:.1f} %)"

    @property
    def source(self) -> dict[str, str | int | float | bool]:
        weights = hashlib.sha256((self.folder / MODEL).read_bytes()).hexdigest()
        return {
            "made_by": "volar.rl.distill",
            "teacher": f"{self.algorithm} of {self.task}, {self.steps} steps",
            "teacher_sha256": weights,
            "teacher_success": f"{self.successes} of {self.episodes}",
        }

    def expert(self) -> Expert:
        """Its answers, without exploration. Raises `VolarError` for weights that are not this task's and robot's."""
        env = StateEnv(self.task, robot=self.robot)
        model = make_learner(self.algorithm, env)
        load_weights(model, self.folder / MODEL)
        env.close()

        def act(driver: StepDriver, left: float) -> NDArray[np.float64]:
            chosen, _ = model.predict(observe(driver.world, driver.proprio(), left), deterministic=True)
            answer = whole_action(chosen, driver.world, self.step_m).astype(np.float64)
            if driver.world.success():  # its episodes ended here, so it has not learned to stay
                answer[:3] = 0.0
            return answer

        return act
