"""With which servers a remote policy may work: whose contract is known, and is the one that was expected."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from volar.robots.array_msgpack import pack, unpack
from volar.robots.contract import ContractError
from volar.robots.errors import UsageError
from volar.robots.openpi_messages import metadata
from volar.robots.policy_source import open_source
from volar.robots.remote_policy import RemotePolicy, RemotePolicyError

if TYPE_CHECKING:
    from .conftest import TinyArtifact


def test_another_contract_after_a_restart_is_a_failure(peers: Any, shared_artifact: "TinyArtifact") -> None:
    contract, heard = shared_artifact.contract(), threading.Event()

    def talk(connection: Any, number: int) -> None:
        connection.send(pack(metadata(contract if number == 0 else replace(contract, execute_steps=2))))
        if number > 0:
            peers.wait_for_the_end(connection)
        heard.wait(peers.PATIENCE_S)  # or it might be gone before the client has read its contract

    with peers.peer(talk) as url, RemotePolicy(url) as remote:
        heard.set()
        assert peers.until(remote, lambda: remote.failure is not None) is None
        assert "another contract; execute_steps: policy wants 4, found 2" in str(remote.failure)
        assert remote.pending
        assert remote.poll(0) is None


def test_a_foreign_server_needs_a_contract(peers: Any, shared_artifact: "TinyArtifact", tmp_path: Path) -> None:
    keys = {"openpi.key.front": "observation/exterior_image_1_left", "openpi.key.state": "observation/pose"}
    contract = shared_artifact.contract()
    contract = replace(
        contract, preprocessing=dict(contract.preprocessing) | keys, instruction_template="do: {instruction}"
    )
    requests: list[dict[str, Any]] = []

    def talk(connection: Any, number: int) -> None:
        connection.send(pack({"policy": "somebody's"}))
        for frame in connection:
            assert isinstance(frame, bytes)
            requests.append(unpack(frame))
            connection.send(pack({"actions": np.ones((8, 7)), "server_timing": {"infer_ms": 12.5}}))  # float64

    with peers.peer(talk) as url:
        with pytest.raises(ContractError, match=r"the server says no contract .*\?contract=FILE\.json"):
            RemotePolicy(url)
        contract.save(tmp_path / "contract.json")
        observation = shared_artifact.observation("lift", stamp_ns=3)
        with RemotePolicy(f"{url}?contract={tmp_path / 'contract.json'}") as remote:
            assert remote.contract == contract
            chunk = peers.answer(remote, observation)
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
    peers: Any, served: Any, shared_artifact: "TinyArtifact", tmp_path: Path
) -> None:
    contract = shared_artifact.contract()
    contract.save(tmp_path / "same.json")
    with RemotePolicy(f"{served.url}?contract={tmp_path / 'same.json'}") as remote:
        peers.answer(remote, shared_artifact.observation())
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


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (json.dumps({"robot": "fr3"}), "contract lacks action, state_names, state_units"),
        ("{", "contract cannot be read: Expecting property name"),
        (7, "volar_contract must be text, is int"),
        ("not canonical", "not in canonical form; run the same volar on both sides"),
    ],
)
def test_a_servers_contract_that_cannot_be_read_is_refused(
    peers: Any, shared_artifact: "TinyArtifact", said: Any, reason: str
) -> None:
    if said == "not canonical":
        said = json.dumps(json.loads(shared_artifact.contract().to_json()), indent=1)

    def talk(connection: Any, number: int) -> None:
        connection.send(pack({"volar_contract": said}))
        peers.wait_for_the_end(connection)

    with peers.peer(talk) as url, pytest.raises(ContractError, match=reason):
        RemotePolicy(url)


@pytest.mark.parametrize("first", ["hello", b"\xc1", pack([1])], ids=["text", "no msgpack", "no map"])
def test_what_is_no_openpi_server_is_named(peers: Any, first: bytes | str) -> None:
    def talk(connection: Any, number: int) -> None:
        connection.send(first)
        peers.wait_for_the_end(connection)

    with (
        peers.peer(talk) as url,
        pytest.raises(RemotePolicyError, match=r"no policy server at .*(first frame|not a msgpack)"),
    ):
        RemotePolicy(url, start_timeout_s=2.0)


def test_nobody_there_is_named_with_the_fix(peers: Any) -> None:
    with peers.peer(lambda connection, number: None) as url:
        pass
    with pytest.raises(RemotePolicyError, match=r"Connection refused.*volar-serve policy=DIR port=8000"):
        RemotePolicy(url, start_timeout_s=1.0)


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
