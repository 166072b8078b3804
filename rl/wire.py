"""What goes between a learner and its workers, as bytes: jobs, trajectories and weights. Arrays and JSON, no pickle."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from volar.rl.episodes import Job, Trajectory

_ARRAYS = ("tokens", "rewards", "steps", "last", "points")
_INPUT = "inputs."


def encode_jobs(jobs: Iterable[Job]) -> bytes:
    return json.dumps([asdict(job) for job in jobs]).encode()


def decode_jobs(data: bytes) -> list[Job]:
    return [Job(**item) for item in json.loads(data)]


def encode_trajectory(trajectory: Trajectory) -> bytes:
    from safetensors.numpy import save

    arrays: dict[str, NDArray[Any]] = {name: getattr(trajectory, name) for name in _ARRAYS}
    arrays |= {_INPUT + name: value for name, value in trajectory.inputs.items()}
    flags = {name: getattr(trajectory, name) for name in ("success", "terminated", "valid", "error", "broken")}
    facts = json.dumps({"job": asdict(trajectory.job), **flags})
    return save({name: np.ascontiguousarray(value) for name, value in arrays.items()}, {"facts": facts})


def decode_trajectory(data: bytes) -> Trajectory:
    """Inverse of `encode_trajectory`, bit for bit."""
    from safetensors.numpy import load

    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # safetensors' own: length, then JSON
    facts = json.loads(header["__metadata__"]["facts"])
    arrays = load(data)
    inputs = {name.removeprefix(_INPUT): value for name, value in arrays.items() if name.startswith(_INPUT)}
    parts: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
    parts |= facts | {"job": Job(**facts["job"]), "inputs": inputs}
    return Trajectory(**parts)


def encode_weights(module: nn.Module, names: Iterable[str]) -> bytes:
    """The named parameters of a module."""
    from safetensors.torch import save

    found: Mapping[str, Tensor] = dict(module.named_parameters())
    return save({name: found[name].detach().contiguous() for name in names})


@torch.no_grad()
def load_weights(module: nn.Module, data: bytes) -> None:
    """Puts what `encode_weights` took into a module of the same shape."""
    from safetensors.torch import load

    found = dict(module.named_parameters())
    for name, value in load(data).items():
        found[name].copy_(value)


def trained_names(module: nn.Module) -> list[str]:
    """The parameters that change while training, which is what workers must be told of."""
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]
