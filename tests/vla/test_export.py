import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.interface import Observation
from volar.vla.checkpoint_policy import load
from volar.vla.export import ExportConfig, export
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import VolarModel
from volar.vla.processor_volar import save_policy

TOKENIZER = InstructionTokenizer.load()
Look = Callable[[int], Observation]


@pytest.fixture(scope="module")
def exported(
    model: VolarModel, contract: PolicyContract, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("export")
    save_policy(root / "policy", model, contract, TOKENIZER)
    export(ExportConfig(policy=root / "policy", output=root / "artifact"))
    return root / "policy", root / "artifact"


def test_the_artifact_acts_as_the_checkpoint(exported: tuple[Path, Path], look: Look) -> None:
    a, b = load(exported[0]), ExportedPolicy(exported[1])
    assert a.contract == b.contract
    for seed in range(20):
        seen = look(seed)
        np.testing.assert_allclose(a.predict(seen).actions, b.predict(seen).actions, atol=1e-4)


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
