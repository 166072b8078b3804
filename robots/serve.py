"""volar-serve: a policy behind a websocket, for arms whose computer cannot run it.

Speaks openpi's protocol: an openpi client gets `actions` [H, A] for its observations, and a volar controller takes
policy=ws://HOST:8000. GET /healthz answers 200 while it runs; Ctrl-C or SIGTERM ends it. There is no password: whoever
reaches the port may ask the policy.
"""

import errno
import logging
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volar.robots.command_line import run
from volar.robots.errors import UsageError, VolarError

if TYPE_CHECKING:
    from volar.robots.interface import Policy

HEALTH = "/healthz"
EXAMPLES = (
    "volar-serve policy=runs/artifact",
    "volar-serve policy=runs/policy port=8001 threads=4",
    'volar-control policy=ws://gpu-box:8000 robot=sim/fr3 instruction="lift the red block"   (elsewhere)',
)


@dataclass(frozen=True)
class ServeConfig:
    """Settings of `volar-serve`."""

    policy: Path = field(metadata={"help": "exported artifact, policy directory, training output, or lerobot:DIR"})
    port: int = field(default=8000, metadata={"help": "TCP port; 0 takes any that is free and prints it"})
    host: str = field(default="0.0.0.0", metadata={"help": "address to listen on; 127.0.0.1 for this machine only"})
    threads: int | None = field(default=None, metadata={"help": "threads of inference; by default the policy's own"})

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise UsageError(f"port={self.port} must be from 0 to 65535")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads={self.threads} must be at least 1")


class PolicyServer:
    """Serves one policy to any number of clients, one inference at a time.

    A policy that remembers what it saw is meant for one client. `port=0` takes a free one, `port` then says which.
    Raises `VolarError` when the port is taken or the address is not this machine's.
    """

    def __init__(self, policy: "Policy", host: str, port: int) -> None:
        from websockets.sync.server import serve

        from volar.robots import openpi_messages
        from volar.robots.array_msgpack import MAX_FRAME_BYTES, pack

        self._policy, self._turn = policy, threading.Lock()
        self._keys = openpi_messages.Keys.of(policy.contract)
        self._metadata = pack(openpi_messages.metadata(policy.contract))
        try:
            self._server = serve(
                self._talk,
                host,
                port,
                compression=None,  # images hardly shrink and the arm waits
                max_size=MAX_FRAME_BYTES,
                process_request=_health,
                logger=_silent_logger(),
            )
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            fix = "another server runs there; give another port=" if taken else "give another host= or port="
            raise VolarError(f"cannot listen on {host}:{port}: {error.strerror or error}; {fix}") from error
        self.port = int(self._server.socket.getsockname()[1])

    def serve_forever(self) -> None:
        """Until `shutdown` is called in another thread; then closes the connections and waits for the inference under
        way."""
        try:
            self._server.serve_forever()
        finally:
            self._server.shutdown()

    def shutdown(self) -> None:
        """Ends `serve_forever`, and returns when it has; may be called twice."""
        self._server.shutdown()

    def _talk(self, connection: Any) -> None:
        """One client, in a thread of its own, until it leaves."""
        from websockets.exceptions import ConnectionClosed

        client = "{}:{}".format(*connection.remote_address[:2])
        print(f"{client} connected", flush=True)
        previous_s: float | None = None
        try:
            connection.send(self._metadata)
            for message in connection:
                start_s = time.monotonic()
                connection.send(self._reply(message, previous_s))  # bytes: a binary frame; str: a text frame
                previous_s = time.monotonic() - start_s
        except ConnectionClosed:
            pass
        print(f"{client} left", flush=True)

    def _reply(self, message: bytes | str, previous_s: float | None) -> bytes | str:
        """The packed answer, or one line that says why there is none."""
        try:
            return self._answer(message, previous_s)
        except (VolarError, ValueError) as error:
            return " ".join(str(error).split()) or type(error).__name__
        except Exception as error:  # the policy's own code: whatever it raises, the next request may do better
            traceback.print_exc()
            return f"the policy failed: {type(error).__name__}: {' '.join(str(error).split())}"

    def _answer(self, message: bytes | str, previous_s: float | None) -> bytes:
        from volar.robots import openpi_messages
        from volar.robots.array_msgpack import ArrayMessageError, pack, unpack

        if isinstance(message, str):
            raise ArrayMessageError("a request is a binary frame of msgpack, this was text")
        contract = self._policy.contract
        observation, seed = openpi_messages.read_request(contract, self._keys, unpack(message), time.monotonic_ns())
        with self._turn:
            start_s = time.monotonic()
            if seed is not None:
                self._policy.reset(seed)
            chunk = self._policy.predict(observation)
            infer_s = time.monotonic() - start_s
        return pack(openpi_messages.reply(chunk, infer_s, previous_s))


def _health(connection: Any, request: Any) -> Any:
    """The answer to a request that is no websocket's; None for the others."""
    return connection.respond(200, "OK\n") if request.path == HEALTH else None


def _silent_logger() -> logging.Logger:
    """A port scanner or a probe that hangs up is no error of ours, and websockets would print its traceback."""
    logger = logging.getLogger("volar.robots.serve.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger


def serve_policy(config: ServeConfig) -> None:
    """Loads the policy and serves it until SIGINT or SIGTERM. Raises what `load_policy` and `PolicyServer` raise."""
    from volar.robots.policies import load_policy

    policy = load_policy(config.policy, threads=config.threads)
    server = PolicyServer(policy, config.host, config.port)

    def end(number: int, frame: object) -> None:
        # In a thread: it waits for `serve_forever`, which this has interrupted.
        threading.Thread(target=server.shutdown).start()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    print(
        f"serving {config.policy} (contract {policy.contract.sha256[:12]}) on ws://{config.host}:{server.port}; "
        "Ctrl-C ends it",
        flush=True,
    )
    try:
        server.serve_forever()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _main(config: ServeConfig) -> None:
    serve_policy(config)


def main() -> int:
    return run("volar-serve", ServeConfig, _main, doc=__doc__, examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
