"""Where a run's metrics go: metrics.jsonl, TensorBoard (`tensorboard --logdir RUN/tensorboard`), Weights & Biases."""

import contextlib
import importlib
import importlib.util
import json
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from volar.datasets.durable_file import disk_errors, write_durably
from volar.robots.errors import VolarError

if TYPE_CHECKING:
    from volar.vla.train import TrainConfig

FILE, BOARD = "metrics.jsonl", "tensorboard"


class MetricsLog:
    """One dictionary of numbers (and notes) at a time, each with its `step`."""

    def __init__(self, config: "TrainConfig", step: int) -> None:
        """`step`: from which the run goes on; what was logged beyond it, before it was cut, is dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self._path = config.output / FILE
        with disk_errors(self._path):
            if self._path.is_file():
                write_durably(self._path, _rows_until(self._path.read_text(), step).encode())
            self._file = self._path.open("a")
            self._board: Any = SummaryWriter(str(config.output / BOARD), purge_step=step + 1)
        self._wandb = _start_wandb(config) if config.wandb else None

    def write(self, metrics: dict[str, Any]) -> None:
        """Raises `DiskFull`."""
        step, numbers = metrics["step"], {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
        with disk_errors(self._path):
            self._file.write(json.dumps(metrics) + "\n")
            self._file.flush()
            for name, value in numbers.items():
                if name != "step":
                    self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        self._file.close()
        with contextlib.suppress(OSError):  # of a full disk the file has told
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def require_wandb() -> None:
    """Raises `VolarError` when it is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise VolarError(
            "wandb= needs Weights & Biases: pip install wandb; or leave wandb= away (TensorBoard is there)"
        )


def _start_wandb(config: "TrainConfig") -> Any:
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


def _rows_until(text: str, step: int) -> str:
    """The whole rows up to a step: a killed run may have left half a row, and rows that are done again."""
    kept = []
    for line in text.splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    return "".join(kept)
