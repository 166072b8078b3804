"""Checkpoints that survive a kill: written beside, then renamed; `last` always names a complete one.

    checkpoints/{step:06d}/pretrained_model   the policy directory, with averaged weights
    checkpoints/{step:06d}/training_state     raw weights, optimizer moments, step: resume is exact

They hold whole tensors, whatever number of processes wrote them, and are read by any number. Weights that do not train
lie in the policy alone.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from volar.datasets.durable_file import sync
from volar.robots.errors import VolarError
from volar.vla.sharding import like, local, whole


def save_training_state(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any], write: bool = True
) -> None:
    """Everything beside the policy that resuming needs; tensors as safetensors, numbers as JSON.

    Called in all processes, which put sharded tensors together; one has `write`.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        moments = {"model": parameter, **optimizer.state.get(parameter, {})}
        for key in ("model", "exp_avg", "exp_avg_sq", "step"):
            if key in moments:
                value = whole(moments[key].detach())
                if write:
                    tensors[f"{key}.{name}"] = value.to("cpu", copy=True)
    if write:
        directory.mkdir(parents=True, exist_ok=True)
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
                if f"model.{name}" in tensors or parameter.requires_grad:
                    parameter.copy_(like(parameter, tensors[f"model.{name}"]))
                if f"step.{name}" in tensors:
                    optimizer.state[parameter] = {
                        "step": tensors[f"step.{name}"].clone(),
                        "exp_avg": like(parameter, tensors[f"exp_avg.{name}"]),
                        "exp_avg_sq": like(parameter, tensors[f"exp_avg_sq.{name}"]),
                    }
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise VolarError(f"{directory} cannot be resumed from: {error}") from error


def publish(root: Path, step: int, temporary: Path, keep: int) -> Path:
    """Moves a complete checkpoint to its name, points `last` at it and drops all but the newest `keep`, once the disk
    has it: a power cut leaves what `last` names whole."""
    final = root / f"{step:06d}"
    for path in root.iterdir():  # trained again after a resume from an older one: `last` does not point there
        if path.name.isdigit() and int(path.name) >= step:
            shutil.rmtree(path)
    for path in (*temporary.rglob("*"), temporary):
        sync(path)
    temporary.rename(final)
    link = root / ".last"
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    os.replace(link, root / "last")
    sync(root)
    numbered = sorted((path for path in root.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    for old in numbered[:-keep]:
        shutil.rmtree(old)
    return final


class WeightAverage:
    """Exponential moving average of the parameters that train, as much of them as this process has; the averaged
    weights are the policy."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = [value.clone() for value in _trained(model)]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        # The warm-up keeps the random initial weights from weighing on a short run's average.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, _trained(model), 1 - decay)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model's parameters are the averages."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for value, parameter in zip(self.values, _trained(model), strict=True):
            kept = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)


def _trained(model: nn.Module) -> list[Tensor]:
    return [local(parameter.detach()) for parameter in model.parameters() if parameter.requires_grad]
