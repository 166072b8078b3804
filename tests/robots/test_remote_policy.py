"""A policy on another machine: real servers, and what may go wrong between them and the arm."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as listen

from volar.robots.array_msgpack import pack, unpack
from volar.robots.contract import CameraSpec, ContractError, PolicyContract
from volar.robots.errors import UsageError
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.interface import ActionChunk, Observation
from volar.robots.openpi_messages import metadata
from volar.robots.policy_source import open_source
from volar.robots.remote_policy import RemotePolicy, RemotePolicyError

if TYPE_CHECKING:
    from .conftest import Served, TinyArtifact

PATIENCE_S = 60.0  # for what comes at once on an idle machine


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


def test_answers_are_those_of_the_artifact(served: "Served", shared_artifact: "TinyArtifact") -> None:
    here = ExportedPolicy(shared_artifact.path)
    with open_source(served.url) as remote:
        assert isinstance(remote, RemotePolicy)
        assert remote.contract == here.contract
        for i in range(5):
            observation = shared_artifact.observation(stamp_ns=i, x_m=0.4 + 0.01 * i)
            assert not remote.pending
            remote.submit(observation)
            assert remote.pending
            chunk = until(remote, lambda: False)
            assert chunk is not None
            assert (chunk.stamp_ns, chunk.dt_s) == (i, here.predict(observation).dt_s)
            assert not remote.pending
            np.testing.assert_array_equal(chunk.actions, here.predict(observation).actions)
            assert remote.poll(0) is None
        assert remote.predict_s is not None
        assert remote.predict_s > 0
        assert (remote.failure, remote.restarts) == (None, 0)
    assert remote.failure == "the remote policy is closed"
    assert remote.poll(0) is None
    remote.close()


def test_misfits_raise_here_and_refusals_there_are_reported(served: "Served", shared_artifact: "TinyArtifact") -> None:
    with RemotePolicy(served.url) as remote:
        with pytest.raises(ContractError, match="found front 8x8"):
            remote.submit(shared_artifact.observation(pixels=8))
        remote.submit(shared_artifact.observation("lift " * 20))
        with pytest.raises(RemotePolicyError, match="is busy, not ready"):
            remote.submit(shared_artifact.observation())
        assert until(remote, lambda: not remote.pending) is None
        assert "has 20 words" in str(remote.error)
        assert answer(remote, shared_artifact.observation(stamp_ns=7)).stamp_ns == 7
        assert (remote.failure, remote.restarts) == (None, 0)


def test_reset_drops_the_awaited_chunk(served: "Served", shared_artifact: "TinyArtifact") -> None:
    with RemotePolicy(served.url) as remote:
        remote.submit(shared_artifact.observation(stamp_ns=1))
        remote.reset()
        assert until(remote, lambda: not remote.pending) is None
        assert answer(remote, shared_artifact.observation(stamp_ns=2)).stamp_ns == 2


def test_a_server_that_was_killed_is_found_again(
    serve: Callable[..., "Served"], shared_artifact: "TinyArtifact"
) -> None:
    first = serve(shared_artifact.path)
    with RemotePolicy(first.url) as remote:
        answer(remote, shared_artifact.observation(stamp_ns=1))
        first.process.kill()
        assert until(remote, lambda: remote.state == "connecting") is None  # noticed while nothing is asked
        assert remote.pending
        assert remote.failure is None
        serve(shared_artifact.path, first.port)
        until(remote, lambda: not remote.pending)
        assert remote.restarts == 1
        observation = shared_artifact.observation(stamp_ns=2, x_m=0.6)
        expected = shared_artifact.expected_actions(observation.state)
        np.testing.assert_allclose(answer(remote, observation).actions, expected, atol=1e-6)


def test_a_server_that_hangs_is_given_up_and_its_late_reply_is_not_taken(
    serve: Callable[..., "Served"], shared_artifact: "TinyArtifact"
) -> None:
    served = serve(shared_artifact.path)
    with RemotePolicy(f"{served.url}?timeout_s=2") as remote:
        os.kill(served.process.pid, signal.SIGSTOP)
        remote.submit(shared_artifact.observation(stamp_ns=1, x_m=0.4))
        assert until(remote, lambda: remote.state == "connecting") is None
        assert remote.error == "no reply within 2 s"
        os.kill(served.process.pid, signal.SIGCONT)  # answers the first now
        assert until(remote, lambda: not remote.pending) is None
        observation = shared_artifact.observation(stamp_ns=2, x_m=0.6)
        chunk = answer(remote, observation)
        assert chunk.stamp_ns == 2
        np.testing.assert_allclose(chunk.actions, shared_artifact.expected_actions(observation.state), atol=1e-6)


def test_a_server_that_never_answers_is_asked_anew(shared_artifact: "TinyArtifact") -> None:
    contract = shared_artifact.contract()

    def talk(connection: ServerConnection, number: int) -> None:
        connection.send(pack(metadata(contract)))
        wait_for_the_end(connection)

    with peer(talk) as url, RemotePolicy(f"{url}?timeout_s=0.1") as remote:
        for i in range(1, 4):
            remote.submit(shared_artifact.observation())
            assert until(remote, lambda: not remote.pending) is None
            assert (remote.restarts, remote.error, remote.failure) == (i, "no reply within 0.1 s", None)


def test_a_reply_to_an_older_request_is_not_taken_for_a_newer_one(shared_artifact: "TinyArtifact") -> None:
    contract = shared_artifact.contract()
    asked_again, answered = threading.Event(), threading.Event()

    def talk(connection: ServerConnection, number: int) -> None:
        connection.send(pack(metadata(contract)))
        hear(connection)
        if number == 0:
            assert asked_again.wait(PATIENCE_S)
            with contextlib.suppress(ConnectionClosed):
                connection.send(actions(contract, 1.0))  # late
            answered.set()
        else:
            asked_again.set()
            assert answered.wait(PATIENCE_S)
            connection.send(actions(contract, 2.0))
            wait_for_the_end(connection)

    with peer(talk) as url, RemotePolicy(f"{url}?timeout_s=2") as remote:
        remote.submit(shared_artifact.observation(stamp_ns=1))
        assert until(remote, lambda: not remote.pending) is None
        chunk = answer(remote, shared_artifact.observation(stamp_ns=2))
        assert chunk.stamp_ns == 2
        assert (chunk.actions == 2.0).all()


def test_a_frame_that_nobody_asked_for_costs_the_connection(shared_artifact: "TinyArtifact") -> None:
    contract = shared_artifact.contract()

    def talk(connection: ServerConnection, number: int) -> None:
        connection.send(pack(metadata(contract)))
        for _ in connection:
            connection.send(actions(contract, number))
            if number == 0:
                connection.send(actions(contract, 99.0))

    with peer(talk) as url, RemotePolicy(url) as remote:
        assert (answer(remote, shared_artifact.observation()).actions == 0.0).all()
        assert until(remote, lambda: remote.restarts == 1) is None
        assert remote.error == "the server sent a frame that nobody asked for"
        assert (answer(remote, shared_artifact.observation()).actions == 1.0).all()


def test_a_traceback_in_a_text_frame_is_refused_by_its_last_line(shared_artifact: "TinyArtifact") -> None:
    contract = shared_artifact.contract()

    def talk(connection: ServerConnection, number: int) -> None:
        connection.send(pack(metadata(contract)))
        hear(connection)
        if number == 0:  # as openpi's server does it: the traceback, then the end
            connection.send("Traceback (most recent call last):\n  File 'policy.py'\nKeyError: 'observation/x'\n")
            return
        connection.send(actions(contract, 3.0))
        wait_for_the_end(connection)

    with peer(talk) as url, RemotePolicy(url) as remote:
        remote.submit(shared_artifact.observation())
        assert until(remote, lambda: remote.error is not None) is None
        assert remote.error == "the server refused: KeyError: 'observation/x'"
        until(remote, lambda: remote.restarts == 1 and not remote.pending)
        assert (answer(remote, shared_artifact.observation()).actions == 3.0).all()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"actions": np.zeros((7, 7), np.float32)}, r"actions must be float32 \(8, 7\), is float32 \(7, 7\)"),
        ({"actions": np.zeros((8, 7), np.int64)}, r"actions must be float32 \(8, 7\), is int64"),
        ({"actions": np.full((8, 7), np.nan, np.float32)}, "actions holds a non-finite value"),
        ({"actions": [[0.0] * 7] * 8}, r"actions must be an array \(8, 7\), is list"),
        ({"action": np.zeros((8, 7), np.float32)}, "the reply lacks actions; found action"),
        (None, "the reply lacks actions; found NoneType"),
        (b"\xc1", "is not a msgpack message"),
    ],
)
def test_a_reply_that_is_no_chunk_is_named(shared_artifact: "TinyArtifact", reply: Any, reason: str) -> None:
    contract = shared_artifact.contract()

    def talk(connection: ServerConnection, number: int) -> None:
        connection.send(pack(metadata(contract)))
        hear(connection)
        connection.send(reply if isinstance(reply, bytes) else pack(reply))
        hear(connection)
        connection.send(actions(contract, 1.0))
        wait_for_the_end(connection)

    with peer(talk) as url, RemotePolicy(url) as remote:
        remote.submit(shared_artifact.observation())
        assert until(remote, lambda: not remote.pending) is None
        assert re.search(reason, str(remote.error)), remote.error
        assert (answer(remote, shared_artifact.observation()).actions == 1.0).all()
        assert remote.restarts == 0


def test_another_contract_after_a_restart_is_a_failure(shared_artifact: "TinyArtifact") -> None:
    contract = shared_artifact.contract()

    def talk(connection: ServerConnection, number: int) -> None:
        connection.send(pack(metadata(contract if number == 0 else replace(contract, execute_steps=2))))
        if number > 0:
            wait_for_the_end(connection)

    with peer(talk) as url, RemotePolicy(url) as remote:
        assert until(remote, lambda: remote.failure is not None) is None
        assert "another contract; execute_steps: policy wants 4, found 2" in str(remote.failure)
        assert remote.pending
        assert remote.poll(0) is None


def test_a_foreign_server_needs_a_contract(shared_artifact: "TinyArtifact", tmp_path: Path) -> None:
    keys = {"openpi.key.front": "observation/exterior_image_1_left", "openpi.key.state": "observation/pose"}
    contract = shared_artifact.contract()
    contract = replace(
        contract, preprocessing=dict(contract.preprocessing) | keys, instruction_template="do: {instruction}"
    )
    requests: list[dict[str, Any]] = []

    def talk(connection: ServerConnection, number: int) -> None:
        connection.send(pack({"policy": "somebody's"}))
        for frame in connection:
            assert isinstance(frame, bytes)
            requests.append(unpack(frame))
            connection.send(pack({"actions": np.ones((8, 7)), "server_timing": {"infer_ms": 12.5}}))  # float64

    with peer(talk) as url:
        with pytest.raises(ContractError, match=r"says no contract .*\?contract=FILE\.json"):
            RemotePolicy(url)
        contract.save(tmp_path / "contract.json")
        observation = shared_artifact.observation("lift", stamp_ns=3)
        with RemotePolicy(f"{url}?contract={tmp_path / 'contract.json'}") as remote:
            assert remote.contract == contract
            chunk = answer(remote, observation)
            assert (chunk.actions == np.float32(1.0)).all()
            assert chunk.stamp_ns == 3
            assert remote.predict_s == pytest.approx(0.0125)
    (request,) = requests
    front, wrist = request["observation/exterior_image_1_left"], request["observation/wrist_image"]
    assert request.keys() == {
        "observation/exterior_image_1_left",
        "observation/wrist_image",
        "observation/pose",
        "prompt",
    }
    np.testing.assert_array_equal(front, observation.images["front"])
    np.testing.assert_array_equal(wrist, observation.images["wrist"])
    np.testing.assert_array_equal(request["observation/pose"], observation.state)
    assert request["prompt"] == "do: lift"


def test_a_contract_that_was_given_is_what_a_volar_server_must_have(
    served: "Served", shared_artifact: "TinyArtifact", tmp_path: Path
) -> None:
    contract = shared_artifact.contract()
    contract.save(tmp_path / "same.json")
    with RemotePolicy(f"{served.url}?contract={tmp_path / 'same.json'}") as remote:
        answer(remote, shared_artifact.observation())
    replace(contract, chunk_length=5).save(tmp_path / "other.json")
    with pytest.raises(ContractError, match="another contract; chunk_length: policy wants 5, found 8"):
        RemotePolicy(f"{served.url}?contract={tmp_path / 'other.json'}")
    with pytest.raises(ContractError, match="no contract at"):
        RemotePolicy(f"{served.url}?contract={tmp_path / 'none.json'}")
    two = {"openpi.key.front": "observation/image", "openpi.key.wrist": "observation/image"}
    replace(contract, preprocessing=two).save(tmp_path / "two.json")
    with pytest.raises(ContractError, match="under one key"):
        RemotePolicy(f"{served.url}?contract={tmp_path / 'two.json'}")
    replace(contract, preprocessing={"openpi.key.frnt": "x"}).save(tmp_path / "typo.json")
    with pytest.raises(UsageError, match="did you mean front"):
        RemotePolicy(f"{served.url}?contract={tmp_path / 'typo.json'}")


@pytest.mark.parametrize("said", [json.dumps({"robot": "fr3"}), "{", 7, "not canonical"])
def test_a_servers_contract_that_cannot_be_read_is_refused(shared_artifact: "TinyArtifact", said: Any) -> None:
    if said == "not canonical":
        said = json.dumps(json.loads(shared_artifact.contract().to_json()), indent=1)

    def talk(connection: ServerConnection, number: int) -> None:
        connection.send(pack({"volar_contract": said}))
        wait_for_the_end(connection)

    with peer(talk) as url, pytest.raises(ContractError, match="contract"):
        RemotePolicy(url)


@pytest.mark.parametrize("first", ["hello", b"\xc1", pack([1])], ids=["text", "no msgpack", "no map"])
def test_what_is_no_openpi_server_is_named(first: bytes | str) -> None:
    def talk(connection: ServerConnection, number: int) -> None:
        connection.send(first)
        wait_for_the_end(connection)

    with (
        peer(talk) as url,
        pytest.raises(RemotePolicyError, match=r"no policy server at .*(first frame|not a msgpack)"),
    ):
        RemotePolicy(url, start_timeout_s=0.5)


def test_nobody_there_is_named_with_the_fix() -> None:
    with peer(lambda connection, number: None) as url:
        pass
    with pytest.raises(RemotePolicyError, match=r"Connection refused.*volar-serve policy=DIR port=8000"):
        RemotePolicy(url, start_timeout_s=0.3)


# Says nothing of volar, and never reads what it is sent once it is stopped.
FOREIGN = """
from websockets.sync.server import serve
from volar.robots.array_msgpack import pack
def talk(connection):
    connection.send(pack({}))
    for _ in connection: pass
with serve(talk, "127.0.0.1", 0, max_size=None) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
"""


def test_a_server_that_stops_reading_is_given_up(shared_artifact: "TinyArtifact", tmp_path: Path) -> None:
    pixels = 2048  # more than any socket buffers
    cameras = tuple(CameraSpec(camera.name, pixels, pixels) for camera in shared_artifact.contract().cameras)
    replace(shared_artifact.contract(), cameras=cameras).save(tmp_path / "contract.json")
    with subprocess.Popen([sys.executable, "-c", FOREIGN], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"ws://127.0.0.1:{int(server.stdout.readline())}?contract={tmp_path / 'contract.json'}&timeout_s=0.3"
        with RemotePolicy(url) as remote:
            os.kill(server.pid, signal.SIGSTOP)
            remote.submit(shared_artifact.observation(pixels=pixels))
            assert until(remote, lambda: remote.state == "connecting") is None
            os.kill(server.pid, signal.SIGCONT)
            assert until(remote, lambda: not remote.pending) is None
            assert remote.restarts == 1
        server.kill()


def test_closing_does_not_wait_for_a_reply(shared_artifact: "TinyArtifact") -> None:
    def talk(connection: ServerConnection, number: int) -> None:
        connection.send(pack(metadata(shared_artifact.contract())))
        wait_for_the_end(connection)

    with peer(talk) as url:
        remote = RemotePolicy(f"{url}?timeout_s=3000")
        remote.submit(shared_artifact.observation())
        closing = threading.Thread(target=remote.close, daemon=True)
        closing.start()
        closing.join(PATIENCE_S)
        assert not closing.is_alive()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ws://", "no address of a policy server; write ws://HOST:8000"),
        ("ws://host:0", "no address"),
        ("ws://host:99999", "Port out of range"),
        ("ws://host:8000?contrat=a.json", "did you mean contract"),
        ("ws://host:8000?timeout_s=soon", "timeout_s is a number of seconds"),
        ("ws://host:8000?timeout_s=0", "must be between 0 and 3600"),
        ("ws://host:8000?timeout_s=nan", "must be between 0 and 3600"),
    ],
)
def test_addresses_are_checked(address: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        open_source(address)
