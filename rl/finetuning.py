"""The verb's work: the output folder, the loop with its progress and records, when it stops, and the report."""

import json
import math
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from volar.rl.finetune import FinetuneConfig
from volar.rl.finetuning_record import RECORD, settings, to_compare
from volar.rl.finetuning_run import BEST, FinetuningRun, save_cloned
from volar.rl.rollouts import Rollouts
from volar.robots.errors import VolarError
from volar.robots.usable_cpus import usable_cpus
from volar.vla.metrics_log import MetricsLog
from volar.vla.run_folder import check_output
from volar.vla.training_loop import stop_requests

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_BAR_WIDTH = 6  # beside which everything fits into 80 columns


def finetune(config: FinetuneConfig) -> None:
    """See `volar.rl.finetune.finetune`."""
    from volar.sim.randomizer import require_possible

    require_possible((config.randomization, *config.report_presets), config.task_names, config.robot)
    wanted = to_compare(config.output, settings(config))
    goes_on = check_output(
        config.output, RECORD, "fine-tuning run", wanted, resume=config.resume, overwrite=config.overwrite
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
    started, base_s = time.monotonic(), training.elapsed_s
    told: set[str] = set()
    with progress_bar() as bar:
        shown = bar.add_task(f"update {training.updates}", total=1.0, note="")
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
            told_of = update_note(metrics)
            bar.update(shown, completed=training.done, description=f"update {training.updates}", note=told_of)
            bar.update(episodes, note=held_out_note(training, metrics))
            counts = {"update": training.updates, "env_steps": training.env_steps, "worker_deaths": rollouts.deaths}
            yield counts | {"elapsed_s": round(training.elapsed_s, 2)} | _rounded(metrics)


def progress_bar(console: "Console | None" = None) -> "Progress":
    """A line for the run and one for the episodes of now, each with a `note`."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    words, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    return Progress(words, BarColumn(_BAR_WIDTH), note, TimeRemainingColumn(), console=console)


def update_note(metrics: Mapping[str, float]) -> str:
    """Of an update: success while trying out, divergence from the cloned policy [nats], share of clipped tokens,
    explained variance of the critic; 52 characters at most, up to 9,999 steps/s."""
    words = []
    if "success" in metrics:
        words.append(f"success {metrics['success']:.0%}")
    if "kl_reference" in metrics:
        words.append(f"KL {metrics['kl_reference']:.2f} clip {metrics['clip_fraction']:.0%}")
    if math.isfinite(known := metrics.get("explained_variance", math.nan)):
        words.append(f"EV {known:.2f}" if known > -9.995 else "EV <-10")
    if "env_steps_per_s" in metrics:
        words.append(f"{metrics['env_steps_per_s']:.0f} steps/s")
    return " ".join(words)


def held_out_note(training: FinetuningRun, metrics: Mapping[str, float]) -> str:
    """Success in held-out scenes, the newest and the best; how often a learned reward is right."""
    words = [f"held out {training.last_success:.0%}, best {training.best_success:.0%}"]
    if math.isfinite(right := metrics.get("reward_precision", math.nan)):
        words.append(f"classifier right {right:.0%}")
    return ", ".join(words)


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {key: round(float(value), 5) for key, value in metrics.items() if math.isfinite(value)}


def _require_apart(config: FinetuneConfig) -> None:
    """The output, which may be replaced, holds none of the inputs."""
    output = config.output.resolve()
    for path in (config.policy, config.demonstrations, config.classifier):
        if path is not None and output in (path.resolve(), *path.resolve().parents):
            raise VolarError(f"output {config.output} holds {path}; give another output")


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
