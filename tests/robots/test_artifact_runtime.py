"""Where an artifact is computed: what the environment asks for, or an error that says what there is."""

from typing import TYPE_CHECKING

import numpy as np
import pytest

from volar.robots import artifact_runtime, doctor
from volar.robots.artifact_runtime import (
    PROVIDER_VARIABLE,
    PROVIDERS,
    RuntimeFailure,
    available_providers,
    choose_provider,
)
from volar.robots.exported_policy import ArtifactError, ExportedPolicy

if TYPE_CHECKING:
    from .conftest import TinyArtifact


def test_the_order_of_providers() -> None:
    cpu, cuda, tensorrt = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
    everything = ["cpu", "cuda", "tensorrt"]
    assert choose_provider("auto", ["cpu"]) == [cpu]
    assert choose_provider("auto", everything) == [cuda, cpu]  # TensorRT builds for minutes: only when asked for
    assert choose_provider("cpu", everything) == [cpu]
    assert choose_provider("tensorrt", everything) == [tensorrt, cuda, cpu]
    with pytest.raises(RuntimeFailure, match="cuda: ONNX Runtime here has cpu; pip install onnxruntime-gpu"):
        choose_provider("cuda", ["cpu"])
    with pytest.raises(RuntimeFailure, match="gpu: ONNX Runtime here has cpu, cuda, tensorrt; or auto"):
        choose_provider("gpu", everything)


def test_what_is_not_there_is_refused_at_load(artifact: "TinyArtifact", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROVIDER_VARIABLE, "cpu")
    seen = artifact.observation()
    actions = ExportedPolicy(artifact.path).predict(seen).actions
    np.testing.assert_allclose(actions, artifact.expected_actions(seen.state), atol=1e-6)
    for provider in {*PROVIDERS, "abacus"} - set(available_providers()):
        monkeypatch.setenv(PROVIDER_VARIABLE, provider)
        with pytest.raises(ArtifactError, match=f"{PROVIDER_VARIABLE}={provider}: ONNX Runtime here has cpu") as raised:
            ExportedPolicy(artifact.path)
        assert raised.value.stage == "model"


def test_going_on_without_the_gpu_is_said(artifact: "TinyArtifact", monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime leaves out a provider whose libraries are missing."""
    monkeypatch.setattr(artifact_runtime, "available_providers", lambda: ["cpu", "cuda"])
    monkeypatch.setenv(PROVIDER_VARIABLE, "auto")
    with pytest.warns(RuntimeWarning, match="CUDAExecutionProvider does not start here, only CPUExecutionProvider"):
        ExportedPolicy(artifact.path)
    monkeypatch.setenv(PROVIDER_VARIABLE, "cuda")
    with pytest.raises(ArtifactError, match=f"does not start here, .*{PROVIDER_VARIABLE}=cpu uses that"):
        ExportedPolicy(artifact.path)


def test_the_doctor_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROVIDER_VARIABLE, "cpu")
    assert "takes CPUExecutionProvider" in doctor.check_onnxruntime().found
    monkeypatch.setenv(PROVIDER_VARIABLE, "abacus")
    check = doctor.check_onnxruntime()
    assert check.status == "broken"
    assert "abacus" in check.found
    assert "unset it" in check.fix
