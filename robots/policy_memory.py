"""Memory that a control loop and its policy's process share: arrays of fixed places, given by the contract."""

import mmap
import os
import tempfile
from collections.abc import Mapping
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.contract import ContractError, PolicyContract
from volar.robots.interface import ActionChunk, Observation

TEXT_BYTES: Final = 1024  # longest instruction or reason, UTF-8
ALIGNMENT: Final = 64  # [bytes], a cache line


class SharedMemory:
    """Arrays of one contract in an anonymous file mapped by both processes.

    `image.<camera>` uint8 (H, W, 3), `state` float32 (S,), `actions` float32 (H, A); `instruction` and
    `reason` UTF-8; `numbers` int64: stamp of the observation, of the chunk, inference time [ns], seed of a reset.
    """

    def __init__(self, contract: PolicyContract, descriptor: int | None = None) -> None:
        layout: dict[str, tuple[tuple[int, ...], Any]] = {
            f"image.{c.name}": ((c.height, c.width, 3), np.uint8) for c in contract.cameras
        }
        layout["state"] = (len(contract.state_names),), np.float32
        layout["actions"] = (contract.chunk_length, contract.action.size), np.float32
        layout["numbers"] = (4,), np.int64
        layout["instruction"] = layout["reason"] = (TEXT_BYTES,), np.uint8
        offsets, size = {}, 0
        for name, (shape, dtype) in layout.items():
            offsets[name] = size
            size += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT
        self.file = _anonymous_file(size) if descriptor is None else os.fdopen(descriptor, "r+b", buffering=0)
        self._map = mmap.mmap(self.file.fileno(), size)
        self.arrays: Mapping[str, NDArray[Any]] = {
            name: np.ndarray(shape, dtype, self._map, offsets[name]) for name, (shape, dtype) in layout.items()
        }

    def write_observation(self, observation: Observation) -> None:
        for name, image in observation.images.items():
            self.arrays[f"image.{name}"][...] = image
        self.arrays["state"][...] = observation.state
        self.arrays["numbers"][0] = observation.stamp_ns
        self.write_text("instruction", observation.instruction)

    def read_observation(self, contract: PolicyContract) -> Observation:
        images = {c.name: self.arrays[f"image.{c.name}"] for c in contract.cameras}
        return Observation(images, self.arrays["state"], self.text("instruction"), int(self.arrays["numbers"][0]))

    def write_chunk(self, chunk: ActionChunk, predict_ns: int) -> None:
        self.arrays["actions"][...] = chunk.actions
        self.arrays["numbers"][1:3] = chunk.stamp_ns, predict_ns

    def read_chunk(self, contract: PolicyContract) -> tuple[float, ActionChunk]:
        """Inference time [s] and a chunk of its own memory."""
        stamp_ns, predict_ns = (int(number) for number in self.arrays["numbers"][1:3])
        return predict_ns / 1e9, ActionChunk(self.arrays["actions"].copy(), stamp_ns, 1.0 / contract.action.rate_hz)

    def write_seed(self, seed: int) -> None:
        self.arrays["numbers"][3] = seed

    def read_seed(self) -> int:
        return int(self.arrays["numbers"][3])

    def write_text(self, name: str, text: str) -> None:
        """Zero-padded. Raises `ContractError` when it does not fit."""
        raw = text.encode()
        if len(raw) > TEXT_BYTES:
            raise ContractError(f"the {name} has {len(raw)} bytes, at most {TEXT_BYTES} are passed to the policy")
        self.arrays[name][...] = np.frombuffer(raw.ljust(TEXT_BYTES, b"\0"), np.uint8)

    def text(self, name: str) -> str:
        return self.arrays[name].tobytes().rstrip(b"\0").decode(errors="replace")

    def close(self) -> None:
        self.arrays = {}  # views keep the map open
        if not self._map.closed:
            self._map.close()
            self.file.close()


def _anonymous_file(size: int) -> IO[bytes]:
    """A file of `size` bytes without a name, in memory where the system offers it."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("volar-policy"), "r+b", buffering=0)
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115, `close` closes it
    file.truncate(size)
    return file
