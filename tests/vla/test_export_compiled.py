"""format=pt2: the checkpoint's actions from compiled code, and each way in which a package is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from volar.robots.artifact_runtime import instructions, misfit, this_machine
from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.robots.exported_policy import ArtifactError, ExportedPolicy
from volar.robots.interface import Policy
from volar.vla.checkpoint_policy import load
from volar.vla.export import ExportConfig, export
from volar.vla.export_graph import COMPILERS
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import VolarModel
from volar.vla.processor_volar import TorchPolicy, save_policy

compiled = pytest.mark.skipif(not any(shutil.which(name) for name in COMPILERS), reason="no C++ compiler")


@pytest.fixture(scope="module")
def exported(
    model: VolarModel, contract: PolicyContract, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("compiled")
    save_policy(root / "policy", model, contract, InstructionTokenizer.load())
    export(ExportConfig(policy=root / "policy", output=root / "artifact", format="pt2"))
    return root / "policy", root / "artifact"


@compiled
def test_compiled_code_acts_as_the_checkpoint(
    exported: tuple[Path, Path], require_same_actions: Callable[[TorchPolicy, Policy, int], None]
) -> None:
    names = {path.name for path in exported[1].iterdir()}
    assert "policy.pt2" in names
    assert "policy.onnx" not in names
    a, b = load(exported[0]), ExportedPolicy(exported[1])
    assert a.contract == b.contract
    require_same_actions(a, b, 20)


@compiled
def test_what_a_package_cannot_run_on_is_named(exported: tuple[Path, Path], tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    shutil.copytree(exported[1], artifact)
    manifest = json.loads((artifact / "artifact.json").read_text())
    here = manifest["built_for"]
    for change, said in (
        ({"torch": "1.0.0"}, "torch 1.0.0, this is"),
        ({"processor": "sparc"}, "processor sparc, this is"),
        ({"instructions": here["instructions"] + " avx4096"}, "with avx4096, which this one lacks"),
    ):
        (artifact / "artifact.json").write_text(json.dumps(manifest | {"built_for": here | change}))
        with pytest.raises(ArtifactError, match=said) as raised:
            ExportedPolicy(artifact)
        assert raised.value.stage == "model"
    (artifact / "artifact.json").write_text(json.dumps(manifest))
    package = bytearray((artifact / "policy.pt2").read_bytes())
    package[len(package) // 2] ^= 1
    (artifact / "policy.pt2").write_bytes(package)
    with pytest.raises(ArtifactError, match=r"policy\.pt2 has SHA-256"):
        ExportedPolicy(artifact)


@compiled
def test_without_torch_the_fix_is_named(exported: tuple[Path, Path]) -> None:
    code = (
        "import sys; from pathlib import Path; sys.modules['torch'] = None\n"  # whoever imports it gets an ImportError
        "from volar.robots.exported_policy import ArtifactError, ExportedPolicy\n"
        "try: ExportedPolicy(Path(sys.argv[1]))\n"
        "except ArtifactError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported[1])], capture_output=True, text=True, check=True, env=os.environ
    )
    assert "policy.pt2 needs torch" in done.stdout
    assert "format=onnx" in done.stdout


def test_a_package_fits_a_machine_with_more_instructions_only() -> None:
    here = this_machine()
    assert misfit(here, here) == ""
    assert misfit(here, here | {"instructions": here["instructions"] + " more"}) == ""
    assert instructions("processor : 0\nflags : hypervisor avx2 sse4_1 ibrs fma\n") == ["avx2", "fma", "sse4_1"]
    assert instructions("Features : asimd fp\n") == ["asimd", "fp"]
    assert "which this one lacks" in misfit(here | {"instructions": "b a"}, here | {"instructions": "a"})


def test_no_compiler_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VolarError, match=r"C\+\+ compiler"):
        export(ExportConfig(output=tmp_path / "artifact", format="pt2"))
    assert not list(tmp_path.iterdir())


def test_int8_is_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format=onnx"):
        ExportConfig(output=tmp_path, format="pt2", precision="int8")
