"""A policy from an exported artifact: NumPy and ONNX Runtime, nothing of the code that trained it.

The artifact is a folder written by `volar-export`: `artifact.json` (format, contract hash, SHA-256 of every
other file), `contract.json`, `policy.onnx` or `policy.pt2`, `tokenizer.json`, `golden.npz` (observations with the
actions the exporter computed for them) and `README.md`. Normalization and de-tokenization are inside the graph.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from volar.robots.artifact_runtime import OnnxRuntime, Pt2Runtime, Runtime, RuntimeFailure
from volar.robots.contract import ContractError, PolicyContract
from volar.robots.errors import VolarError
from volar.robots.interface import ActionChunk, Observation
from volar.robots.tokenize_subwords import load_tokenizer
from volar.robots.tokenize_words import TokenizerError

FORMAT_VERSION = 1
FORMATS = ("onnx", "pt2")
MANIFEST, CONTRACT, TOKENIZER, GOLDEN = "artifact.json", "contract.json", "tokenizer.json", "golden.npz"
Stage = Literal["manifest", "hash", "contract", "tokenizer", "model", "output"]


_NEWER = ("precision", "agreement", "built_for")  # fields that an older artifact may lack


class ArtifactError(VolarError):
    """An artifact that cannot be trusted. `stage`: the first check that failed."""

    def __init__(self, path: Path, stage: Stage, reason: str) -> None:
        self.path, self.stage = path, stage
        super().__init__(f"artifact {path}: {stage}: {reason}")


@dataclass(frozen=True)
class Manifest:
    """`artifact.json`. `text_length`: T; `files`: name -> SHA-256; `tolerance`: of the golden actions; `precision`:
    `fp32` or `int8`; `agreement`: smallest share of the golden numbers that lie within the tolerance; `built_for`: the
    machine of a compiled `policy.pt2` (`artifact_runtime.this_machine`)."""

    format_version: int
    format: str
    contract_sha256: str
    text_length: int
    files: dict[str, str]
    tolerance: float
    precision: str = "fp32"
    agreement: float = 1.0
    built_for: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return f"policy.{self.format}"

    @staticmethod
    def load(path: Path) -> "Manifest":
        """Reads the manifest of the artifact folder `path`. Raises `ArtifactError`."""
        if not (path / MANIFEST).is_file():
            raise ArtifactError(path, "manifest", f"no {MANIFEST}; volar-export writes such a folder")
        try:
            raw = json.loads((path / MANIFEST).read_text())
            wanted = Manifest.__dataclass_fields__.keys() - {name for name in _NEWER if name not in raw}
            found = Manifest(**{name: raw[name] for name in wanted})
        except KeyError as error:
            raise ArtifactError(path, "manifest", f"{MANIFEST} lacks the field {error}") from error
        except (ValueError, TypeError) as error:
            raise ArtifactError(path, "manifest", f"{MANIFEST} cannot be read: {error}") from error
        if found.format_version != FORMAT_VERSION or found.format not in FORMATS:
            raise ArtifactError(
                path,
                "manifest",
                f"format {found.format!r} version {found.format_version} is none of {', '.join(FORMATS)}, "
                f"version {FORMAT_VERSION}; "
                "export it again with this volar",
            )
        return found


def check_observation(contract: PolicyContract, observation: Observation) -> None:
    """Raises `ContractError`, naming what is wanted and found, when cameras or state do not fit."""
    cameras = {c.name: (c.height, c.width) for c in contract.cameras}
    found: dict[str, tuple[int, ...]] = {name: image.shape[:2] for name, image in observation.images.items()}
    if cameras != found:
        raise ContractError(f"the policy wants cameras {_sizes(cameras)}; found {_sizes(found)}")
    if observation.state.shape != (len(contract.state_names),):
        raise ContractError(
            f"the policy wants a state of {len(contract.state_names)} numbers, found {len(observation.state)}"
        )


class ExportedPolicy:
    """`Policy` from an artifact folder.

    Every file is checked against its hash and the golden set is run; `verify=False` skips only the
    golden set. `threads`: of ONNX Runtime's or torch's operators.
    Raises `ArtifactError` naming the stage that diverged.
    """

    def __init__(self, path: Path, *, verify: bool = True, threads: int = 1) -> None:
        self.path = path
        self.manifest = Manifest.load(path)
        self._check_files()
        self._contract = self._load_contract()
        try:
            self._tokenizer = load_tokenizer(path / TOKENIZER, self.manifest.text_length)
        except TokenizerError as error:
            raise ArtifactError(path, "tokenizer", str(error)) from error
        self._runtime = self._load_model(threads)
        if verify:
            self._check_golden()

    @property
    def contract(self) -> PolicyContract:
        return self._contract

    def reset(self, seed: int) -> None:
        """The policy keeps no state and draws nothing; the seed decides nothing."""

    def predict(self, observation: Observation) -> ActionChunk:
        """Raises `ContractError` when cameras or state differ from the contract's, `TokenizerError` on a
        too long instruction."""
        actions, _ = self.predict_with_points(observation)
        return ActionChunk(actions, observation.stamp_ns, 1.0 / self._contract.action.rate_hz)

    def predict_with_points(self, observation: Observation) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Actions (H, A) in physical units, and where the policy points: positions (2, 3) [m], base frame,
        of the object the instruction names and of where it is to go."""
        check_observation(self._contract, observation)
        text = self._contract.instruction_template.format(instruction=observation.instruction)
        return self._run(dict(observation.images), observation.state, self._tokenizer.encode(text))

    def unknown_words(self, instruction: str) -> tuple[str, ...]:
        """The words of an instruction that the policy was never trained on."""
        return self._tokenizer.unknown_words(instruction)

    def _run(
        self, images: dict[str, NDArray[np.uint8]], state: NDArray[np.float32], ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        feeds: dict[str, Any] = {f"image.{c.name}": images[c.name][None] for c in self._contract.cameras}
        actions, points = self._runtime.run(feeds | {"state": state[None], "input_ids": ids[None]})
        return actions[0], points[0]

    def _check_files(self) -> None:
        missing = [
            name for name in (CONTRACT, self.manifest.model, TOKENIZER, GOLDEN) if name not in self.manifest.files
        ]
        if missing:
            raise ArtifactError(self.path, "manifest", f"{MANIFEST} does not list {', '.join(missing)}")
        for name, wanted in sorted(self.manifest.files.items()):
            file = self.path / name
            if Path(name).name != name or not file.is_file():
                raise ArtifactError(self.path, "hash", f"{name} is missing; copy the artifact again")
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != wanted:
                raise ArtifactError(
                    self.path, "hash", f"{name} has SHA-256 {found[:12]}, the manifest {wanted[:12]}: damaged or edited"
                )

    def _load_contract(self) -> PolicyContract:
        try:
            contract = PolicyContract.load(self.path / CONTRACT)
        except ContractError as error:
            raise ArtifactError(self.path, "contract", str(error)) from error
        if contract.sha256 != self.manifest.contract_sha256:
            raise ArtifactError(
                self.path,
                "contract",
                f"its SHA-256 is {contract.sha256[:12]}, the manifest says {self.manifest.contract_sha256[:12]}",
            )
        return contract

    def _load_model(self, threads: int) -> Runtime:
        file = self.path / self.manifest.model
        try:
            runtime: Runtime = (
                Pt2Runtime(file, threads, self.manifest.built_for)
                if self.manifest.format == "pt2"
                else OnnxRuntime(file, threads)
            )
        except RuntimeFailure as error:
            raise ArtifactError(self.path, "model", str(error)) from error
        self._check_signature(runtime)
        return runtime

    def _check_signature(self, runtime: Runtime) -> None:
        contract = self._contract
        wanted: dict[str, list[int]] = {f"image.{c.name}": [1, c.height, c.width, 3] for c in contract.cameras}
        wanted |= {"state": [1, len(contract.state_names)], "input_ids": [1, self.manifest.text_length]}
        wanted |= {"actions": [1, contract.chunk_length, contract.action.size], "points": [1, 2, 3]}
        if runtime.shapes != wanted:
            raise ArtifactError(self.path, "model", f"the contract wants {wanted}, the graph has {runtime.shapes}")

    def _check_golden(self) -> None:
        """Runs the golden set: first that the instructions tokenize as they did, then the actions."""
        with np.load(self.path / GOLDEN, allow_pickle=False) as golden:
            data = {name: golden[name] for name in golden.files}
        errors: list[NDArray[np.float32]] = []
        for i, instruction in enumerate(data["instruction"]):
            text = self._contract.instruction_template.format(instruction=str(instruction))
            if not np.array_equal(self._tokenizer.encode(text), data["input_ids"][i]):
                raise ArtifactError(self.path, "tokenizer", f"{str(instruction)!r} gives other ids than at export")
            images = {c.name: data[f"image.{c.name}"][i] for c in self._contract.cameras}
            actions, _ = self._run(images, data["state"][i], data["input_ids"][i])
            errors.append(np.abs(actions - data["actions"][i]))
        within = np.stack(errors) <= self.manifest.tolerance  # (N, H, A); False for a NaN, too
        if within.mean() < self.manifest.agreement:
            i = int(np.flatnonzero(~within.reshape(len(within), -1).all(axis=1))[0])
            raise ArtifactError(
                self.path,
                "output",
                f"golden observation {i} differs by {float(errors[i].max()):.3g} on {self._runtime.where}, "
                f"the tolerance is {self.manifest.tolerance:.3g}; {within.mean():.1%} of all numbers lie within it, "
                f"{self.manifest.agreement:.1%} have to",
            )


def _sizes(sizes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {width}x{height}" for name, (height, width) in sorted(sizes.items())) or "none"
