"""A policy on another machine: real servers, and what may go wrong between them and the arm."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from volar.robots.array_msgpack import pack
from volar.robots.contract import CameraSpec, ContractError
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.openpi_messages import metadata
from volar.robots.policy_source import open_source
from volar.robots.remote_policy import RemotePolicy, RemotePolicyError

if TYPE_CHECKING:
    from .conftest import TinyArtifact


def test_answers_are_those_of_the_artifact(peers: Any, served: Any, shared_artifact: "TinyArtifact") -> None:
    here = ExportedPolicy(shared_artifact.path)
    with open_source(served.url) as remote:
        assert isinstance(remote, RemotePolicy)
        assert remote.contract == here.contract
        for i in range(5):
            observation = shared_artifact.observation(stamp_ns=i, x_m=0.4 + 0.01 * i)
            assert not remote.pending
            remote.submit(observation)
            assert remote.pending
            chunk = peers.until(remote, lambda: False)
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


def test_misfits_raise_here_and_refusals_there_are_reported(
    peers: Any, served: Any, shared_artifact: "TinyArtifact"
) -> None:
    with RemotePolicy(served.url) as remote:
        with pytest.raises(ContractError, match="found front 8x8"):
            remote.submit(shared_artifact.observation(pixels=8))
        remote.submit(shared_artifact.observation("lift " * 20))
        with pytest.raises(RemotePolicyError, match="is busy, not ready"):
            remote.submit(shared_artifact.observation())
        assert peers.until(remote, lambda: not remote.pending) is None
        assert "has 20 words" in str(remote.error)
        assert peers.answer(remote, shared_artifact.observation(stamp_ns=7)).stamp_ns == 7
        assert (remote.failure, remote.restarts) == (None, 0)


def test_reset_drops_the_awaited_chunk(peers: Any, served: Any, shared_artifact: "TinyArtifact") -> None:
    with RemotePolicy(served.url) as remote:
        remote.submit(shared_artifact.observation(stamp_ns=1))
        remote.reset()
        assert peers.until(remote, lambda: not remote.pending) is None
        assert peers.answer(remote, shared_artifact.observation(stamp_ns=2)).stamp_ns == 2


def test_a_server_that_was_killed_is_found_again(
    peers: Any, serve: Callable[..., Any], shared_artifact: "TinyArtifact"
) -> None:
    first = serve(shared_artifact.path)
    with RemotePolicy(first.url) as remote:
        peers.answer(remote, shared_artifact.observation(stamp_ns=1))
        first.process.kill()
        assert peers.until(remote, lambda: remote.state == "connecting") is None  # noticed while nothing is asked
        assert remote.pending
        assert remote.failure is None
        serve(shared_artifact.path, first.port)
        peers.until(remote, lambda: not remote.pending)
        assert remote.restarts == 1
        observation = shared_artifact.observation(stamp_ns=2, x_m=0.6)
        expected = shared_artifact.expected_actions(observation.state)
        np.testing.assert_allclose(peers.answer(remote, observation).actions, expected, atol=1e-6)


def test_a_server_that_hangs_is_given_up_and_its_late_reply_is_not_taken(
    peers: Any, serve: Callable[..., Any], shared_artifact: "TinyArtifact"
) -> None:
    served = serve(shared_artifact.path)
    with RemotePolicy(f"{served.url}?timeout_s=2") as remote:
        peers.freeze(served.process.pid)
        remote.submit(shared_artifact.observation(stamp_ns=1, x_m=0.4))
        assert peers.until(remote, lambda: remote.state == "connecting") is None
        assert remote.error == "no reply within 2 s"
        os.kill(served.process.pid, signal.SIGCONT)  # answers the first now
        assert peers.until(remote, lambda: not remote.pending) is None
        observation = shared_artifact.observation(stamp_ns=2, x_m=0.6)
        chunk = peers.answer(remote, observation)
        assert chunk.stamp_ns == 2
        np.testing.assert_allclose(chunk.actions, shared_artifact.expected_actions(observation.state), atol=1e-6)


def test_a_server_that_never_answers_is_asked_anew(peers: Any, shared_artifact: "TinyArtifact") -> None:
    contract = shared_artifact.contract()

    def talk(connection: Any, number: int) -> None:
        connection.send(pack(metadata(contract)))
        peers.wait_for_the_end(connection)

    with peers.peer(talk) as url, RemotePolicy(f"{url}?timeout_s=0.1") as remote:
        for i in range(1, 4):
            remote.submit(shared_artifact.observation())
            assert peers.until(remote, lambda: not remote.pending) is None
            assert (remote.restarts, remote.error, remote.failure) == (i, "no reply within 0.1 s", None)


def test_a_reply_to_an_older_request_is_not_taken_for_a_newer_one(peers: Any, shared_artifact: "TinyArtifact") -> None:
    contract = shared_artifact.contract()
    asked_again, answered = threading.Event(), threading.Event()

    def talk(connection: Any, number: int) -> None:
        connection.send(pack(metadata(contract)))
        peers.hear(connection)
        if number == 0:
            assert asked_again.wait(peers.PATIENCE_S)
            with contextlib.suppress(ConnectionClosed):
                connection.send(peers.actions(contract, 1.0))  # late
            answered.set()
        else:
            asked_again.set()
            assert answered.wait(peers.PATIENCE_S)
            connection.send(peers.actions(contract, 2.0))
            peers.wait_for_the_end(connection)

    with peers.peer(talk) as url, RemotePolicy(f"{url}?timeout_s=2") as remote:
        remote.submit(shared_artifact.observation(stamp_ns=1))
        assert peers.until(remote, lambda: not remote.pending) is None
        chunk = peers.answer(remote, shared_artifact.observation(stamp_ns=2))
        assert chunk.stamp_ns == 2
        assert (chunk.actions == 2.0).all()


def test_a_frame_that_nobody_asked_for_costs_the_connection(peers: Any, shared_artifact: "TinyArtifact") -> None:
    contract = shared_artifact.contract()

    def talk(connection: Any, number: int) -> None:
        connection.send(pack(metadata(contract)))
        for _ in connection:
            connection.send(peers.actions(contract, number))
            if number == 0:
                connection.send(peers.actions(contract, 99.0))

    with peers.peer(talk) as url, RemotePolicy(url) as remote:
        assert (peers.answer(remote, shared_artifact.observation()).actions == 0.0).all()
        assert peers.until(remote, lambda: remote.restarts == 1) is None
        assert remote.error == "the server sent a frame that nobody asked for"
        assert (peers.answer(remote, shared_artifact.observation()).actions == 1.0).all()


def test_a_traceback_in_a_text_frame_is_refused_by_its_last_line(peers: Any, shared_artifact: "TinyArtifact") -> None:
    contract = shared_artifact.contract()

    def talk(connection: Any, number: int) -> None:
        connection.send(pack(metadata(contract)))
        peers.hear(connection)
        if number == 0:  # as openpi's server does it: the traceback, then the end
            connection.send("Traceback (most recent call last):\n  File 'policy.py'\nKeyError: 'observation/x'\n")
            return
        connection.send(peers.actions(contract, 3.0))
        peers.wait_for_the_end(connection)

    with peers.peer(talk) as url, RemotePolicy(url) as remote:
        remote.submit(shared_artifact.observation())
        assert peers.until(remote, lambda: remote.error is not None) is None
        assert remote.error == "the server refused: KeyError: 'observation/x'"
        peers.until(remote, lambda: remote.restarts == 1 and not remote.pending)
        assert (peers.answer(remote, shared_artifact.observation()).actions == 3.0).all()


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
def test_a_reply_that_is_no_chunk_is_named(
    peers: Any, shared_artifact: "TinyArtifact", reply: Any, reason: str
) -> None:
    contract = shared_artifact.contract()

    def talk(connection: Any, number: int) -> None:
        connection.send(pack(metadata(contract)))
        peers.hear(connection)
        connection.send(reply if isinstance(reply, bytes) else pack(reply))
        peers.hear(connection)
        connection.send(peers.actions(contract, 1.0))
        peers.wait_for_the_end(connection)

    with peers.peer(talk) as url, RemotePolicy(url) as remote:
        remote.submit(shared_artifact.observation())
        assert peers.until(remote, lambda: not remote.pending) is None
        assert re.search(reason, str(remote.error)), remote.error
        assert (peers.answer(remote, shared_artifact.observation()).actions == 1.0).all()
        assert remote.restarts == 0


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


def test_a_server_that_stops_reading_is_given_up(peers: Any, shared_artifact: "TinyArtifact", tmp_path: Path) -> None:
    pixels = 2048  # more than any socket buffers
    cameras = tuple(CameraSpec(camera.name, pixels, pixels) for camera in shared_artifact.contract().cameras)
    replace(shared_artifact.contract(), cameras=cameras).save(tmp_path / "contract.json")
    with subprocess.Popen([sys.executable, "-c", FOREIGN], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"ws://127.0.0.1:{int(server.stdout.readline())}?contract={tmp_path / 'contract.json'}&timeout_s=0.3"
        with RemotePolicy(url) as remote:
            peers.freeze(server.pid)
            remote.submit(shared_artifact.observation(pixels=pixels))
            assert peers.until(remote, lambda: remote.state == "connecting") is None
            os.kill(server.pid, signal.SIGCONT)
            assert peers.until(remote, lambda: not remote.pending) is None
            assert remote.restarts == 1
        server.kill()


def test_closing_does_not_wait_for_a_reply(peers: Any, shared_artifact: "TinyArtifact") -> None:
    def talk(connection: Any, number: int) -> None:
        connection.send(pack(metadata(shared_artifact.contract())))
        peers.wait_for_the_end(connection)

    with peers.peer(talk) as url:
        remote = RemotePolicy(f"{url}?timeout_s=3000")
        remote.submit(shared_artifact.observation())
        closing = threading.Thread(target=remote.close, daemon=True)
        closing.start()
        closing.join(peers.PATIENCE_S)
        assert not closing.is_alive()
