"""Servers of policies for tests: volar-serve in a process, and servers that do what none should."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as listen

from volar.robots.array_msgpack import pack
from volar.robots.contract import PolicyContract
from volar.robots.interface import ActionChunk, Observation
from volar.robots.remote_policy import RemotePolicy

PATIENCE_S = 60.0  # for what comes at once on an idle machine


@dataclass(frozen=True)
class Served:
    """A running volar-serve."""

    process: "subprocess.Popen[str]"
    port: int

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def start_server(folder: Path, port: int = 0) -> Served:
    command = [sys.executable, "-m", "volar.robots.serve", f"policy={folder}", f"port={port}", "host=127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()  # ends with the process
    found = re.search(r"on ws://127\.0\.0\.1:(\d+)", line)
    assert found is not None, f"volar-serve said {line!r}"
    return Served(process, int(found[1]))


def freeze(pid: int) -> None:
    """Stops a process, and waits until each of its threads stands still: `os.kill` returns before."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that just ended
            if all(path.read_text().rpartition(") ")[2][0] == "T" for path in Path(f"/proc/{pid}/task").glob("*/stat")):
                return
        time.sleep(0.01)
    raise TimeoutError(f"process {pid} goes on")


def until(remote: RemotePolicy, done: Callable[[], bool]) -> ActionChunk | None:
    """Polls until `done`; returns the chunk that came. What hangs ends after a minute."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        chunk = remote.poll(0)
        if chunk is not None or done():
            return chunk
        time.sleep(0.001)  # leaves the core to the others; no result depends on it
    raise AssertionError(f"nothing came: {remote.state}, {remote.error}")


def answer(remote: RemotePolicy, observation: Observation) -> ActionChunk:
    remote.submit(observation)
    chunk = until(remote, lambda: not remote.pending)
    assert chunk is not None, remote.error
    return chunk


@contextlib.contextmanager
def peer(talk: Callable[[ServerConnection, int], None], port: int = 0) -> Iterator[str]:
    """A server that does what no server should: `talk(connection, number)` has the connections, numbered from 0."""
    count = iter(range(1_000_000))

    def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            talk(connection, next(count))

    with listen(handle, "127.0.0.1", port, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def actions(contract: PolicyContract, value: float) -> bytes:
    return pack({"actions": np.full((contract.chunk_length, contract.action.size), value, np.float32)})


def hear(connection: ServerConnection) -> bytes:
    frame = connection.recv(timeout=PATIENCE_S)
    assert isinstance(frame, bytes)
    return frame


def wait_for_the_end(connection: ServerConnection) -> None:
    """Says nothing until the client leaves."""
    for _ in connection:
        pass
