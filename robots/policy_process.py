"""The policy in a process of its own, so that inference cannot disturb the control loop.

Arrays travel through shared memory of a fixed layout derived from the contract, one observation and one
chunk at a time; a socket pair carries single bytes that say whose turn it is. Nothing is pickled. The
memory is an anonymous file and the socket closes with its process, so that whichever side dies, the other
notices and nothing is left behind.
"""

import argparse
import contextlib
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from volar.robots.contract import ContractError, PolicyContract
from volar.robots.errors import VolarError
from volar.robots.exported_policy import CONTRACT, ArtifactError, ExportedPolicy, Manifest, check_observation
from volar.robots.interface import ActionChunk, Observation

TEXT_BYTES: Final = 1024  # longest instruction or reason, UTF-8
ALIGNMENT: Final = 64  # [bytes], a cache line

# Bytes on the socket. From the parent: an observation is in memory. From the child: the policy is loaded,
# a chunk is in memory, predicting failed, loading failed (for the last two a reason is in memory).
OBSERVATION, READY, CHUNK, FAILED, BROKEN = b"o", b"r", b"c", b"f", b"b"

State = Literal["starting", "ready", "busy", "failed", "closed"]


class PolicyProcessError(VolarError):
    """The policy's process could not be started; carries its one-line reason."""


@dataclass(frozen=True)
class PolicyStatus:
    """`restarts`: after crashes so far; `error`: the latest reason; `predict_s`: the latest inference."""

    state: State
    pid: int | None
    restarts: int
    error: str | None
    predict_s: float | None


class PolicyProcess:
    """`ChunkSource` that runs an `ExportedPolicy` in a child process; a context manager.

    `niceness`: added to the child's, so that the control loop goes first. A child that dies is replaced,
    `max_restarts` times altogether; meanwhile, and for good after that, `pending` is true and the control
    loop holds. Raises `PolicyProcessError` when the policy does not load within `start_timeout_s`.
    """

    def __init__(
        self,
        artifact: Path,
        *,
        threads: int = 1,
        niceness: int = 5,
        max_restarts: int = 3,
        start_timeout_s: float = 60.0,
        verify: bool = True,
    ) -> None:
        Manifest.load(artifact)  # a folder that is no artifact is named at once, without a process
        self.contract = PolicyContract.load(artifact / CONTRACT)
        self._arguments = [str(artifact.resolve()), f"--threads={threads}", f"--niceness={niceness}"]
        self._verify, self._max_restarts = verify, max_restarts
        self._memory = _SharedMemory(self.contract)
        self._child: _Child | None = None
        self._restarter: threading.Thread | None = None
        self._state: State = "starting"
        self._restarts, self._error = 0, None  # type: int, str | None
        self._predict_s: float | None = None
        self._discard = False
        try:
            self._child = self._spawn(verify)
            self._wait_ready(start_timeout_s)
        except BaseException:
            self.close()
            raise

    def submit(self, observation: Observation) -> None:
        """Hands the observation over and returns. Raises `ContractError` when it does not fit."""
        check_observation(self.contract, observation)
        if self._state != "ready" or self._child is None:
            raise PolicyProcessError(f"the policy process is {self._state}, not ready for an observation")
        self._memory.write_observation(observation)
        self._discard = False
        try:
            self._child.socket.send(OBSERVATION)
        except OSError:  # it has just died; `poll` finds out and replaces it
            return
        self._state = "busy"

    def poll(self, now_ns: int) -> ActionChunk | None:
        """The chunk that has arrived, once; never blocks."""
        signal_byte = self._receive()
        if signal_byte == READY:
            self._state = "ready"
        elif signal_byte in (FAILED, CHUNK):
            self._state = "ready"
            if self._discard:
                return None
            if signal_byte == CHUNK:
                self._predict_s, chunk = self._memory.read_chunk(self.contract)
                return chunk
            self._error = self._memory.text("reason")
        elif signal_byte == BROKEN:
            self._state, self._error = "failed", self._memory.text("reason")
        return None

    def reset(self, seed: int = 0) -> None:
        """Drops the chunk still awaited; the policy keeps no other state."""
        self._discard = True

    @property
    def pending(self) -> bool:
        """True while the process cannot take an observation: predicting, starting, or failed for good."""
        return self._state != "ready"

    @property
    def status(self) -> PolicyStatus:
        child = self._child
        return PolicyStatus(
            self._state, None if child is None else child.process.pid, self._restarts, self._error, self._predict_s
        )

    def close(self) -> None:
        """Ends the process and frees the memory; may be called twice."""
        self._state = "closed"
        if self._restarter is not None:
            self._restarter.join()
        if self._child is not None:
            self._child.end()
            self._child = None
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _spawn(self, verify: bool) -> "_Child":
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "volar.robots.policy_process", *self._arguments]
        command += [f"--socket={theirs.fileno()}", f"--memory={self._memory.file.fileno()}"]
        command += [] if verify else ["--no-verify"]
        try:
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno(), self._memory.file.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return _Child(process, ours)

    def _wait_ready(self, timeout_s: float) -> None:
        assert self._child is not None
        deadline = time.monotonic() + timeout_s
        while self._state == "starting" and self._restarts == 0 and time.monotonic() < deadline:
            select.select([self._child.socket], [], [], max(0.0, deadline - time.monotonic()))
            self.poll(0)
        if self._state != "ready":
            raise PolicyProcessError(self._error or f"the policy did not load within {timeout_s} s")

    def _receive(self) -> bytes:
        """One byte from the child; b"" when there is none. Notices that the child has died."""
        child = self._child
        if child is None:
            return b""
        try:
            received = child.socket.recv(1)
        except BlockingIOError:
            return b""
        except ConnectionResetError:
            received = b""
        if not received:
            self._crashed(child)
        return received

    def _crashed(self, child: "_Child") -> None:
        self._child = None
        if self._state in ("failed", "closed"):
            child.end()
            return
        starting = self._state == "starting" and self._restarts == 0
        self._error = f"the policy process {child.process.pid} {'did not start' if starting else 'died'}"
        if starting or self._restarts >= self._max_restarts:
            self._state = "failed"
            child.end()
            return
        self._state, self._restarts = "starting", self._restarts + 1
        # In a thread: waiting for the old process and starting the new one take milliseconds.
        self._restarter = threading.Thread(target=self._replace, args=(child,), daemon=True)
        self._restarter.start()

    def _replace(self, child: "_Child") -> None:
        child.end()
        try:
            self._child = self._spawn(verify=False)  # the golden set passed when it first started
        except OSError as error:
            self._state, self._error = "failed", f"the policy process cannot be started again: {error}"


@dataclass(frozen=True)
class _Child:
    process: "subprocess.Popen[bytes]"
    socket: socket.socket

    def end(self) -> None:
        """The child leaves when its socket closes; one that does not is killed."""
        self.socket.close()
        try:
            self.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _SharedMemory:
    """Arrays of one contract in an anonymous file mapped by both processes.

    `image.<camera>` uint8 (H, W, 3), `state` float32 (S,), `actions` float32 (H, A); `instruction` and
    `reason` UTF-8; `numbers` int64: stamp of the observation, of the chunk, inference time [ns].
    """

    def __init__(self, contract: PolicyContract, descriptor: int | None = None) -> None:
        layout: dict[str, tuple[tuple[int, ...], Any]] = {
            f"image.{c.name}": ((c.height, c.width, 3), np.uint8) for c in contract.cameras
        }
        layout["state"] = (len(contract.state_names),), np.float32
        layout["actions"] = (contract.chunk_length, contract.action.size), np.float32
        layout["numbers"] = (3,), np.int64
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
        self.arrays["numbers"][1:] = chunk.stamp_ns, predict_ns

    def read_chunk(self, contract: PolicyContract) -> tuple[float, ActionChunk]:
        """Inference time [s] and a chunk of its own memory."""
        _, stamp_ns, predict_ns = (int(number) for number in self.arrays["numbers"])
        return predict_ns / 1e9, ActionChunk(self.arrays["actions"].copy(), stamp_ns, 1.0 / contract.action.rate_hz)

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
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115, `_SharedMemory.close` closes it
    file.truncate(size)
    return file


def _serve(policy: ExportedPolicy, memory: _SharedMemory, connection: socket.socket) -> None:
    """Answers observations until the parent is gone."""
    connection.send(READY)
    while connection.recv(1) == OBSERVATION:
        try:
            started_ns = time.perf_counter_ns()
            chunk = policy.predict(memory.read_observation(policy.contract))
            memory.write_chunk(chunk, time.perf_counter_ns() - started_ns)
            answer = CHUNK
        except (VolarError, ValueError) as error:
            memory.write_text("reason", _one_line(error))
            answer = FAILED
        connection.send(answer)


def _one_line(error: BaseException) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason.encode()[:TEXT_BYTES].decode(errors="ignore")


def main(arguments: list[str] | None = None) -> int:
    """The child: loads the artifact, says so, and predicts when asked."""
    parser = argparse.ArgumentParser(prog="python -m volar.robots.policy_process")
    parser.add_argument("artifact", type=Path)
    for name in ("threads", "niceness", "socket", "memory"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--no-verify", action="store_true")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it closes the socket
    os.nice(options.niceness)
    connection = socket.socket(fileno=options.socket)
    memory = _SharedMemory(PolicyContract.load(options.artifact / CONTRACT), options.memory)
    try:
        policy = ExportedPolicy(options.artifact, verify=not options.no_verify, threads=options.threads)
    except (ArtifactError, ImportError) as error:
        memory.write_text("reason", _one_line(error))
        connection.send(BROKEN)
        return 1
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent left while we were predicting
        _serve(policy, memory, connection)
    return 0


if __name__ == "__main__":
    sys.exit(main())
