"""The verb's work: the output folder, the loop with its progress and records, when it stops, and the report."""

import json
import math
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from volar.rl.finetune import FinetuneConfig
from volar.rl.finetuning_run import BEST, FinetuningRun, save_cloned
from volar.rl.rollouts import Rollouts
from volar.robots.errors import VolarError
from volar.robots.usable_cpus import usable_cpus
from volar.vla.metrics_log import MetricsLog
from volar.vla.run_folder import check_output
from volar.vla.training_loop import stop_requests

RECORD = "finetune.json"  # the settings of the run in a folder
# How long a run is and how it is watched may change when it resumes; everything else makes another run.
_FREE = {"minutes", "updates", "keep", "save_every", "workers", "rollouts", "ray_address", "output", "resume"}
_FREE |= {"overwrite", "report_episodes", "report_randomizations", "max_kl"}


def finetune(config: FinetuneConfig) -> None:
    """See `volar.rl.finetune.finetune`."""
    from volar.sim.randomizer import require_possible

    require_possible((config.randomization, *config.report_presets), config.task_names, config.robot)
    goes_on = check_output(
        config.output, RECORD, "fine-tuning run", settings(config), resume=config.resume, overwrite=config.overwrite
    )
    if not goes_on:
        _require_apart(config)
        prepare_output(config)
    training = FinetuningRun.start(config)
    workers = config.workers or usable_cpus()
    print(summary(training, workers), flush=True)
    with training.rollouts(workers) as rollouts:
        _loop(config, training, rollouts)
    reason = training.stopped or "done"
    print(f"{reason}; best policy: {config.output / BEST} (held-out success {training.best_success:.1%})")
    if config.report_episodes:
        from volar.rl.report import write_finetuning_report

        write_finetuning_report(config, workers, reason)


def summary(training: FinetuningRun, workers: int) -> str:
    learning = sum(p.numel() for p in training.policy.actor_parameters) / 1e6
    config = training.config
    return (
        f"{config.algorithm} on {', '.join(training.setting.tasks)} under {config.randomization}: {learning:.2f} M "
        f"parameters learn ({config.trains}), {config.episodes} episodes an update, {workers} workers"
    )


def _loop(config: FinetuneConfig, training: FinetuningRun, rollouts: Rollouts) -> None:
    """Updates until the end. SIGINT and SIGTERM end it after an update, saved; then `KeyboardInterrupt`."""
    log = MetricsLog(config.output, training.updates, counter="update")
    try:
        with stop_requests() as stopping:
            for metrics in updates(config, training, rollouts, stopping):
                log.write(metrics)
            training.save()
        if stopping.is_set():
            raise KeyboardInterrupt
    finally:
        log.close()


def updates(
    config: FinetuneConfig, training: FinetuningRun, rollouts: Rollouts, stopping: threading.Event
) -> Iterator[dict[str, float]]:
    """Metrics of each update; held-out evaluations and checkpoints in between."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    started, base_s = time.monotonic(), training.elapsed_s
    told: set[str] = set()
    with Progress(*columns) as bar:
        shown = bar.add_task("fine-tuning", total=1.0, note="")
        episodes = bar.add_task("", note="")

        def after_episode() -> None:
            bar.advance(episodes)

        while not stopping.is_set() and not training.stopped:
            metrics: dict[str, float] = {}
            bar.update(shown, completed=training.done)
            if not training.evaluation_due:  # else one that an interruption left, or the first
                if training.done >= 1.0:
                    return
                bar.reset(episodes, total=len(training.jobs()), description="trying out")
                metrics = training.update(rollouts, after_episode)
                if not math.isfinite(metrics.get("kl_step", 0.0)):
                    raise VolarError(
                        f"update {training.updates} diverged; continue from the last checkpoint as a new run with "
                        f"a learning_rate below {config.learning_rate}"
                    )
                training.elapsed_s = base_s + time.monotonic() - started
            if training.evaluation_due and not stopping.is_set():
                bar.reset(episodes, total=len(training.held_out()), description="held out")
                metrics |= training.evaluate(rollouts, after_episode)
                training.elapsed_s = base_s + time.monotonic() - started
            if training.updates % config.save_every == 0:
                training.save()
            if (kind := training.trouble[1][:40]) and kind not in told:
                told.add(kind)
                bar.console.print(": ".join(training.trouble), markup=False)
            bar.update(shown, completed=training.done, note=_note(training, metrics))
            counts = {"update": training.updates, "env_steps": training.env_steps, "worker_deaths": rollouts.deaths}
            yield counts | {"elapsed_s": round(training.elapsed_s, 2)} | _rounded(metrics)


def _note(training: FinetuningRun, metrics: dict[str, float]) -> str:
    words = [f"update {training.updates}", f"held out {training.last_success:.0%}"]
    if "success" in metrics:
        words.insert(1, f"trying out {metrics['success']:.0%}")
    if "reward_precision" in metrics and math.isfinite(metrics["reward_precision"]):
        words.append(f"classifier right {metrics['reward_precision']:.0%}")
    if "kl_reference" in metrics:
        words.append(f"KL {metrics['kl_reference']:.3f}  clipped {metrics['clip_fraction']:.0%}")
    if "explained_variance" in metrics:
        words.append(f"critic {metrics['explained_variance']:.2f}")
    if "env_steps_per_s" in metrics:
        words.append(f"{metrics['env_steps_per_s']:.0f} steps/s")
    return "  ".join(words)


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {key: round(float(value), 5) for key, value in metrics.items() if math.isfinite(value)}


def _require_apart(config: FinetuneConfig) -> None:
    """The output, which may be replaced, holds none of the inputs."""
    output = config.output.resolve()
    for path in (config.policy, config.demonstrations, config.classifier):
        if path is not None and output in (path.resolve(), *path.resolve().parents):
            raise VolarError(f"output {config.output} holds {path}; give another output")


def settings(config: FinetuneConfig) -> dict[str, str]:
    """What makes a run this one and no other."""
    return {key: str(value) for key, value in sorted(asdict(config).items()) if key not in _FREE}


def prepare_output(config: FinetuneConfig) -> None:
    """Makes the folder of a new run, with the policy it begins with; whole or not at all."""
    temporary = config.output.with_name(f".{config.output.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _begin(config, temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if config.output.exists():
        shutil.rmtree(config.output)
    temporary.rename(config.output)


def _begin(config: FinetuneConfig, folder: Path) -> None:
    from dataclasses import replace

    save_cloned(replace(config, output=folder))
    (folder / RECORD).write_text(json.dumps(settings(config), indent=1) + "\n")
