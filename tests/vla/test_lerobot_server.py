"""LeRobot's asynchronous server answers for a Volar policy, over its own protocol."""

import pickle  # LeRobot's protocol
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from volar.robots.contract import PolicyContract
from volar.robots.interface import Observation
from volar.vla.checkpoint_policy import load
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import VolarModel
from volar.vla.processor_volar import save_policy

TIMEOUT_S = 120


def test_a_chunk_comes_back(
    tmp_path: Path, model: VolarModel, contract: PolicyContract, look: Callable[[int], Observation]
) -> None:
    grpc = pytest.importorskip("grpc")
    from lerobot.transport import services_pb2_grpc

    save_policy(tmp_path / "policy", model, contract, InstructionTokenizer.load())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("--host=127.0.0.1", f"--port={port}", "--obs_queue_timeout=60", "--inference_latency=0")
    command = [sys.executable, "-m", "volar.vla.lerobot_plugin.serve", *words]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log) as server,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        try:
            grpc.channel_ready_future(channel).result(timeout=TIMEOUT_S)
            actions = ask(services_pb2_grpc.AsyncInferenceStub(channel), tmp_path / "policy", contract, look(0))
        finally:
            server.kill()
    assert [action.get_timestep() for action in actions] == list(range(5, 11)), (tmp_path / "log").read_text()
    found = np.stack([action.get_action().numpy() for action in actions])
    np.testing.assert_allclose(found, load(tmp_path / "policy").predict(look(0)).actions[:6], atol=1e-6)


def ask(stub: object, policy: Path, contract: PolicyContract, seen: Observation) -> list[object]:
    """What LeRobot's client does, for one observation: step 5, six actions of a chunk."""
    from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
    from lerobot.transport import services_pb2
    from lerobot.transport.utils import send_bytes_in_chunks
    from lerobot.utils.feature_utils import hw_to_dataset_features

    kinds = dict.fromkeys(contract.state_names, float) | {name: image.shape for name, image in seen.images.items()}
    features = hw_to_dataset_features(kinds, "observation", use_video=False)
    setup = RemotePolicyConfig("volar", str(policy), features, 6)
    raw = dict(zip(contract.state_names, map(float, seen.state), strict=True)) | dict(seen.images)
    observed = TimedObservation(0.0, 5, raw | {"task": seen.instruction}, must_go=True)
    stub.Ready(services_pb2.Empty(), timeout=TIMEOUT_S)
    stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(setup)), timeout=TIMEOUT_S)
    parts = send_bytes_in_chunks(pickle.dumps(observed), services_pb2.Observation)
    stub.SendObservations(parts, timeout=TIMEOUT_S)
    reply = stub.GetActions(services_pb2.Empty(), timeout=TIMEOUT_S)
    return pickle.loads(reply.data) if reply.data else []
