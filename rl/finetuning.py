"""The verb's work: the output folder, the loop with its progress and records, when it stops, and the report."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from volar.rl.finetune import FinetuneConfig
from volar.rl.finetuning_run import BEST, FinetuningRun, save_cloned
from volar.rl.rollouts import Rollouts
from volar.robots.errors import VolarError
from volar.vla.run_folder import check_output

RECORD = "finetune.json"  # the settings of the run in a folder
COLLAPSE = 0.25  # of held-out success below the best, twice in a row
# How long a run is and how it is watched may change when it resumes; everything else makes another run.
_FREE = {"minutes", "updates", "keep", "save_every", "workers", "rollouts", "ray_address", "output", "resume"}
_FREE |= {"overwrite", "report_episodes", "report_randomizations", "max_kl"}


def finetune(config: FinetuneConfig) -> None:
    """See `volar.rl.finetune.finetune`."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait sleep: workers need the cores
    from volar.sim.randomizer import require_possible

    require_possible((config.randomization,), config.task_names, config.robot)
    check_output(
        config.output, RECORD, "fine-tuning run", settings(config), resume=config.resume, overwrite=config.overwrite
    )
    if not config.resume:
        _require_apart(config)
    prepare_output(config)
    training = FinetuningRun.start(config)
    workers = config.workers or len(os.sched_getaffinity(0))
    print(summary(training, workers), flush=True)
    with training.rollouts(workers) as rollouts:
        reason = _loop(config, training, rollouts)
    training.save()
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


def _loop(config: FinetuneConfig, training: FinetuningRun, rollouts: Rollouts) -> str:
    """Updates until the end; returns why it ended. An interrupt saves first."""
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(config.output / "tensorboard"), purge_step=training.updates)
    with (config.output / "metrics.jsonl").open("a") as log:
        try:
            for metrics in updates(config, training, rollouts):
                log.write(json.dumps(metrics) + "\n")
                log.flush()
                for key, value in metrics.items():
                    board.add_scalar(key, value, training.updates)
                if reason := why_stop(config, training, metrics):
                    return reason
        except KeyboardInterrupt:
            training.save()
            raise
        finally:
            board.close()
    return "done"


def updates(config: FinetuneConfig, training: FinetuningRun, rollouts: Rollouts) -> Iterator[dict[str, float]]:
    """Metrics of each update; held-out evaluations and checkpoints in between."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    started, base_s = time.monotonic(), training.elapsed_s
    with Progress(*columns) as bar:
        shown = bar.add_task("fine-tuning", total=1.0, note="held-out evaluation")
        bar.update(shown, completed=training.done)
        if training.best_success < 0:
            yield _rounded({"update": 0, "elapsed_s": 0.0} | training.evaluate(rollouts))
        while training.done < 1.0:
            metrics = training.update(rollouts)
            training.elapsed_s = base_s + time.monotonic() - started
            if not math.isfinite(metrics.get("kl_step", 0.0)):
                raise VolarError(
                    f"update {training.updates} diverged; continue from the last checkpoint as a new run with "
                    f"a learning_rate below {config.learning_rate}"
                )
            if training.updates % config.evaluate_every == 0 or training.done >= 1.0:
                metrics |= training.evaluate(rollouts)
            where = {"update": training.updates, "elapsed_s": training.elapsed_s, "env_steps": training.env_steps}
            if training.updates % config.save_every == 0:
                training.save()
            bar.update(shown, completed=training.done, note=_note(training, metrics))
            yield _rounded(where | metrics)


def _note(training: FinetuningRun, metrics: dict[str, float]) -> str:
    words = [
        f"update {training.updates}",
        f"trying out {metrics['success']:.0%}",
        f"held out {training.last_success:.0%}",
    ]
    if math.isfinite(metrics.get("reward_precision", math.nan)):
        words.append(f"classifier right {metrics['reward_precision']:.0%}")
    if "kl_reference" in metrics:
        words.append(f"KL {metrics['kl_reference']:.3f}  clipped {metrics['clip_fraction']:.0%}")
    if "explained_variance" in metrics:
        words.append(f"critic {metrics['explained_variance']:.2f}")
    return "  ".join([*words, f"{metrics['env_steps_per_s']:.0f} steps/s"])


def _rounded(metrics: dict[str, Any]) -> dict[str, float]:
    return {key: round(float(value), 5) for key, value in metrics.items() if math.isfinite(value)}


def why_stop(config: FinetuneConfig, training: FinetuningRun, metrics: dict[str, float]) -> str:
    """Why the run must end before its time, or an empty string."""
    if metrics.get("kl_reference", 0.0) > config.max_kl:
        return f"stopped: {metrics['kl_reference']:.2f} nats a token from the cloned policy, max_kl={config.max_kl}"
    if "held_out" in metrics:
        training.collapsed = training.collapsed + 1 if training.last_success < training.best_success - COLLAPSE else 0
        if training.collapsed >= 2:
            return f"stopped: held-out success fell from {training.best_success:.0%} to {training.last_success:.0%}"
    return ""


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
    if config.resume:
        return
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
