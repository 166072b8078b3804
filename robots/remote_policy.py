"""A policy on another machine, over openpi's websocket protocol: `volar-serve`, or any openpi server.

    RemotePolicy("ws://gpu-box:8000")
    RemotePolicy("ws://gpu-box:8000?contract=pi0_fr3.json&timeout_s=10")   # a server that says no contract

Packing, sending, waiting and unpacking happen in a thread; `submit` copies the observation, `poll` looks whether
something has come. openpi's frames carry no number, so a reply is known by its connection alone: one request is under
way at a time, and a connection whose reply is overdue is never read again but replaced.
"""

import threading
import time
from dataclasses import replace
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Literal, Self

from volar.robots.contract import ContractError, PolicyContract
from volar.robots.exported_policy import check_observation
from volar.robots.interface import ActionChunk, Observation
from volar.robots.remote_connection import Address, Event, PolicyLine, RemotePolicyError, Request

State = Literal["connecting", "ready", "busy", "failed", "closed"]


class RemotePolicy:
    """`PolicySource` over a websocket; a context manager.

    `address`: as `Address.parse` takes it. A request without a reply after its `timeout_s` is given up and the
    connection replaced; a lost connection is tried again for as long as it takes, `pending` being true meanwhile, and
    only a server that comes back with another contract is a `failure`. Raises `RemotePolicyError` when nothing answers
    within `start_timeout_s`, `ContractError` when the server's contract is unknown or not the one given.
    """

    def __init__(self, address: str, *, start_timeout_s: float = 10.0) -> None:
        self.address = Address.parse(address)
        given = None if self.address.contract is None else PolicyContract.load(self.address.contract)
        self._requests: SimpleQueue[Request | None] = SimpleQueue()
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._line = PolicyLine(self.address, given, self._requests, self._events)
        self._state: State = "connecting"
        self._link, self._discard = 0, False
        self._seed: int | None = None
        self._error: str | None = None
        self._predict_s: float | None = None
        self._thread = threading.Thread(target=self._line.run, name="remote policy", daemon=True)
        self._thread.start()
        try:
            self.contract = self._wait_ready(start_timeout_s)
        except BaseException:
            self.close()
            raise

    def submit(self, observation: Observation) -> None:
        """Copies the observation and returns. Raises `ContractError` when it does not fit."""
        check_observation(self.contract, observation)
        if self._state != "ready":
            raise RemotePolicyError(f"the policy at {self.address.url} is {self._state}, not ready for an observation")
        images = {name: image.copy() for name, image in observation.images.items()}
        copied = replace(observation, images=images, state=observation.state.copy())
        self._requests.put(Request(self._link, copied, self._seed))
        self._state, self._discard = "busy", False

    def poll(self, now_ns: int) -> ActionChunk | None:
        """The chunk that has arrived, once; never blocks."""
        while self._state not in ("failed", "closed"):
            try:
                event = self._events.get_nowait()
            except Empty:
                break
            if (chunk := self._take(event)) is not None:
                return chunk
        return None

    def reset(self, seed: int = 0) -> None:
        """Drops the chunk still awaited; a volar server resets its policy with the seed before the next observation."""
        self._discard, self._seed = True, seed

    @property
    def pending(self) -> bool:
        """True while no observation can be taken: one is under way, the connection is being made, or it failed."""
        return self._state != "ready"

    @property
    def failure(self) -> str | None:
        """Why no chunk will come any more: another contract, or closed; None while one may."""
        return (self._error or "the remote policy is closed") if self._state in ("failed", "closed") else None

    @property
    def restarts(self) -> int:
        """Connections after the first, so far."""
        return max(0, self._link - 1)

    @property
    def predict_s(self) -> float | None:
        """The latest inference [s], as the server says; the round trip where it says nothing."""
        return self._predict_s

    @property
    def state(self) -> State:
        return self._state

    @property
    def error(self) -> str | None:
        """The latest reason why there was no chunk, or no connection."""
        return self._error

    def close(self) -> None:
        """Ends thread and connection; may be called twice. Takes up to `OPEN_TIMEOUT_S` while one is being made."""
        self._state = "closed"
        self._line.end()
        self._requests.put(None)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, event: Event) -> ActionChunk | None:
        if event.kind == "chunk":
            self._state = "ready"
            chunk, predict_s = event.value
            if not self._discard:
                self._predict_s, self._seed = predict_s, None
                return chunk  # type: ignore[no-any-return]
        elif event.kind == "connected":
            self._state, self._link = "ready", event.value
        else:
            self._state = {"refused": "ready", "lost": "connecting", "failed": "failed"}[event.kind]  # type: ignore[assignment]
            self._error = event.value
        return None

    def _wait_ready(self, timeout_s: float) -> PolicyContract:
        deadline_s = time.monotonic() + timeout_s
        while self._state == "connecting":
            try:
                self._take(self._events.get(timeout=max(0.0, deadline_s - time.monotonic())))
            except Empty:
                raise RemotePolicyError(
                    f"no policy server at {self.address.url} within {timeout_s:g} s ({self._error or 'no answer'}); "
                    "start one there: volar-serve policy=DIR port=8000"
                ) from None
        if self._state == "failed" or self._line.contract is None:
            raise ContractError(f"the policy server at {self.address.url}: {self._error}")
        return self._line.contract
