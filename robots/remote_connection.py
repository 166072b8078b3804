"""The thread behind `RemotePolicy`: makes connections to a policy server, one after the other, and talks over each."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from volar.robots import openpi_messages
from volar.robots.array_msgpack import MAX_FRAME_BYTES, ArrayMessageError, pack, unpack
from volar.robots.contract import ContractError, PolicyContract, differences
from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.interface import Observation
from volar.robots.openpi_messages import SEED, STAMP, Keys

SCHEMES: Final = ("ws://", "wss://")
OPEN_TIMEOUT_S: Final = 3.0  # for a connection, and again for the metadata
CLOSE_TIMEOUT_S: Final = 0.2  # a peer that does not answer anything does not answer a farewell either
BACKOFF_S: Final = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)  # before each attempt to connect; the last one for all further
IDLE_S: Final = 0.2  # how soon a connection that closes while nothing is asked is noticed


class RemotePolicyError(VolarError):
    """No policy can be had from that address; carries its one-line reason."""


class Address(NamedTuple):
    """What a URL says. `url`: without the settings. `contract`: a file with the contract of a foreign server."""

    url: str
    contract: Path | None
    timeout_s: float

    @staticmethod
    def parse(text: str, timeout_s: float = 5.0) -> "Address":
        """Reads `ws://HOST:PORT[/PATH][?contract=FILE&timeout_s=10]`. Raises `UsageError` naming what is wrong."""
        parts = urlsplit(text)
        try:
            port = parts.port
        except ValueError as error:
            raise UsageError(f"policy={text}: {error}") from error
        if f"{parts.scheme}://" not in SCHEMES or not parts.hostname or port == 0:
            raise UsageError(f"policy={text} is no address of a policy server; write ws://HOST:8000")
        settings = dict(parse_qsl(parts.query, keep_blank_values=True))
        for name in settings:
            if name not in ("contract", "timeout_s"):
                raise Unknown("setting of a policy server's address", name, ("contract", "timeout_s"))
        if "timeout_s" in settings:
            try:
                timeout_s = float(settings["timeout_s"])
            except ValueError:
                raise UsageError(f"policy={text}: timeout_s is a number of seconds") from None
        if not 0 < timeout_s < 3600:
            raise UsageError(f"policy={text}: timeout_s={timeout_s:g} must be between 0 and 3600 s")
        file = settings.get("contract")
        url = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
        return Address(url, None if file is None else Path(file), timeout_s)


class Request(NamedTuple):
    """`link`: the number of the connection it is meant for. `seed`: of a reset before it."""

    link: int
    observation: Observation
    seed: int | None


class Event(NamedTuple):
    """What the thread tells: connected (the number of the connection), chunk (and its inference time [s]), refused,
    lost or failed (the reason)."""

    kind: Literal["connected", "chunk", "refused", "lost", "failed"]
    value: Any


class PolicyLine:
    """Turns requests into events, over one connection at a time, until `end`; `run` belongs to the thread.

    `contract`: what every server's must be; where None, the first server's. Raises as `Keys.of`.
    """

    def __init__(
        self,
        address: Address,
        contract: PolicyContract | None,
        requests: "SimpleQueue[Request | None]",
        events: SimpleQueue[Event],
    ) -> None:
        self.contract = contract
        self._keys = None if contract is None else Keys.of(contract)
        self._address, self._requests, self._events = address, requests, events
        self._ended = threading.Event()
        self._connection: Any = None
        self._is_volar = False
        self._link = 0

    def end(self) -> None:
        """Called from outside: `run` returns soon."""
        self._ended.set()
        if (connection := self._connection) is not None:
            with contextlib.suppress(OSError):  # whatever it waits for, it waits no longer
                connection.socket.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        try:
            while (connection := self._connect()) is not None:
                self._link += 1
                self._tell("connected", self._link)
                self._converse(connection)
                connection.close()
        except ContractError as error:  # the same server would say the same again
            self._tell("failed", str(error))
        except Exception as error:  # a defect here; the loop must hear of it, since nothing else will come
            self._tell("failed", f"{type(error).__name__}: {error}")

    def _connect(self) -> Any:
        """A connection whose server has the contract; None when ended first."""
        for wait_s in _backoff():
            if self._ended.wait(wait_s):
                return None
            connection = None
            try:
                self._connection = connection = _open(self._address)
                self._agree(_binary(connection.recv(timeout=OPEN_TIMEOUT_S)))
                return connection
            except _lost() as error:
                if connection is not None:
                    connection.close()
                if isinstance(error, ContractError):
                    raise
                self._tell("lost", _one_line(error))
        return None

    def _agree(self, metadata: bytes) -> None:
        """Raises `ContractError` when the server has another contract than wanted, or says none and none was given."""
        said = openpi_messages.read_metadata(unpack(metadata))
        if said is None and self._address.contract is None:
            raise ContractError(
                "the server says no contract (it is no volar-serve); write what its policy wants and gives to a file, "
                f"then policy={self._address.url}?contract=FILE.json"
            )
        if said is not None and self.contract is not None and (found := differences(self.contract, said)):
            raise ContractError("the server has another contract; " + "; ".join(map(str, found)))
        self.contract = self.contract or said
        assert self.contract is not None
        self._keys, self._is_volar = self._keys or Keys.of(self.contract), said is not None

    def _converse(self, connection: Any) -> None:
        """Answers requests until the connection is lost, or ended."""
        while not self._ended.is_set():
            try:
                request = self._next()
                _require_silence(connection)
                if request is not None:
                    self._exchange(connection, request)
            except _lost() as error:
                self._tell("lost", _one_line(error))
                return

    def _next(self) -> Request | None:
        """The next request for this connection, if one comes soon. Others were given up with theirs."""
        try:
            request = self._requests.get(timeout=IDLE_S)
        except Empty:
            return None
        return request if request is not None and request.link == self._link else None

    def _exchange(self, connection: Any, request: Request) -> None:
        """One request, one reply. Raises when the reply does not come in time: this connection is not read again."""
        message = self._message(request)
        start_s = time.monotonic()
        connection.send(message)
        try:
            answer = connection.recv(timeout=self._address.timeout_s)
        except TimeoutError:
            raise RemotePolicyError(f"no reply within {self._address.timeout_s:g} s") from None
        self._hear(answer, request.observation.stamp_ns, time.monotonic() - start_s)

    def _message(self, request: Request) -> bytes:
        assert self.contract is not None and self._keys is not None  # noqa: PT018
        observation, prompt = request.observation, request.observation.instruction
        if not self._is_volar:  # our server's policy does that itself
            prompt = self.contract.instruction_template.format(instruction=prompt)
        message = openpi_messages.request(self._keys, observation, prompt)
        if self._is_volar:  # a foreign one might stumble over keys it does not know
            message |= {STAMP: observation.stamp_ns} | ({} if request.seed is None else {SEED: request.seed})
        return pack(message)

    def _hear(self, answer: bytes | str, stamp_ns: int, round_trip_s: float) -> None:
        assert self.contract is not None
        if isinstance(answer, str):  # a reason, or a traceback whose last line is one
            lines = [line for line in answer.splitlines() if line.strip()]
            self._tell("refused", f"the server refused: {lines[-1].strip() if lines else 'no reason given'}")
            return
        try:
            chunk, infer_s = openpi_messages.read_reply(self.contract, unpack(answer), stamp_ns)
        except VolarError as error:
            self._tell("refused", str(error))
            return
        self._tell("chunk", (chunk, round_trip_s if infer_s is None else infer_s))

    def _tell(self, kind: Any, value: Any) -> None:
        self._events.put(Event(kind, value))


def _open(address: Address) -> Any:
    """A connection, to be closed by the caller."""
    from websockets.sync.client import connect

    with contextlib.ExitStack() as stack:
        connecting = connect(
            address.url,
            compression=None,  # images hardly shrink and the arm waits
            max_size=MAX_FRAME_BYTES,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=None,  # a server may be deaf while it infers; each request has its own timeout
            proxy=None,
        )
        connection = stack.enter_context(connecting)
        # A peer that stops reading would block `send` for good; the operating system ends it instead.
        limit = struct.pack("@ll", int(address.timeout_s), int(address.timeout_s % 1 * 1e6))
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        stack.pop_all()  # the caller closes it
    return connection


def _require_silence(connection: Any) -> None:
    """Raises when the connection is closed, or something has come that nobody asked for."""
    try:
        connection.recv(timeout=0)
    except TimeoutError:
        return
    raise RemotePolicyError("the server sent a frame that nobody asked for")


def _binary(frame: bytes | str) -> bytes:
    if isinstance(frame, str):
        raise ArrayMessageError(f"an openpi server's first frame is binary, this one text: {frame!r:.60}")
    return frame


def _backoff() -> Iterator[float]:
    yield from BACKOFF_S
    while True:
        yield BACKOFF_S[-1]


def _lost() -> tuple[type[Exception], ...]:
    """What ends a connection: the network, the peer, or what it said."""
    from websockets.exceptions import WebSocketException

    return (OSError, EOFError, VolarError, WebSocketException)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
