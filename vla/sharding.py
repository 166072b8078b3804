"""Weights spread over processes (FSDP2, `torch.distributed.fsdp.fully_shard`), and tensors put together again.

Zhao et al., "PyTorch FSDP: experiences on scaling fully sharded data parallel" (VLDB 2023). A process keeps its share
of every weight, gradient, moment and average; a layer's weights are together only while it is computed. The same on
GPUs (NCCL) and CPUs (gloo). Accelerate's own wrapping does not do it on CPUs, where the tests are, so it is done here.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def shard(model: nn.Module, device: torch.device, processes: int, outputs: Iterable[type]) -> None:
    """Shards a network in place: each layer of a stack by itself, then what is left. To be done before an optimizer,
    once in a process. `outputs`: dataclasses that the network returns.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for kind in outputs:  # in which the tensors must be found, from which the backward pass begins
        torch.export.register_dataclass(kind)
    mesh = init_device_mesh(device.type, (processes,))
    for module in model.modules():
        for layer in module if isinstance(module, nn.ModuleList) else ():
            fully_shard(layer, mesh=mesh)
    # Also the root's weights are given back after a pass, so that what lies between steps is always a share.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "decode")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; then all processes must ask for it, in the same order."""
    gather: Any = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def local(tensor: Tensor) -> Tensor:
    """This process's share, not copied; the tensor itself unless it is sharded."""
    mine: Any = getattr(tensor, "to_local", None)
    return tensor if mine is None else mine()


def like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A copy of a whole tensor, on the device of a parameter and sharded as that is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    moved = tensor.to(parameter.device, copy=True)
    if not isinstance(parameter, DTensor):
        return moved
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)
