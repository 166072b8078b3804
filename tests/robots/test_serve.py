"""volar-serve: what an openpi client, written here from the protocol's facts, gets from the real process."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.interface import ActionChunk, Observation
from volar.robots.remote_policy import RemotePolicy
from volar.robots.serve import PolicyServer, ServeConfig

if TYPE_CHECKING:
    from .conftest import TinyArtifact

pytestmark = pytest.mark.real_time

PATIENCE_S = 60.0  # for what comes at once on an idle machine


class OpenpiClient:
    """Knows openpi's protocol and nothing of volar."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.metadata = self._unpack(self._hear())

    @staticmethod
    @contextlib.contextmanager
    def at(url: str) -> "Iterator[OpenpiClient]":
        with connect(url, compression=None, max_size=None, proxy=None) as connection:
            yield OpenpiClient(connection)

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        answer = self.say(msgpack.packb(observation, default=self._array))
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return self._unpack(answer)

    def say(self, frame: bytes | str) -> bytes | str:
        self._connection.send(frame)
        return self._hear()

    def _hear(self) -> bytes | str:
        return self._connection.recv(timeout=PATIENCE_S)

    @staticmethod
    def _array(value: NDArray[Any]) -> dict[bytes, Any]:
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}

    @staticmethod
    def _unpack(frame: bytes | str) -> dict[str, Any]:
        assert isinstance(frame, bytes)

        def array(raw: dict[Any, Any]) -> Any:
            return np.ndarray(raw[b"shape"], raw[b"dtype"], raw[b"data"]) if b"__ndarray__" in raw else raw

        message = msgpack.unpackb(frame, object_hook=array)
        assert isinstance(message, dict)
        return message


def openpi_observation(observation: Observation) -> dict[str, Any]:
    return {
        "observation/image": observation.images["front"],
        "observation/wrist_image": observation.images["wrist"],
        "observation/state": observation.state.astype(np.float64),  # as openpi's examples send it
        "prompt": observation.instruction,
    }


@pytest.fixture
def client(served: Any) -> Iterator[OpenpiClient]:
    with OpenpiClient.at(served.url) as client:
        yield client


def test_an_openpi_client_gets_actions(client: OpenpiClient, shared_artifact: "TinyArtifact") -> None:
    here = ExportedPolicy(shared_artifact.path)
    assert PolicyContract.from_json(client.metadata["volar_contract"]) == here.contract
    for i in range(3):
        observation = shared_artifact.observation(x_m=0.4 + 0.05 * i)
        answer = client.infer(openpi_observation(observation))
        assert answer["actions"].dtype == np.float32
        assert answer["actions"].shape == (here.contract.chunk_length, here.contract.action.size)
        np.testing.assert_array_equal(answer["actions"], here.predict(observation).actions)
        assert answer["server_timing"]["infer_ms"] > 0
        assert ("prev_total_ms" in answer["server_timing"]) == (i > 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"observation/wrist_image": None},
            "lacks observation/wrist_image; found observation/image, observation/state",
        ),
        (
            {"observation/image": np.zeros((8, 8, 3), np.uint8)},
            r"observation/image must be uint8 \(16, 16, 3\), is uint8",
        ),
        ({"observation/image": np.zeros((16, 16, 3), np.float32)}, r"observation/image must be uint8 .*, is float32"),
        ({"observation/image": "front.png"}, r"observation/image must be uint8 .*, is str"),
        (
            {"observation/state": np.zeros(3, np.float32)},
            r"observation/state must be float32 \(\d+,\), is float32 \(3,\)",
        ),
        ({"observation/state": [0.0] * 8}, r"observation/state must be an array \(\d+,\), is list"),
        ({"prompt": 7}, "prompt must be text, is int"),
        ({"volar_seed": -1}, "volar_seed must be a whole number"),
        ({"prompt": "lift " * 20}, "has 20 words"),
    ],
)
def test_what_does_not_fit_is_named_and_the_next_is_answered(
    client: OpenpiClient, shared_artifact: "TinyArtifact", change: dict[str, Any], reason: str
) -> None:
    good = openpi_observation(shared_artifact.observation())
    bad = {key: value for key, value in (good | change).items() if value is not None}
    with pytest.raises(RuntimeError, match=reason) as caught:
        client.infer(bad)
    assert "\n" not in str(caught.value)
    assert client.infer(good)["actions"].shape == (8, 7)


def test_a_state_that_is_not_finite_is_named(client: OpenpiClient, shared_artifact: "TinyArtifact") -> None:
    good = openpi_observation(shared_artifact.observation())
    for value in (np.nan, 1e300):  # the second is infinite as float32
        state = good["observation/state"].copy()
        state[1] = value
        with pytest.raises(RuntimeError, match="observation/state holds a non-finite value"):
            client.infer(good | {"observation/state": state})


@pytest.mark.parametrize("frame", [b"", b"\xdd\xff\xff\xff\xff", b"\x80\x04N.", "{}", b"\x93\x01\x02\x03"])
def test_frames_that_are_no_request_get_a_reason(
    client: OpenpiClient, shared_artifact: "TinyArtifact", frame: bytes | str
) -> None:
    answer = client.say(frame)
    assert isinstance(answer, str)
    assert answer.strip()
    assert client.infer(openpi_observation(shared_artifact.observation()))["actions"].shape == (8, 7)


def test_health(served: Any) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/healthz", timeout=PATIENCE_S) as answer:
        assert answer.status == 200
        assert answer.read().strip() == b"OK"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_it_while_clients_are_connected(
    serve: Callable[..., Any], shared_artifact: "TinyArtifact", number: signal.Signals
) -> None:
    served = serve(shared_artifact.path)
    with OpenpiClient.at(served.url) as client:
        served.process.send_signal(number)
        assert served.process.wait(PATIENCE_S) == 0
        with pytest.raises(ConnectionClosed, match="1001"):  # going away
            client.say(b"")


def test_a_taken_port_is_named(shared_artifact: "TinyArtifact") -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [f"policy={shared_artifact.path}", "host=127.0.0.1", f"port={port}"]
        command = [sys.executable, "-m", "volar.robots.serve", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "port=" in done.stderr


class Stateful:
    """A policy whose actions are the seed it was reset with; stamp 13 is too much for it."""

    def __init__(self, contract: PolicyContract) -> None:
        self.contract, self._seed, self.inside = contract, 0, 0

    def reset(self, seed: int) -> None:
        self._seed = seed

    def predict(self, observation: Observation) -> ActionChunk:
        self.inside += 1
        assert self.inside == 1, "two inferences at a time"
        try:
            if observation.stamp_ns == 13:
                raise RuntimeError("out of\nmemory")
            shape = self.contract.chunk_length, self.contract.action.size
            return ActionChunk(np.full(shape, self._seed, np.float32), observation.stamp_ns, 0.1)
        finally:
            self.inside -= 1


@pytest.fixture
def stateful(shared_artifact: "TinyArtifact") -> Iterator[str]:
    """The address of a server, in this process, of a `Stateful` policy."""
    server = PolicyServer(Stateful(shared_artifact.contract()), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"ws://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()


def ask(remote: RemotePolicy, observation: Observation) -> ActionChunk | None:
    remote.submit(observation)
    deadline = time.monotonic() + PATIENCE_S
    while remote.pending and time.monotonic() < deadline:
        if (chunk := remote.poll(0)) is not None:
            return chunk
        time.sleep(0.001)  # leaves the core to the others; no result depends on it
    return None


def test_a_reset_reaches_the_policy_before_the_next_observation(stateful: str, shared_artifact: "TinyArtifact") -> None:
    with RemotePolicy(stateful) as remote:
        for seed, wanted in ((None, 0), (5, 5), (None, 5), (2**40, 2**40)):
            if seed is not None:
                remote.reset(seed)
            chunk = ask(remote, shared_artifact.observation())
            assert chunk is not None, remote.error
            assert chunk.actions[0, 0] == wanted


def test_a_policy_that_raises_anything_does_not_end_the_server(
    stateful: str, shared_artifact: "TinyArtifact", capsys: pytest.CaptureFixture[str]
) -> None:
    with RemotePolicy(stateful) as remote:
        assert ask(remote, shared_artifact.observation(stamp_ns=13)) is None
        assert remote.error == "the server refused: the policy failed: RuntimeError: out of memory"
        assert "Traceback" in capsys.readouterr().err
        assert ask(remote, shared_artifact.observation(stamp_ns=14)) is not None
        assert remote.restarts == 0


def test_clients_take_turns(stateful: str, shared_artifact: "TinyArtifact") -> None:
    with contextlib.ExitStack() as stack:
        remotes = [stack.enter_context(RemotePolicy(stateful)) for _ in range(4)]
        for round_ in range(10):
            for i, remote in enumerate(remotes):
                remote.submit(shared_artifact.observation(stamp_ns=100 * round_ + i))
            for i, remote in enumerate(remotes):
                chunk = None
                while chunk is None and remote.pending:
                    chunk = remote.poll(0)
                assert chunk is not None, remote.error
                assert chunk.stamp_ns == 100 * round_ + i


def test_settings_are_checked() -> None:
    with pytest.raises(VolarError, match="port=70000 must be from 0 to 65535"):
        ServeConfig(Path("policy"), port=70000)
    with pytest.raises(VolarError, match="threads=0 must be at least 1"):
        ServeConfig(Path("policy"), threads=0)
