"""Checkpoints that survive a kill: written beside, then renamed; `last` always names a complete one.

checkpoints/{step:06d}/pretrained_model   the policy directory, with averaged weights
checkpoints/{step:06d}/training_state     raw weights, optimizer moments, step: resume is exact
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from volar.robots.errors import VolarError


def save_training_state(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Everything beside the policy that resuming needs; tensors as safetensors, numbers as JSON."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {f"model.{name}": value.detach().clone() for name, value in model.named_parameters()}
    for parameter, moments in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            tensors[f"{key}.{names[id(parameter)]}"] = moments[key].detach().clone()
    save_file(tensors, str(directory / "state.safetensors"))
    (directory / "progress.json").write_text(json.dumps(progress))


def load_progress(directory: Path) -> dict[str, Any]:
    """The numbers that `save_training_state` was given. Raises `VolarError` when they are missing."""
    try:
        progress: dict[str, Any] = json.loads((directory / "progress.json").read_text())
        return progress
    except (OSError, ValueError) as error:
        raise VolarError(f"{directory} cannot be resumed from: {error}") from error


def load_training_state(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts weights and moments back. Raises `VolarError` when the file is broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(str(directory / "state.safetensors"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                if f"step.{name}" in tensors:
                    optimizer.state[parameter] = {
                        "step": tensors[f"step.{name}"].clone(),
                        "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device, copy=True),
                        "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device, copy=True),
                    }
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise VolarError(f"{directory} cannot be resumed from: {error}") from error


def publish(root: Path, step: int, temporary: Path, keep: int) -> Path:
    """Moves a complete checkpoint to its name, points `last` at it and drops all but the newest `keep`."""
    final = root / f"{step:06d}"
    if final.exists():  # trained again after a resume from an older one: `last` does not point here
        shutil.rmtree(final)
    for path in sorted(temporary.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    temporary.rename(final)
    link = root / ".last"
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    os.replace(link, root / "last")
    numbered = sorted((path for path in root.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    for old in numbered[:-keep]:
        shutil.rmtree(old)
    return final


class WeightAverage:
    """Exponential moving average of a model's parameters; the averaged weights are the policy."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        # The warm-up keeps the random initial weights from weighing on a short run's average.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in model.parameters()], 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchanges the model's parameters with the averages; call it again to undo."""
        for value, parameter in zip(self.values, model.parameters(), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)
