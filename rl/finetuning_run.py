"""One fine-tuning run in memory: policy, learner, and what decides each update; `update` does one.

Scenes and everything that is tried out follow from the run's seed and the update's number, and shuffling too, so that a
resumed run goes on exactly.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from volar.datasets.durable_file import write_durably
from volar.rl.auxiliaries import Imitation, Pointing
from volar.rl.episodes import Job, Setting, Trajectory
from volar.rl.exploration import Exploration
from volar.rl.grpo import grpo_update
from volar.rl.learner import Auxiliary, Learner, UpdateConfig
from volar.rl.ppo import ppo_update
from volar.rl.replaced_folder import put_back, replace_folder
from volar.rl.rewards import CLASSIFIER, privileged_size
from volar.rl.rollouts import InProcessRollouts, ProcessRollouts, Rollouts, WorkerSetup
from volar.rl.success_network import require_classifier
from volar.rl.success_training import reward_agreement
from volar.rl.token_policy import token_policy
from volar.rl.wire import encode_weights, trained_names
from volar.robots.errors import VolarError
from volar.vla.adapters import PARTS, adapt, merge, require_float32
from volar.vla.backbone import VlmConfig
from volar.vla.checkpoint_policy import load_parts
from volar.vla.processes import choose_precision
from volar.vla.processor_volar import save_policy
from volar.vla.training_state import load_progress, load_training_state, publish, save_training_state

if TYPE_CHECKING:
    from volar.rl.finetune import FinetuneConfig

CLONED, BEST = "cloned", "best"  # folders in the output: where it began, and the best so far
# Above the seeds of evaluations (32 bits) and of demonstrations (a few times 2^32): no scene is met twice.
_PRACTICE_SEED, _HELD_OUT_SEED = 2**48, 2**47
_SEEDS_A_RUN = 2**30
_COLLAPSE = 0.25  # of held-out success below the best, twice in a row
# What a checkpoint keeps beside weights and moments.
_KEPT = ("updates", "evaluated", "env_steps", "elapsed_s", "best_success", "last_success", "collapsed", "divergence")
_NARROWEST = 0.25  # of what is tried out, relative to the first update: less would teach nothing any more


class FinetuningRun:
    """Everything that changes; `updates` and `elapsed_s` say how far it is, `precision` (`no` or `bf16`) how the trunk
    learns. The policy it began with, which is also the reference, lies in `output/cloned`. `best_success`: of the
    held-out evaluations so far, of which the last was after update `evaluated`. `trouble`: how many of the newest
    episodes could not be run, and what the first of them says, or two empty strings."""

    def __init__(self, config: "FinetuneConfig", precision: str) -> None:
        torch.manual_seed(config.seed)  # the critic's initial weights
        self.config, self.precision = config, precision
        folder = config.output / CLONED
        model, self.contract, self.tokenizer = load_parts(folder)
        tasks = config.task_names
        exploration = Exploration(config.temperature, config.kernel_bins, config.correlation)
        self.policy = token_policy(
            model,
            self.contract,
            privileged=privileged_size(tasks) if config.critic == "state" else 0,
            exploration=exploration,
            trains=config.trains,
            precision=precision,
        )
        update = UpdateConfig(
            learning_rate=config.learning_rate,
            target_kl=config.target_kl,
            reference_weight=config.reference_weight,
            reward_weight=config.reward_weight,
        )
        self._pointing = Pointing() if config.pointing_weight else None
        self.learner = Learner(self.policy, update, self._auxiliaries())
        self.setting = Setting(
            tasks=tasks,
            robot=config.robot,
            randomization=config.randomization,
            reward=config.reward,
            gamma=config.gamma,
            world_seed=config.seed,
            images=config.trains == "all",
            pointing=self._pointing is not None,
            classifier=str(config.classifier or ""),
            critic=config.critic,
        )
        self.setup = WorkerSetup(folder, self.contract.execute_steps, exploration, config.trains, self.setting)
        self.updates, self.evaluated, self.elapsed_s, self.env_steps = 0, -1, 0.0, 0
        self.best_success = self.last_success = -1.0
        self.collapsed = 0  # held-out evaluations far below the best, in a row
        self.divergence = 0.0  # of a token, as tried out, from the cloned policy's, in the newest update [nats]
        self.trouble = "", ""

    @staticmethod
    def start(config: "FinetuneConfig") -> "FinetuningRun":
        """A new run, or the one in `config.output` with `resume`."""
        put_back(config.output / BEST)
        last = config.output / "checkpoints" / "last" / "training_state"
        if not (config.resume and last.exists()):
            training = FinetuningRun(config, choose_precision(config.precision, "cpu"))  # where it computes
        else:
            progress = load_progress(last)
            training = FinetuningRun(config, str(progress["precision"]))
            load_training_state(last, training.policy, training.learner.optimizer)
            for key in _KEPT:
                setattr(training, key, progress.get(key, getattr(training, key)))
        return training

    @property
    def done(self) -> float:
        """The share of the run that is over, in [0, 1]."""
        if self.config.updates is not None:
            return min(1.0, self.updates / self.config.updates)
        return min(1.0, self.elapsed_s / (60 * float(self.config.minutes or 1)))

    @property
    def evaluation_due(self) -> bool:
        """Whether held-out scenes come before the next update: at the beginning, now and then, and at the end."""
        now = self.updates % self.config.evaluate_every == 0 or self.done >= 1.0
        return now and self.evaluated != self.updates

    @property
    def stopped(self) -> str:
        """Why the run must end before its time, or an empty string."""
        if self.divergence > self.config.max_kl:
            far = f"{self.divergence:.2f} nats a token, as tried out, from the cloned policy"
            return f"stopped: {far}, max_kl={self.config.max_kl}"
        if self.collapsed >= 2:
            return f"stopped: held-out success fell from {self.best_success:.0%} to {self.last_success:.0%}"
        return ""

    @property
    def width(self) -> float:
        """Of what the next update tries out, relative to the first; a function of the update's number alone."""
        halving = self.config.fade_updates
        return max(_NARROWEST, 0.5 ** (self.updates / halving)) if halving else 1.0

    def rollouts(self, workers: int) -> Rollouts:
        """Where episodes run. Raises `VolarError` when Ray is wanted and not installed."""
        if self.config.rollouts == "ray":
            from volar.rl.ray_rollouts import RayRollouts

            return RayRollouts(self.setup, workers, self.config.ray_address)
        return InProcessRollouts(self.setup) if workers == 1 else ProcessRollouts(self.setup, workers)

    def jobs(self) -> list[Job]:
        """The episodes of the next update."""
        config, tasks = self.config, self.setting.tasks
        group = config.group if config.algorithm == "grpo" else 1
        rng = np.random.default_rng([config.seed, self.updates])
        first = _PRACTICE_SEED + config.seed * _SEEDS_A_RUN + self.updates * config.episodes
        jobs = []
        for i in range(config.episodes // group):
            task = tasks[(i + self.updates) % len(tasks)]
            jobs += [Job(task, first + i, int(rng.integers(2**62)), i, width=self.width) for _ in range(group)]
        return jobs

    def held_out(self) -> list[Job]:
        """The same scenes each time, never practised, acted in as the deployed policy would."""
        count = self.config.evaluation_episodes
        return [Job(task, _HELD_OUT_SEED + i, held_out=True) for task in self.setting.tasks for i in range(count)]

    def update(self, rollouts: Rollouts, progress: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Runs the episodes of one update and learns from them; returns what is reported of it.

        Raises `VolarError` when no episode could be run.
        """
        import time

        started = time.monotonic()
        tried = self._run(rollouts, self.jobs(), progress)
        trajectories = [t for t in tried if t.valid]
        collected_s = time.monotonic() - started
        notes = self._learn(trajectories)
        self.divergence = notes.get("kl_reference", self.divergence)
        if self.config.reward == CLASSIFIER:
            notes |= reward_agreement(trajectories)
        steps = int(sum(t.steps.sum() for t in trajectories))
        self.updates += 1
        self.env_steps += steps
        return {
            "success": float(np.mean([t.success for t in trajectories])),
            "episodes": len(trajectories),
            "invalid": len(tried) - len(trajectories),
            "env_steps_per_s": steps / collected_s,
            "rollout_s": collected_s,
            "update_s": time.monotonic() - started - collected_s,
            **notes,
        }

    def _learn(self, trajectories: list[Trajectory]) -> dict[str, float]:
        config = self.config
        self.policy.widen(self.width)
        rng = np.random.default_rng([config.seed, self.updates, 1])
        if self._pointing is not None:
            self._pointing.look_at(trajectories)
        if config.algorithm == "grpo":
            return grpo_update(self.learner, trajectories, rng, config.gamma)
        warm_up = self.updates < config.critic_updates
        return ppo_update(self.learner, trajectories, rng, config.gamma, config.gae_lambda, warm_up)

    def evaluate(self, rollouts: Rollouts, progress: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Held-out success of each task and `held_out` of all; keeps the policy when it is the best so far."""
        found = [t for t in self._run(rollouts, self.held_out(), progress) if t.valid or t.broken]
        by_task = {task: [t.success for t in found if t.job.task == task] for task in self.setting.tasks}
        rates = {f"held_out/{task}": float(np.mean(own)) for task, own in by_task.items() if own}
        self.last_success = float(np.mean([t.success for t in found]))
        if self.last_success > self.best_success:
            temporary = self.config.output / f".{BEST}"
            shutil.rmtree(temporary, ignore_errors=True)
            save_policy(temporary, self.policy.vla, self.contract, self.tokenizer)
            replace_folder(self.config.output / BEST, temporary)
            self.best_success = self.last_success
        self.collapsed = self.collapsed + 1 if self.last_success < self.best_success - _COLLAPSE else 0
        self.evaluated = self.updates
        return {"held_out": self.last_success, **rates}

    def _run(self, rollouts: Rollouts, jobs: list[Job], progress: Callable[[], None]) -> list[Trajectory]:
        """With the policy as it is; `trouble` says what could not be run. Raises `VolarError` when nothing could."""
        rollouts.broadcast(encode_weights(self.policy.vla, trained_names(self.policy.vla)))
        trajectories = rollouts.run(jobs, progress)
        errors = [t.error for t in trajectories if not t.valid]
        if errors:
            self.trouble = f"{len(errors)} of {len(jobs)} episodes could not be run", errors[0]
        if len(errors) == len(jobs):
            raise VolarError(f"after update {self.updates}, {': '.join(self.trouble)}")
        return trajectories

    def save(self) -> None:
        """Writes a checkpoint, once for each update; what an evaluation has added since is written into it."""
        root = self.config.output / "checkpoints"
        progress: dict[str, Any] = {key: getattr(self, key) for key in (*_KEPT, "precision")}
        if (root / "last").resolve().name == f"{self.updates:06d}":
            write_durably(root / "last" / "training_state" / "progress.json", json.dumps(progress).encode())
            return
        temporary = root / ".writing"
        shutil.rmtree(temporary, ignore_errors=True)
        save_policy(temporary / "pretrained_model", self.policy.vla, self.contract, self.tokenizer)
        save_training_state(temporary / "training_state", self.policy, self.learner.optimizer, progress)
        publish(root, self.updates, temporary, self.config.keep)

    def _auxiliaries(self) -> list[tuple[float, Auxiliary]]:
        config = self.config
        found: list[tuple[float, Auxiliary]] = []
        if config.demonstrations is not None and config.imitation_weight:
            imitation = Imitation(config.demonstrations, self.contract, self.tokenizer)
            found.append((config.imitation_weight, imitation))
        if self._pointing is not None:
            found.append((config.pointing_weight, self._pointing))
        return found


def save_cloned(config: "FinetuneConfig") -> None:
    """Copies the policy to `output/cloned`, as it will act and learn here: low-rank updates that it came with merged,
    new ones, which change nothing yet, where they are to be learned.

    Raises `ContractError` when it does not fit, or the classifier does not fit it; `VolarError` for a decoder without
    independent tokens, for weights that are too coarse to train, and for a classifier that has not learned the tasks.
    """
    from volar.robots.contract import require
    from volar.robots.policies import find_policy
    from volar.robots.spec import load_robot

    folder = find_policy(config.policy)
    if not (folder / "config.json").is_file():
        raise VolarError(f"{config.policy} is an exported artifact, which cannot learn; give the policy directory")
    model, contract, tokenizer = load_parts(folder)
    if model.config.decoder != "parallel":
        have = f"{config.policy} decodes by decoder={model.config.decoder}"
        raise VolarError(f"{have}; volar-finetune moves the tokens of decoder=parallel only")
    require(contract, load_robot(config.robot))
    if config.classifier is not None:
        require_classifier(config.classifier, contract, config.task_names)
    steps = config.execute_steps or contract.execute_steps
    if steps > contract.chunk_length:
        raise VolarError(f"execute_steps={steps} is above the policy's chunk of {contract.chunk_length}")
    model = merge(model)
    parts = {part: getattr(config, part) for part in PARTS}
    model.config = replace(model.config, **parts, lora_rank=config.lora_rank)
    backbone = model.config.backbone
    if config.trains == "all" and isinstance(backbone, VlmConfig):
        require_float32(model.config, backbone.dtype, f"{config.policy} has backbone_dtype={backbone.dtype}")
    torch.manual_seed(config.seed)  # of the low-rank updates
    adapt(model.backbone, model.config)
    save_policy(config.output / CLONED, model, replace(contract, execute_steps=steps), tokenizer)
