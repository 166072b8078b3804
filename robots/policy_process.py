"""The policy in a process of its own, so that inference cannot disturb the control loop.

Arrays travel through shared memory of a fixed layout derived from the contract, one observation and one
chunk at a time; a socket pair carries single bytes that say whose turn it is. Nothing is pickled. The
memory is an anonymous file and the socket closes with its process, so that whichever side dies, the other
notices and nothing is left behind.
"""

import argparse
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from volar.robots.errors import VolarError
from volar.robots.exported_policy import check_observation
from volar.robots.interface import ActionChunk, Observation, Policy
from volar.robots.policies import find_policy, load_policy, policy_sha256, read_contract
from volar.robots.policy_memory import TEXT_BYTES, SharedMemory

# Bytes on the socket. From the parent: an observation, or a seed to reset the policy with, is in memory. From the
# child: the policy is loaded, a chunk is in memory, predicting or loading failed (for these two a reason is in memory),
# it is not the policy that the parent knows.
OBSERVATION, RESET = b"o", b"s"
READY, CHUNK, FAILED, BROKEN, CHANGED = b"r", b"c", b"f", b"b", b"x"

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
    """`ChunkSource` that runs any policy of `load_policy` in a child process; a context manager.

    `policy`: as `find_policy` takes it. `niceness`: added to the child's, so that the control loop goes first. A child
    that dies is replaced, `max_restarts` times altogether; meanwhile, and for good after that, `pending` is true and
    the control loop holds. A policy that was replaced in its folder meanwhile is not run: `failure` says so.
    Raises `PolicyProcessError` when the policy does not load within `start_timeout_s`.
    """

    def __init__(
        self,
        policy: Path,
        *,
        threads: int = 1,
        niceness: int = 5,
        max_restarts: int = 3,
        start_timeout_s: float = 60.0,
        verify: bool = True,
    ) -> None:
        folder = find_policy(policy)  # a folder that is no policy is named at once, without a process
        self.contract = read_contract(folder)
        self._folder = folder.resolve()  # a link such as checkpoints/last may lead elsewhere later
        self._arguments = [str(self._folder), f"--threads={threads}", f"--niceness={niceness}"]
        self._arguments += [f"--sha256={policy_sha256(self._folder, self.contract)}"]
        self._verify, self._max_restarts = verify, max_restarts
        self._memory = SharedMemory(self.contract)
        self._child: _Child | None = None
        self._ender: threading.Thread | None = None
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
        elif signal_byte == CHANGED:
            reason = f"{self._folder} no longer holds the policy that was started; start again to run what it holds"
            self._state, self._error = "failed", reason
        return None

    def reset(self, seed: int = 0) -> None:
        """Drops the chunk still awaited and resets the policy with the seed, before it sees another observation."""
        self._discard = True
        if self._child is not None:
            self._memory.write_seed(seed)
            with contextlib.suppress(OSError):  # it has just died; `poll` finds out and replaces it
                self._child.socket.send(RESET)

    @property
    def pending(self) -> bool:
        """True while the process cannot take an observation: predicting, starting, or failed for good."""
        return self._state != "ready"

    @property
    def failure(self) -> str | None:
        """Why no chunk will come any more: it failed for good or was closed; None while one may."""
        return (self._error or "the policy process is closed") if self._state in ("failed", "closed") else None

    @property
    def error(self) -> str | None:
        """The latest reason why there was no chunk: predicting failed, or the process died."""
        return self._error

    @property
    def restarts(self) -> int:
        """After crashes, so far."""
        return self._restarts

    @property
    def predict_s(self) -> float | None:
        """The latest inference [s]."""
        return self._predict_s

    @property
    def status(self) -> PolicyStatus:
        child = self._child
        return PolicyStatus(
            self._state, None if child is None else child.process.pid, self._restarts, self._error, self._predict_s
        )

    def close(self) -> None:
        """Ends the process and frees the memory; may be called twice."""
        self._state = "closed"
        if self._ender is not None:
            self._ender.join()
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
        replace = False
        if self._state not in ("failed", "closed"):
            starting = self._state == "starting" and self._restarts == 0
            self._error = f"the policy process {child.process.pid} {'did not start' if starting else 'died'}"
            replace = not starting and self._restarts < self._max_restarts
            self._state, self._restarts = ("starting" if replace else "failed"), self._restarts + replace
        # In a thread, since the control loop polls: a process that does not leave is waited for for seconds.
        self._ender = threading.Thread(target=self._end, args=(child, replace), daemon=True)
        self._ender.start()

    def _end(self, child: "_Child", replace: bool) -> None:
        child.end()
        if not replace:
            return
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


def _serve(policy: Policy, memory: SharedMemory, connection: socket.socket) -> None:
    """Answers observations until the parent is gone."""
    connection.send(READY)
    while request := connection.recv(1):
        if request == RESET:
            policy.reset(memory.read_seed())
            continue
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


def _known(options: argparse.Namespace) -> bool:
    """True while the folder holds the policy that the parent has seen."""
    try:
        return bool(policy_sha256(options.policy, read_contract(options.policy)) == options.sha256)
    except (VolarError, OSError):
        return False


def _load(options: argparse.Namespace, connection: socket.socket) -> tuple[Policy, SharedMemory] | None:
    """The policy and its memory; None, and the parent has been told why, where it is broken or another one."""
    if not _known(options):  # nor would the memory be laid out for it
        connection.send(CHANGED)
        return None
    memory = SharedMemory(read_contract(options.policy), options.memory)
    try:
        policy = load_policy(options.policy, verify=not options.no_verify, threads=options.threads)
    except (VolarError, ImportError) as error:
        memory.write_text("reason", _one_line(error))
        connection.send(BROKEN)
        return None
    if not _known(options):  # files may be replaced while they are read
        connection.send(CHANGED)
        return None
    return policy, memory


def main(arguments: list[str] | None = None) -> int:
    """The child: loads the policy, says so, and predicts when asked."""
    parser = argparse.ArgumentParser(prog="python -m volar.robots.policy_process")
    parser.add_argument("policy", type=Path)
    for name in ("threads", "niceness", "socket", "memory"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--sha256", required=True)
    parser.add_argument("--no-verify", action="store_true")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it closes the socket
    os.nice(options.niceness)
    connection = socket.socket(fileno=options.socket)
    loaded = _load(options, connection)
    if loaded is None:
        return 1
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent left while we were predicting
        _serve(*loaded, connection)
    return 0


if __name__ == "__main__":
    sys.exit(main())
