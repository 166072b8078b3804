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


def load_training_state(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Inverse of `save_training_state`; returns `progress`. Raises `VolarError` when it is broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        progress: dict[str, Any] = json.loads((directory / "progress.json").read_text())
        tensors = load_file(str(directory / "state.safetensors"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                if f"step.{name}" in tensors:
                    optimizer.state[parameter] = {
                        key: tensors[f"{key}.{name}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")
                    }
        return progress
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise VolarError(f"{directory} cannot be resumed from: {error}") from error


def publish(root: Path, step: int, temporary: Path, keep: int) -> Path:
    """Moves a complete checkpoint to its name, points `last` at it and drops all but the newest `keep`."""
    final = root / f"{step:06d}"
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    link = root / ".last"
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    os.replace(link, root / "last")
    for old in sorted(path for path in root.iterdir() if path.name.isdigit())[:-keep]:
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
