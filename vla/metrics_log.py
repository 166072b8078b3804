"""Where a run's metrics go: metrics.jsonl, TensorBoard (`tensorboard --logdir RUN/tensorboard`), Weights & Biases."""

import contextlib
import importlib
import importlib.util
import json
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volar.datasets.durable_file import disk_errors, write_durably
from volar.robots.errors import VolarError

if TYPE_CHECKING:
    from volar.vla.train import TrainConfig

FILE, BOARD = "metrics.jsonl", "tensorboard"


class MetricsLog:
    """One dictionary of numbers (and notes) at a time, each with its count, of steps or whatever else is counted."""

    def __init__(self, output: Path, done: int, counter: str = "step", wandb: Any = None) -> None:
        """`done`: the count from which the run goes on; what was logged beyond it, before it was cut, is dropped.
        `counter`: what counts, a key of each dictionary. `wandb`: a run of Weights & Biases (`start_wandb`)."""
        from torch.utils.tensorboard import SummaryWriter

        self._path, self._counter, self._wandb = output / FILE, counter, wandb
        self.last = 0  # the count that was logged last
        with disk_errors(self._path):
            if self._path.is_file():
                rows = _rows_until(self._path.read_text(), counter, done)
                self.last = max((int(json.loads(row)[counter]) for row in rows), default=0)
                write_durably(self._path, "".join(rows).encode())
            self._file = self._path.open("a")
            self._board: Any = SummaryWriter(str(output / BOARD), purge_step=done + 1)

    def write(self, metrics: dict[str, Any]) -> None:
        """Raises `DiskFull`."""
        step, numbers = metrics[self._counter], {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
        with disk_errors(self._path):
            self._file.write(json.dumps(metrics) + "\n")
            self._file.flush()
            for name, value in numbers.items():
                if name != self._counter:
                    self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        for part in (self._file, self._board):
            with contextlib.suppress(OSError):  # of a full disk `write` has told
                part.close()
        if self._wandb is not None:
            self._wandb.finish()


def require_wandb() -> None:
    """Raises `VolarError` when it is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise VolarError(
            "wandb= needs Weights & Biases: pip install wandb; or leave wandb= away (TensorBoard is there)"
        )


def start_wandb(config: "TrainConfig") -> Any:
    """The run of this output folder, which a resumed training goes on with."""
    wandb = importlib.import_module("wandb")
    marker = config.output / "wandb_run.txt"
    if not marker.is_file():
        marker.write_text(uuid.uuid4().hex[:8])
    settings = {key: str(value) for key, value in asdict(config).items()}
    return wandb.init(
        project=config.wandb,
        name=config.output.name,
        id=marker.read_text(),
        resume="allow",
        dir=str(config.output),
        config=settings,
    )


def _rows_until(text: str, counter: str, done: int) -> list[str]:
    """The whole rows up to a count: a killed run may have left half a row, and rows that are done again."""
    kept = []
    for line in text.splitlines():
        try:
            if json.loads(line)[counter] <= done:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    return kept
