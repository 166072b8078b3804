"""A small real artifact, whose ONNX graph computes a known function of its inputs, and what fits it."""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.exported_policy import FORMAT_VERSION
from volar.robots.fr3 import FR3
from volar.robots.interface import Observation
from volar.robots.kinematics import Arm

TEXT_LENGTH = 8
WORDS = ("<pad>", "<unk>", "<s>", "lift", "the", "red", "blue", "block")
IMAGE = 16
CHUNK_LENGTH = 8


@dataclass(frozen=True)
class TinyArtifact:
    """A folder with a valid artifact; tests that damage it call `rehash` where an exporter would."""

    path: Path

    @staticmethod
    def contract() -> PolicyContract:
        return contract()

    @staticmethod
    def observation(
        instruction: str = "lift the red block", stamp_ns: int = 0, x_m: float = 0.45, pixels: int = IMAGE
    ) -> Observation:
        return observation(instruction, stamp_ns, x_m, pixels)

    @staticmethod
    def expected_actions(state: NDArray[np.float32]) -> NDArray[np.float32]:
        return expected_actions(state)

    def rehash(self) -> None:
        write_manifest(self.path)


@pytest.fixture
def artifact(tmp_path: Path) -> TinyArtifact:
    return TinyArtifact(write_artifact(tmp_path / "artifact"))


@pytest.fixture(scope="session")
def shared_artifact(tmp_path_factory: pytest.TempPathFactory) -> TinyArtifact:
    """One that no test changes."""
    return TinyArtifact(write_artifact(tmp_path_factory.mktemp("shared") / "artifact"))


@pytest.fixture(scope="session")
def peers() -> Any:
    """The module `policy_peers.py` beside this file: servers of policies, good and bad, and how to wait for them."""
    spec = importlib.util.spec_from_file_location("policy_peers", Path(__file__).with_name("policy_peers.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def serve(peers: Any) -> Iterator[Callable[..., Any]]:
    """Starts volar-serve: `serve(folder, port=0)`."""
    running: list[Any] = []

    def start(folder: Path, port: int = 0) -> Any:
        running.append(peers.start_server(folder, port))
        return running[-1]

    yield start
    for served in running:
        served.end()


@pytest.fixture(scope="session")
def served(peers: Any, shared_artifact: TinyArtifact) -> Iterator[Any]:
    """One server of the shared artifact, which no test disturbs."""
    running = peers.start_server(shared_artifact.path)
    yield running
    running.end()


@pytest.fixture(scope="session")
def arm() -> Arm:
    return Arm(FR3)


def contract() -> PolicyContract:
    return PolicyContract(
        robot=FR3.name,
        action=FR3.action,
        state_names=FR3.state_names,
        state_units=FR3.state_units,
        cameras=tuple(CameraSpec(name, IMAGE, IMAGE) for name in FR3.cameras),
        chunk_length=CHUNK_LENGTH,
        execute_steps=4,
    )


def observation(
    instruction: str = "lift the red block", stamp_ns: int = 0, x_m: float = 0.45, pixels: int = IMAGE
) -> Observation:
    state = np.zeros(len(FR3.state_names), np.float32)
    state[0], state[-1] = x_m, 0.04
    images = {name: np.full((pixels, pixels, 3), 7, np.uint8) for name in FR3.cameras}
    return Observation(images, state, instruction, stamp_ns)


def expected_actions(state: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the graph computes: along x towards 0.5 m, a tenth of the way each step, gripper open."""
    actions = np.zeros((CHUNK_LENGTH, 7), np.float32)
    actions[:, 0] = np.float32(0.1) * (np.float32(0.5) - state[0])
    actions[:, 6] = 1.0
    return actions


def write_artifact(folder: Path) -> Path:
    """Writes the artifact into `folder` and returns it."""
    folder.mkdir(parents=True)
    (folder / "policy.onnx").write_bytes(_graph())
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    contract().save(folder / "contract.json")
    (folder / "README.md").write_text("# A test artifact\n")
    _write_golden(folder / "golden.npz")
    write_manifest(folder)
    return folder


def write_manifest(folder: Path) -> None:
    """(Re)computes the hashes, as an exporter would."""
    files = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.name != "artifact.json"
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "format": "onnx",
        "contract_sha256": contract().sha256,
        "text_length": TEXT_LENGTH,
        "files": files,
        "tolerance": 1e-4,
    }
    (folder / "artifact.json").write_text(json.dumps(manifest))


def _tokenizer() -> dict[str, object]:
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[^a-z0-9]+"}, "behavior": "Removed", "invert": False},
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "<unk>"},
    }


def _write_golden(path: Path) -> None:
    samples = [observation(x_m=x) for x in (0.4, 0.45, 0.6)]
    ids = [WORDS.index(word) for word in ("<s>", "lift", "the", "red", "block")]
    images: dict[str, Any] = {f"image.{name}": np.stack([s.images[name] for s in samples]) for name in FR3.cameras}
    np.savez(
        path,
        **images,
        state=np.stack([s.state for s in samples]),
        input_ids=np.tile(np.array(ids + [0] * (TEXT_LENGTH - len(ids)), np.int64), (len(samples), 1)),
        instruction=np.array([s.instruction for s in samples]),
        actions=np.stack([expected_actions(s.state) for s in samples]),
    )


def _graph() -> bytes:
    """actions = state @ gain + bias, reshaped; images and ids enter with weight zero, so that they are used."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size = len(FR3.state_names)
    gain = np.zeros((size, CHUNK_LENGTH * 7), np.float32)
    gain[0, ::7] = -0.1
    bias = np.zeros(CHUNK_LENGTH * 7, np.float32)
    bias[::7], bias[6::7] = 0.05, 1.0
    constants: dict[str, NDArray[np.generic]] = {
        "gain": gain,
        "bias": bias,
        "action_shape": np.array([1, CHUNK_LENGTH, 7], np.int64),
        "point_shape": np.array([1, 2, 3], np.int64),
        "start": np.array([0], np.int64),
        "end": np.array([6], np.int64),
        "axis": np.array([1], np.int64),
        "zero": np.array(0.0, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["state", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["flat"]),
    ]
    total = "flat"
    for i, name in enumerate([*(f"image.{camera}" for camera in FR3.cameras), "input_ids"]):
        nodes += [
            helper.make_node("Cast", [name], [f"cast{i}"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", [f"cast{i}"], [f"sum{i}"], keepdims=0),
            helper.make_node("Mul", [f"sum{i}", "zero"], [f"nothing{i}"]),
            helper.make_node("Add", [total, f"nothing{i}"], [f"total{i}"]),
        ]
        total = f"total{i}"
    nodes += [
        helper.make_node("Reshape", [total, "action_shape"], ["actions"]),
        helper.make_node("Slice", ["state", "start", "end", "axis"], ["six"]),
        helper.make_node("Reshape", ["six", "point_shape"], ["points"]),
    ]
    image = [
        helper.make_tensor_value_info(f"image.{camera}", TensorProto.UINT8, [1, IMAGE, IMAGE, 3])
        for camera in FR3.cameras
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            *image,
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, size]),
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, TEXT_LENGTH]),
        ],
        [
            helper.make_tensor_value_info("actions", TensorProto.FLOAT, [1, CHUNK_LENGTH, 7]),
            helper.make_tensor_value_info("points", TensorProto.FLOAT, [1, 2, 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
