"""The same observations through the checkpoint, ONNX Runtime and the controller node give the same chunks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from volar.robots.exported_policy import ExportedPolicy
from volar.robots.interface import Observation
from volar.robots.policies import default_policy
from volar.vla.checkpoint_policy import load, load_parts
from volar.vla.export import ExportConfig, export
from volar.vla.processor_volar import TorchPolicy, save_policy

pytest.importorskip("rclpy")
pytestmark = pytest.mark.real_time

OBSERVATIONS = 100
INSTRUCTION = "lift the red block"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped one, which looks at every step here so that the node answers often."""
    folder = tmp_path_factory.mktemp("parity") / "policy"
    model, contract, tokenizer = load_parts(default_policy())
    save_policy(folder, model, replace(contract, execute_steps=1), tokenizer)
    return folder


def noise(camera: str, number: int) -> NDArray[np.uint8]:
    return np.random.default_rng([number, len(camera)]).integers(0, 256, (96, 96, 3), np.uint8)


def recorded(folder: Path, state_names: tuple[str, ...]) -> list[tuple[Observation, NDArray[np.float32]]]:
    """What the node's policy saw, and answered."""
    from rosbags.highlevel import AnyReader

    from volar.robots.ros2.messages import stamp_ns

    images: dict[int, dict[str, NDArray[np.uint8]]] = {}
    states: dict[int, NDArray[np.float32]] = {}
    chunks: dict[int, NDArray[np.float32]] = {}
    with AnyReader([folder]) as reader:
        for connection, _, data in reader.messages():
            message: Any = reader.deserialize(data, connection.msgtype)
            kind = connection.topic.removeprefix("/volar/")
            if kind == "chunk":
                rows = [point.positions for point in message.points]
                chunks[stamp_ns(message.header.stamp)] = np.array(rows, np.float32)
            elif kind == "observation/state":
                assert tuple(message.name) == state_names
                states[stamp_ns(message.header.stamp)] = np.array(message.position, np.float32)
            elif kind.startswith("observation/"):
                picture = message.data.reshape(message.height, message.width, 3)
                images.setdefault(stamp_ns(message.header.stamp), {})[kind.removeprefix("observation/")] = picture
    return [(Observation(images[at], states[at], INSTRUCTION, at), chunk) for at, chunk in chunks.items()]


def sure(policy: TorchPolicy, seen: Observation) -> NDArray[np.bool_]:
    """(H, A): where the best token leads the second by more than rounding moves either."""
    import torch

    with torch.inference_mode():
        logits = policy.graph.outputs(*policy.tensors(seen)).action_logits
    best = logits[0].topk(2, -1).values
    lead: NDArray[np.bool_] = (best[..., 0] - best[..., 1] > 1e-4).numpy()
    return lead


def test_a_hundred_observations(stage: Callable[..., tuple[Any, Any]], policy: Path, tmp_path: Path) -> None:
    export(ExportConfig(policy=policy, output=tmp_path / "artifact"))
    checkpoint, artifact = load(policy), ExportedPolicy(tmp_path / "artifact")
    patient = {"joint_state_age_s": "5.0", "camera_age_s": "5.0", "clock_jump_s": "5.0"}
    arm, controller = stage(policy=tmp_path / "artifact", **patient)
    arm.shape, arm.picture = (96, 96), noise
    arm.run()
    assert controller.transition("configure")
    found: list[tuple[Observation, NDArray[np.float32]]] = []
    while len(found) < OBSERVATIONS:  # a slow machine answers less often than ten times a second: it goes on
        folder = tmp_path / f"recording_{len(found)}"
        assert controller.set_text("record", folder).successful
        assert controller.transition("activate")
        told = len(arm.commands)
        controller.until(lambda told=told: len(arm.commands) > told)
        controller.until(lambda told=told: len(arm.commands) > told + 12 * OBSERVATIONS)
        assert controller.transition("deactivate")
        before = len(found)
        found += recorded(folder, checkpoint.contract.state_names)
        assert len(found) > before
    assert controller.terminate() == 0, controller.log
    decided = 0
    for seen, answered in found[:OBSERVATIONS]:
        np.testing.assert_array_equal(artifact.predict(seen).actions, answered)
        known = sure(checkpoint, seen)
        np.testing.assert_allclose(checkpoint.predict(seen).actions[known], answered[known], atol=1e-5)
        decided += int(known.sum())
    assert decided > 0.99 * OBSERVATIONS * answered.size
