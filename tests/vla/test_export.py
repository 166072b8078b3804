import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from volar.robots import artifact_runtime
from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.interface import Observation, Policy
from volar.vla.checkpoint_policy import load
from volar.vla.export import ExportConfig, export
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import VolarModel
from volar.vla.processor_volar import TorchPolicy, save_policy

TOKENIZER = InstructionTokenizer.load()
Look = Callable[[int], Observation]
SameActions = Callable[[TorchPolicy, Policy, int], None]


@pytest.fixture(scope="module", params=["base", "hand"])
def exported(
    model: VolarModel,
    contract: PolicyContract,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("export")
    if request.param != "base":
        model = VolarModel(replace(model.config, points=request.param, finds_hand=True), contract).eval()
    save_policy(root / "policy", model, contract, TOKENIZER)
    export(ExportConfig(policy=root / "policy", output=root / "artifact"))
    return root / "policy", root / "artifact"


def test_the_artifact_acts_as_the_checkpoint(exported: tuple[Path, Path], require_same_actions: SameActions) -> None:
    a, b = load(exported[0]), ExportedPolicy(exported[1])
    assert a.contract == b.contract
    require_same_actions(a, b, 20)


def test_the_output_is_not_overwritten(exported: tuple[Path, Path]) -> None:
    with pytest.raises(VolarError, match="overwrite=true"):
        export(ExportConfig(policy=exported[0], output=exported[1]))
    export(ExportConfig(policy=exported[0], output=exported[1], overwrite=True))


def test_another_robots_weights_in_the_artifact_are_noticed(exported: tuple[Path, Path], tmp_path: Path) -> None:
    for path in exported[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    contract = json.loads((tmp_path / "contract.json").read_text()) | {"robot": "ur5e"}
    (tmp_path / "contract.json").write_text(json.dumps(contract))
    with pytest.raises(VolarError, match=r"contract\.json"):
        ExportedPolicy(tmp_path)


def test_no_policy_names_what_one_looks_like(tmp_path: Path) -> None:
    with pytest.raises(VolarError, match="no policy at"):
        export(ExportConfig(policy=tmp_path / "nothing", output=tmp_path / "artifact"))


def test_a_file_for_a_folder_and_an_artifact_for_a_policy_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VolarError, match="file is a file; give a folder"):
        export(ExportConfig(policy=tmp_path, output=tmp_path / "file", overwrite=True))
    (tmp_path / "artifact.json").write_text("{}")
    with pytest.raises(VolarError, match="is an exported artifact, which has no weights to go on with"):
        export(ExportConfig(policy=tmp_path, output=tmp_path / "again"))


def test_int8_is_held_to_its_own_bound(
    exported: tuple[Path, Path], look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smaller, the same on every processor, and held to agree with torch in nine numbers of ten, or refused."""
    export(ExportConfig(policy=exported[0], output=tmp_path / "int8", precision="int8"))
    whole, small = ((folder / "policy.onnx").stat().st_size for folder in (exported[1], tmp_path / "int8"))
    assert small < 0.5 * whole
    manifest = json.loads((tmp_path / "int8" / "artifact.json").read_text())
    assert (manifest["precision"], manifest["agreement"]) == ("int8", 0.9)
    a, b = load(exported[0]), ExportedPolicy(tmp_path / "int8")
    same = [np.isclose(a.predict(look(i)).actions, b.predict(look(i)).actions, atol=1e-4).mean() for i in range(20)]
    assert np.mean(same) > 0.8
    with monkeypatch.context() as patch:
        patch.setattr(artifact_runtime, "cpuinfo", lambda: "flags : avx2 fma\n")  # sums in 16 bits, if it is let
        elsewhere = ExportedPolicy(tmp_path / "int8")
    for i in range(20):
        np.testing.assert_array_equal(elsewhere.predict(look(i)).actions, b.predict(look(i)).actions)

    golden = dict(np.load(tmp_path / "int8" / "golden.npz"))
    golden["actions"][:2] += 0.5  # a quarter of all numbers
    np.savez(tmp_path / "int8" / "golden.npz", **golden)
    manifest["files"]["golden.npz"] = hashlib.sha256((tmp_path / "int8" / "golden.npz").read_bytes()).hexdigest()
    (tmp_path / "int8" / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(VolarError, match=r"golden observation 0 differs .* 90.0% have to"):
        ExportedPolicy(tmp_path / "int8")
