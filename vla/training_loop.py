"""A training run from where it is to its end: steps, and between them what is measured, told and saved."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from volar.robots.errors import VolarError
from volar.vla.batch_accuracy import batch_accuracy
from volar.vla.closed_loop_success import ClosedLoopSuccess
from volar.vla.metrics_log import MetricsLog, start_wandb
from volar.vla.training_run import TrainingRun
from volar.vla.validation import Validation

if TYPE_CHECKING:
    from volar.vla.losses import Losses
    from volar.vla.train import TrainConfig

LOG_EVERY_STEPS = 50


def run_to_the_end(config: "TrainConfig", training: TrainingRun) -> None:
    """Trains and leaves `checkpoints/last`. SIGINT and SIGTERM end it after a step, saved; then `KeyboardInterrupt`.

    Raises `VolarError` when the loss is no number, memory or disk do not suffice: the last checkpoint is whole.
    """
    log = None
    if training.processes.first:
        log = MetricsLog(config.output, training.step, wandb=start_wandb(config) if config.wandb else None)
    try:
        with stop_requests() as stopping:
            (logged,) = training.processes.agree(log.last if log is not None else 0)
            for metrics in training_steps(config, training, stopping, logged):
                if log is not None:
                    log.write(metrics)
            training.save()
        if training.stopped:
            raise KeyboardInterrupt
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise VolarError(_memory_advice(config, training, error)) from error
    finally:
        if log is not None:
            log.close()


def training_steps(
    config: "TrainConfig", training: TrainingRun, stopping: threading.Event, logged: float = 0
) -> Iterator[dict[str, Any]]:
    """Runs the steps that are left; yields metrics now and then, and saves checkpoints by the clock or count.

    `logged`: the step whose metrics are the last there are. A run that was killed between a checkpoint and what was to
    be measured of it begins with that.
    """
    validation, success = Validation.of(training), ClosedLoopSuccess.of(config, training)
    stretch = Stretch(training)
    saved_s = training.elapsed_s

    def measured() -> dict[str, Any]:
        """What is due at this step."""
        row: dict[str, Any] = {}
        over = training.done(config) >= 1.0
        with stretch.paused():
            if validation is not None and (over or training.step % config.validate_every_steps == 0):
                row |= validation.measure()
            if success is not None and (over or training.step % success.every_steps == 0):
                row |= success.measure()
        return row

    def told(row: dict[str, Any]) -> dict[str, Any]:
        return {"step": training.step, "elapsed_s": round(training.elapsed_s, 2)} | row

    if training.step > logged and (row := measured()):
        yield told(row)
    with progress_bar(training) as bar:
        task = bar.add_task(config.stage, total=1.0, note="")
        while training.done(config) < 1.0 and not training.stopped:
            losses = training.train_step(learning_rate(config, training.step, training.done(config)))
            stretch.after_step(losses, stopping)
            if config.save_every_steps:
                due = training.step % config.save_every_steps == 0
            else:
                due = training.elapsed_s - saved_s > config.save_every_s
            if due:
                training.save()
                saved_s = training.elapsed_s
            over, row = training.done(config) >= 1.0, {}
            if training.step % LOG_EVERY_STEPS == 0 or over:
                row = stretch.metrics(losses)
                note = f"step {training.step}  loss {row['total']:.3f}  {row['samples_per_s']:.0f} samples/s"
                bar.update(task, completed=training.done(config), note=note)
            row |= measured()
            if row:
                yield told(row)


class Stretch:
    """What this process has trained since it began, on a clock that stands still while something is measured."""

    def __init__(self, training: TrainingRun) -> None:
        self._training = training
        self._begun_s, self._first_step, self._first_s = time.monotonic(), training.step, training.elapsed_s

    def after_step(self, losses: "Losses", stopping: threading.Event) -> None:
        """All processes go by the first one's clock, and stop when one of them was asked to.

        Only what all of them were told here may end the loop: a signal that comes to one later counts at the next step.
        Raises `VolarError` when the loss of any of them is no number.
        """
        training = self._training
        loss = float(losses.total.detach()) if math.isfinite(training.gradient_norm) else math.nan
        elapsed_s = self._first_s + time.monotonic() - self._begun_s
        mine = [loss, float(stopping.is_set()), elapsed_s * training.processes.first]
        loss, stop, training.elapsed_s = training.processes.sum(torch.tensor(mine, dtype=torch.float64)).tolist()
        training.stopped = bool(stop)
        if not math.isfinite(loss):
            config = training.config
            slower = f"a learning_rate below {config.learning_rate}"
            go_on = f"start again with {slower}"
            if (config.output / "checkpoints" / "last").exists():
                go_on = (
                    f"the last checkpoint is from before: train with init={config.output}, another output and {slower}"
                )
            raise VolarError(f"the loss or its gradient became {loss} at step {training.step}; {go_on}")

    def metrics(self, losses: "Losses") -> dict[str, float]:
        """Of the step that was done, over all processes."""
        training, mine = self._training, losses.named()
        summed = training.processes.sum(torch.tensor(list(mine.values()), dtype=torch.float64)).tolist()
        samples = (training.step - self._first_step) * training.config.batch_size
        rate = samples / (training.elapsed_s - self._first_s)
        told = {"samples_per_s": round(rate, 1), "gradient_norm": round(training.gradient_norm, 4)}
        return told | {k: round(v, 5) for k, v in zip(mine, summed, strict=True)} | batch_accuracy(training)

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._begun_s += time.monotonic() - began


def learning_rate(config: "TrainConfig", step: int, done: float) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak at `done` = 1."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    return config.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM (as a cluster sends before it takes a machine); the second acts at once."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled
        yield stopping
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def first(number: int, frame: object) -> None:
        stopping.set()
        restore()

    for number in before:
        signal.signal(number, first)
    try:
        yield stopping
    finally:
        restore()


def progress_bar(training: TrainingRun) -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    return Progress(*columns, disable=not training.processes.first)


def out_of_memory(error: BaseException) -> bool:
    """Of the machine or of its GPU, whichever way torch and NumPy say so."""
    said = str(error).lower()
    words = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in said for text in words)


def _memory_advice(config: "TrainConfig", training: TrainingRun, error: BaseException) -> str:
    last = config.output / "checkpoints" / "last"
    have, go_on = "there is no checkpoint yet", "overwrite=true"
    if last.exists():
        have, go_on = f"the checkpoint of step {int(last.resolve().name)} is whole", "resume=true"
    ways = [f"accumulate={2 * config.accumulate} (the same samples a step, half as many at once)"]
    if not config.gradient_checkpointing and training.bare.config.decoder != "flow":
        ways += ["gradient_checkpointing=true"]
    if training.step == 0:  # Adam's two moments come with the first step, however few samples it has
        ways += ["less of the network to train (vision=frozen, language=lora, ...)"]
    said = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
    return (
        f"out of memory in step {training.step + 1} with batch_size={config.batch_size}, "
        f"accumulate={config.accumulate} ({said}); {have}: continue with {go_on} and {' or '.join(ways)}"
    )
