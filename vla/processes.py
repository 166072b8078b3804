"""The processes of a training run: how many there are, what they agree on, how a network is spread over them.

    accelerate launch --multi_gpu --num_processes 8 -m volar.vla.train dataset=.. steps=..
    torchrun --nnodes 2 --nproc_per_node 8 -m volar.vla.train dataset=.. steps=.. parallel=fsdp

Started without either, there is one.
"""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor, nn

from volar.robots.errors import UsageError
from volar.vla.decoders.decoder import Decoded
from volar.vla.modeling_volar import Imitated, Outputs, Pointing
from volar.vla.sharding import shard

WAIT = timedelta(hours=6)  # that processes wait for the first one, which also evaluates


class Processes:
    """Accelerate's state, and what is asked of it here. `parallel`: each has the network (ddp) or a part (fsdp)."""

    def __init__(self, parallel: Literal["ddp", "fsdp"] = "ddp") -> None:
        """Joins the others. Raises `UsageError` where a launcher was told what it did not do or we do not."""
        from accelerate import PartialState

        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise UsageError("start without --use_fsdp, and give volar-train parallel=fsdp instead")
        self.state = PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)
        if self.count == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
            raise UsageError(
                "accelerate launch was told of several processes and started one, as it does without GPUs: "
                "give it --multi_gpu, or use torchrun --nproc_per_node N -m volar.vla.train"
            )
        self.parallel = parallel

    @property
    def count(self) -> int:
        return int(self.state.num_processes)

    @property
    def index(self) -> int:
        return int(self.state.process_index)

    @property
    def first(self) -> bool:
        """Whether this one writes."""
        return self.index == 0

    @property
    def device(self) -> torch.device:
        found: torch.device = self.state.device
        return found

    @property
    def sharded(self) -> bool:
        return self.parallel == "fsdp" and self.count > 1

    def wait(self) -> None:
        self.state.wait_for_everyone()

    def one_by_one(self) -> AbstractContextManager[None]:
        """The first on each machine goes ahead: the others find what it has made."""
        found: AbstractContextManager[None] = self.state.local_main_process_first()
        return found

    def agree(self, *values: float) -> list[float]:
        """The first process's numbers, in all."""
        return self.sum(torch.tensor(values, dtype=torch.float64) * self.first).tolist()

    def gather(self, value: float) -> list[float]:
        """Each process's number, in order, in all."""
        return self.sum(value * torch.eye(self.count, dtype=torch.float64)[self.index]).tolist()

    def sum(self, tensor: Tensor) -> Tensor:
        """Of all processes, elementwise; on the CPU."""
        if self.count == 1:
            return tensor
        moved = tensor.to(self.device, copy=True)
        torch.distributed.all_reduce(moved)
        return moved.cpu()

    def accelerator(self, precision: str) -> Any:
        """For mixed precision, the backward pass and clipping."""
        from accelerate import Accelerator

        return Accelerator(mixed_precision=precision, cpu=self.device.type == "cpu")

    def spread(self, model: nn.Module) -> nn.Module:
        """The network as it is called from now on: on this process's device, and shared with the others."""
        if self.sharded:  # which moves each process's share to its device
            shard(model, self.device, self.count, (Outputs, Imitated, Decoded, Pointing))
            return model
        model.to(self.device)
        if self.count > 1:
            from torch.nn.parallel import DistributedDataParallel

            places = [self.device] if self.device.type == "cuda" else None
            # A decoder leaves parts of a backbone unused, and a process may have no question in its share of a step.
            return DistributedDataParallel(model, places, find_unused_parameters=True)
        return model

    @contextmanager
    def apart(self, model: nn.Module) -> Iterator[None]:
        """Inside, gradients are added up here and not yet with the others'."""
        if self.sharded:
            set_sync: Any = model.set_requires_gradient_sync
            set_sync(False)
            yield
            set_sync(True)
            return
        no_sync: Any = getattr(model, "no_sync", nullcontext)
        with no_sync():
            yield


def choose_precision(wanted: str, device: str | None = None) -> str:
    """`auto`: bf16 on a GPU that multiplies it; on a CPU where a matrix product of the training's size is at least 1.5x
    faster in it; else fp32. `device`: `cuda` or `cpu`, a GPU where there is one by default."""
    if wanted != "auto":
        return "bf16" if wanted == "bf16" else "no"
    if (device or ("cuda" if torch.cuda.is_available() else "cpu")) == "cuda":
        # Not timed: on a large GPU a product of this size takes as long as starting it, whatever its numbers are.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(20):  # in turn, and the best of each: other processes disturb both alike
        for dtype in best:
            a, b = torch.ones(4096, 128, dtype=dtype), torch.ones(128, 256, dtype=dtype)
            start = time.perf_counter()
            (a @ b)[0, 0].item()
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return "bf16" if best[torch.bfloat16] * 1.5 < best[torch.float32] else "no"
