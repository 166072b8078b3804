"""Stable-Baselines3's own PPO and SAC on the tasks, seeing the simulator's state: are they learnable?

    python -m volar.rl.state_baselines task=reach algorithm=sac steps=15000 output=runs/state-reach

A sanity check of tasks and rewards, and a teacher that needs no scripted expert: `python -m volar.rl.distill` records
its demonstrations. It knows neither images nor words, and is no policy for an arm. Leaves model.zip (SB3's own
format), replay.npz (of SAC), training.json and results.json. After a kill, resume=true goes on from the last checkpoint
in other scenes than those already seen: not bit for bit as it would have gone on.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from volar.datasets.durable_file import OutputExists, write_durably
from volar.rl.rewards import REWARDS
from volar.rl.state_env import STEP_M, StateEnv
from volar.rl.state_learner import Algorithm, load_learner, make_learner, save_learner
from volar.robots.command_line import run
from volar.robots.errors import Unknown, UsageError, VolarError
from volar.sim.closed_loop import episode_seed

EXAMPLES = (
    "python -m volar.rl.state_baselines task=reach algorithm=sac steps=15000 output=runs/state-reach",
    "python -m volar.rl.state_baselines task=reach algorithm=ppo steps=20000 output=runs/state-reach-ppo",
    "python -m volar.rl.state_baselines task=reach algorithm=sac steps=30000 output=runs/state-reach resume=true",
    "python -m volar.rl.distill teacher=runs/state-reach episodes=100 output=runs/demos",
)
RESULTS = "results.json"
_TRAINING = "training.json"
_CHECKPOINT_STEPS, _CHECKPOINTS = 1000, 20  # at least so far apart, at most so many


@dataclass(frozen=True)
class BaselineConfig:
    """Settings of `python -m volar.rl.state_baselines`."""

    output: Path = field(metadata={"help": "folder for model.zip and results.json"})
    task: str = field(default="reach", metadata={"help": "what to learn"})
    algorithm: Algorithm = field(default="sac", metadata={"help": "Stable-Baselines3's"})
    steps: int = field(default=15_000, metadata={"help": "of the environment, at least; PPO ends with a whole rollout"})
    robot: str = field(default="fr3", metadata={"help": "robot: fr3, ur5e, so101"})
    reward: str = field(default="dense", metadata={"help": "sparse: success; dense: also the way there"})
    randomization: str = field(default="none", metadata={"help": "a preset, or a .yaml"})
    seed: int = field(default=0, metadata={"help": "of weights, actions and scenes"})
    episodes: int = field(default=50, metadata={"help": "to evaluate on afterwards, the scenes of volar-evaluate"})
    resume: bool = field(default=False, metadata={"help": "continue what an interruption left, or for more steps"})

    def __post_init__(self) -> None:
        if self.steps < 1 or self.episodes < 1:
            raise UsageError(f"steps={self.steps} and episodes={self.episodes} must be at least 1")
        if self.reward not in REWARDS:
            raise Unknown("reward", self.reward, REWARDS)

    @property
    def facts(self) -> dict[str, str | int | float]:
        """What a checkpoint must have been trained with to be gone on with; all but `steps` and `episodes`."""
        names = ("task", "algorithm", "robot", "reward", "randomization", "seed")
        return {name: getattr(self, name) for name in names} | {"step_m": STEP_M}


def train_baseline(config: BaselineConfig) -> dict[str, Any]:
    """Trains and evaluates; returns what results.json says. Raises `Unknown` for a task that does not exist,
    `OutputExists`, and `VolarError` for a checkpoint of other settings."""
    from stable_baselines3.common.monitor import Monitor

    from volar.sim.wilson import wilson_interval

    done = _steps_done(config)
    env = Monitor(StateEnv(config.task, config.reward, config.randomization, config.robot))
    model = make_learner(config.algorithm, env, max(config.steps, done), config.seed + done)
    if done:
        load_learner(model, config.output)
        model.num_timesteps = done
    (config.output / RESULTS).unlink(missing_ok=True)  # of fewer steps
    if done < config.steps:
        _learn(model, config, config.steps - done)
    successes = sum(_succeeds(model, env, episode_seed(0, config.task, i)) for i in range(config.episodes))
    low, high = wilson_interval(successes, config.episodes)
    counted = {"successes": successes, "episodes": config.episodes, "wilson95": [low, high]}
    found = config.facts | {"steps": model.num_timesteps} | counted
    write_durably(config.output / RESULTS, (json.dumps(found, indent=1) + "\n").encode())
    print(f"{config.task}: {successes} of {config.episodes} ({100 * low:.1f} to {100 * high:.1f} %)")
    env.close()
    return found


def _steps_done(config: BaselineConfig) -> int:
    """Of the checkpoint to go on from; 0 where there is none."""
    path = config.output / _TRAINING
    if not path.is_file():
        return 0
    if not config.resume:
        raise OutputExists(f"{config.output} holds a baseline: go on with resume=true, or give another output")
    begun = dict(json.loads(path.read_text()))
    done = int(begun.pop("steps"))
    changed = {key: value for key, value in config.facts.items() if begun.get(key) != value}
    if changed:
        other = "; ".join(f"{key}: {begun.get(key)!r}, now {value!r}" for key, value in changed.items())
        raise VolarError(f"{config.output} was begun with other settings ({other}); give another output")
    return done


def _learn(model: Any, config: BaselineConfig, steps: int) -> None:
    """`steps` more, with a progress bar and checkpoints."""
    from stable_baselines3.common.callbacks import ConvertCallback

    every = max(_CHECKPOINT_STEPS, config.steps // _CHECKPOINTS)

    def save(*_: Any) -> bool:
        if model.num_timesteps % every == 0:
            _save(model, config)
        return True

    model.learn(steps, ConvertCallback(save), reset_num_timesteps=model.num_timesteps == 0, progress_bar=True)
    _save(model, config)


def _save(model: Any, config: BaselineConfig) -> None:
    save_learner(model, config.output)
    state = config.facts | {"steps": model.num_timesteps}  # last: it says that there is something to go on from
    write_durably(config.output / _TRAINING, (json.dumps(state, indent=1) + "\n").encode())


def _succeeds(model: Any, env: Any, seed: int) -> bool:
    observation, _ = env.reset(seed=seed)
    while True:
        action, _ = model.predict(observation, deterministic=True)
        observation, _, success, truncated, _ = env.step(action)
        if success or truncated:
            return bool(success)


def _main(config: BaselineConfig) -> None:
    train_baseline(config)


def main() -> int:
    return run("python -m volar.rl.state_baselines", BaselineConfig, _main, doc=__doc__, examples=EXAMPLES)


if __name__ == "__main__":
    raise SystemExit(main())
