"""Exported artifacts: what they compute, and every way in which one is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from volar.robots.contract import ContractError
from volar.robots.exported_policy import ArtifactError, ExportedPolicy
from volar.robots.interface import Observation, Policy
from volar.robots.tokenize_words import TokenizerError, WordTokenizer

if TYPE_CHECKING:
    from .conftest import TinyArtifact


def test_it_computes_the_graph(artifact: "TinyArtifact") -> None:
    policy = ExportedPolicy(artifact.path)
    assert isinstance(policy, Policy)
    assert policy.contract == artifact.contract()
    observation = artifact.observation(stamp_ns=123)
    chunk = policy.predict(observation)
    np.testing.assert_allclose(chunk.actions, artifact.expected_actions(observation.state), atol=1e-6)
    assert chunk.stamp_ns == 123
    assert chunk.dt_s == pytest.approx(0.1)
    _, points = policy.predict_with_points(observation)
    np.testing.assert_array_equal(points.reshape(-1), observation.state[:6])


def test_unknown_words_are_exposed(artifact: "TinyArtifact") -> None:
    policy = ExportedPolicy(artifact.path)
    assert policy.unknown_words("Lift the GREEN block, the green one!") == ("green", "one")
    assert policy.unknown_words("lift the red block") == ()


def test_misfit_observations_are_named(artifact: "TinyArtifact") -> None:
    policy, good = ExportedPolicy(artifact.path), artifact.observation()
    with pytest.raises(ContractError, match="wants cameras front 16x16, wrist 16x16; found front 8x8, wrist 8x8"):
        policy.predict(artifact.observation(pixels=8))
    with pytest.raises(ContractError, match="found front 16x16"):
        policy.predict(Observation({"front": good.images["front"]}, good.state, good.instruction, 0))
    with pytest.raises(ContractError, match="10 numbers, found 3"):
        policy.predict(Observation(good.images, good.state[:3], good.instruction, 0))
    with pytest.raises(TokenizerError, match="has 9 words, the policy takes at most 7"):
        policy.predict(artifact.observation("lift the red block " * 2 + "lift"))


def _edit_json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        raw = json.loads((path / name).read_text())
        change(raw)
        (path / name).write_text(json.dumps(raw))

    return edit


def _flip_a_bit(name: str) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (path / name).write_bytes(data)

    return flip


def _cut(name: str) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        (path / name).write_bytes((path / name).read_bytes()[:100])

    return cut


def _golden(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        data = dict(np.load(path / "golden.npz"))
        change(data)
        np.savez(path / "golden.npz", **data)

    return edit


@pytest.mark.parametrize(
    ("damage", "stage", "said"),
    [
        (lambda path: (path / "artifact.json").unlink(), "manifest", "volar-export writes"),
        (_cut("artifact.json"), "manifest", "cannot be read"),
        (_edit_json("artifact.json", lambda raw: raw.update(format_version=2)), "manifest", "version 2"),
        (_edit_json("artifact.json", lambda raw: raw.pop("tolerance")), "manifest", "tolerance"),
        (_edit_json("artifact.json", lambda raw: raw["files"].pop("policy.onnx")), "manifest", "policy.onnx"),
        (_edit_json("artifact.json", lambda raw: raw["files"].update({"../x": "0"})), "hash", "missing"),
        (lambda path: (path / "policy.onnx").unlink(), "hash", "policy.onnx is missing"),
        (_flip_a_bit("policy.onnx"), "hash", "policy.onnx"),
        (_flip_a_bit("README.md"), "hash", "README.md"),
        (_edit_json("artifact.json", lambda raw: raw.update(contract_sha256="0" * 64)), "contract", "manifest says"),
    ],
)
def test_damage_is_named(artifact: "TinyArtifact", damage: Callable[[Path], None], stage: str, said: str) -> None:
    damage(artifact.path)
    with pytest.raises(ArtifactError, match=said) as raised:
        ExportedPolicy(artifact.path, verify=False)
    assert raised.value.stage == stage
    assert str(artifact.path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("damage", "stage", "said"),
    [
        (_edit_json("contract.json", lambda raw: raw.update(robot="ur5e")), "contract", "SHA-256"),
        (_edit_json("contract.json", lambda raw: raw.pop("robot")), "contract", "robot"),
        (_edit_json("tokenizer.json", lambda raw: raw["model"].update(type="BPE")), "tokenizer", "BPE"),
        (_edit_json("tokenizer.json", lambda raw: raw["model"]["vocab"].pop("<unk>")), "tokenizer", "<unk>"),
        (_edit_json("tokenizer.json", lambda raw: raw["model"]["vocab"].update(red=1)), "tokenizer", "other ids"),
        (_cut("policy.onnx"), "model", "ONNX Runtime cannot load"),
        (_golden(lambda data: data["actions"].__setitem__((1, 0, 0), 0.9)), "output", "golden observation 1"),
        (_golden(lambda data: data["actions"].__setitem__((0, 0, 0), np.nan)), "output", "golden observation 0"),
    ],
)
def test_what_diverges_is_named_even_with_fitting_hashes(
    artifact: "TinyArtifact", damage: Callable[[Path], None], stage: str, said: str
) -> None:
    damage(artifact.path)
    artifact.rehash()
    with pytest.raises(ArtifactError, match=said) as raised:
        ExportedPolicy(artifact.path)
    assert raised.value.stage == stage


def test_verify_false_skips_the_golden_set_only(artifact: "TinyArtifact") -> None:
    _golden(lambda data: data["actions"].__setitem__((1, 0, 0), 0.9))(artifact.path)
    artifact.rehash()
    ExportedPolicy(artifact.path, verify=False)


def test_word_tokenizer_agrees_with_huggingface(artifact: "TinyArtifact") -> None:
    from tokenizers import Tokenizer

    path = artifact.path / "tokenizer.json"
    ours, theirs = WordTokenizer.load(path, 8), Tokenizer.from_file(str(path))
    for text in ("lift the red block", "Lift,the RED-block!", "", "  ", "a 2 b", "lift the é block", "<s> lift"):
        ids = theirs.encode(text).ids
        assert ours.encode(text).tolist() == [2, *ids, *[0] * (7 - len(ids))]


def test_the_robot_computer_needs_no_torch(artifact: "TinyArtifact") -> None:
    """Loading and running an artifact imports nothing of the training stack."""
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from volar.robots.exported_policy import ExportedPolicy;"
        "ExportedPolicy(Path(sys.argv[1]));"
        "print([m for m in ('torch', 'transformers', 'lerobot', 'tokenizers', 'mujoco') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(artifact.path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
