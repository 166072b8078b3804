"""volar-export: a policy directory to one self-contained, verified artifact.

policy.onnx      raw images, state and token ids in; actions in physical units out; or, with format=pt2,
policy.pt2       the same, compiled for this machine's processor and torch
contract.json    what the policy assumes; its hash is in artifact.json and in the model's metadata
tokenizer.json   words of the instruction to ids
golden.npz       observations with the chunks they must give, checked at every load
README.md        model card
artifact.json    format version, hash of every other file
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from volar.robots.command_line import run
from volar.robots.errors import VolarError
from volar.robots.output_folder import contents

if TYPE_CHECKING:
    from volar.vla.processor_volar import TorchPolicy

TOLERANCE = 1e-5  # largest difference of an action, in its own unit (m, rad, 1), between torch and the artifact
FLOW_TOLERANCE = 1e-4  # of numbers that are no bins' centres: each step adds the last one's rounding
GOLDEN_OBSERVATIONS = 8
# int8 decides for another token here and there, and for an open or closed gripper where both are likely. What that
# costs in success is measured, not deduced: volar-evaluate policy=ARTIFACT.
INT8_AGREEMENT = 0.9
EXAMPLES = (
    "volar-export policy=runs/policy output=runs/artifact",
    "volar-export output=runs/artifact overwrite=true",
    "volar-export policy=runs/policy precision=int8 output=runs/artifact-int8",
    "volar-export policy=runs/policy format=pt2 output=runs/artifact-compiled",
)


@dataclass(frozen=True)
class ExportConfig:
    """Settings of `volar-export`."""

    output: Path = field(metadata={"help": "folder for the artifact"})
    policy: Path | None = field(
        default=None, metadata={"help": "policy directory or training run; the shipped one by default"}
    )
    format: Literal["onnx", "pt2"] = field(
        default="onnx",
        metadata={
            "help": "onnx runs wherever ONNX Runtime does; pt2 is machine code (AOTInductor, on the CPU) for this "
            "processor and this torch, and needs a C++ compiler here"
        },
    )
    precision: Literal["fp32", "int8"] = field(
        default="fp32",
        metadata={"help": "int8: weights in 8 bits, activations quantized as they come; faster on a CPU"},
    )
    overwrite: bool = field(default=False, metadata={"help": "replace what is in output"})

    def __post_init__(self) -> None:
        if self.format == "pt2" and self.precision == "int8":
            raise ValueError("precision=int8 needs format=onnx; format=pt2 is fp32")


def export(config: ExportConfig) -> None:
    """Writes and verifies the artifact. Raises `VolarError` when the output is taken or parity fails."""
    from volar.robots.artifact_runtime import this_machine
    from volar.robots.exported_policy import FORMAT_VERSION, MANIFEST, ExportedPolicy, Manifest
    from volar.robots.policies import default_policy, find_policy
    from volar.vla.checkpoint_policy import load
    from volar.vla.export_graph import require_compiler, write_model

    if config.format == "pt2":
        require_compiler()
    if config.output.exists() and not config.output.is_dir():
        raise VolarError(f"output {config.output} is a file; give a folder")
    if contents(config.output):
        if not (config.output / MANIFEST).is_file():  # nor with overwrite=true: a wrong path must not cost it
            raise VolarError(f"output {config.output} holds something else than an artifact; give another folder")
        if not config.overwrite:
            raise VolarError(f"output {config.output} holds an artifact; give another folder, or overwrite=true")
    source = find_policy(config.policy or default_policy())
    policy = exportable(load(source))
    temporary = config.output.with_name(f".{config.output.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_model(policy, temporary / f"policy.{config.format}", config.precision)
    policy.contract.save(temporary / "contract.json")
    policy.tokenizer.save(temporary / "tokenizer.json")
    golden: dict[str, Any] = golden_set(policy)
    np.savez_compressed(temporary / "golden.npz", **golden)
    (temporary / "README.md").write_text(model_card(policy, source, config))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        format=config.format,
        contract_sha256=policy.contract.sha256,
        text_length=policy.tokenizer.length,
        files={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(temporary.iterdir())},
        tolerance=FLOW_TOLERANCE if policy.graph.model.config.decoder == "flow" else TOLERANCE,
        precision=config.precision,
        agreement=INT8_AGREEMENT if config.precision == "int8" else 1.0,
        built_for=this_machine() if config.format == "pt2" else {},
    )
    (temporary / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n")
    ExportedPolicy(temporary)  # verifies hashes, contract and the golden set, or raises
    shutil.rmtree(config.output, ignore_errors=True)
    temporary.rename(config.output)
    size = sum(path.stat().st_size for path in config.output.iterdir()) / 1e6
    print(f"artifact: {config.output} ({size:.1f} MB, contract {policy.contract.sha256[:12]}, golden set verified)")


def exportable(policy: "TorchPolicy") -> "TorchPolicy":
    """The policy with low-rank updates merged, in float32. Raises `VolarError` for one that is no fixed graph."""
    from volar.vla.adapters import merge
    from volar.vla.processor_volar import TorchPolicy

    config = policy.graph.model.config
    if config.decoder == "autoregressive" and config.tokenizer != "bins":
        raise VolarError(
            f"no static graph decodes tokenizer={config.tokenizer}, whose decoding is not in the network: run the "
            "policy directory itself (volar-serve, volar-evaluate), or train with tokenizer=bins or another decoder"
        )
    return TorchPolicy(merge(policy.graph.model.cpu().float()), policy.contract, policy.tokenizer)


def golden_set(policy: "TorchPolicy") -> dict[str, NDArray[Any]]:
    """Random observations inside the contract, with the torch policy's chunks; see `exported_policy`.

    Images are smooth random fields, states drawn between q01 and q99. An observation whose greedy tokens
    hang on a logit margin below rounding is drawn again: either answer would be right there.
    """
    import torch

    from volar.robots.interface import Observation

    contract = policy.contract
    rng = np.random.default_rng(0)
    state = contract.statistics["observation.state"]
    texts = ["lift the red block", "put the blue block on the plate", "push the green block to the left"]
    keys = ("state", "input_ids", "instruction", "actions", "points")
    kept: dict[str, list[NDArray[np.generic]]] = {key: [] for key in keys}
    for _ in range(50 * GOLDEN_OBSERVATIONS):
        if len(kept["state"]) == GOLDEN_OBSERVATIONS:
            break
        images = {c.name: _smooth_image(rng, c.height, c.width) for c in contract.cameras}
        observation = Observation(
            images, rng.uniform(state.q01, state.q99).astype(np.float32), texts[len(kept["state"]) % len(texts)], 0
        )
        tensors = policy.tensors(observation)
        with torch.inference_mode():
            actions, points, margin = policy.graph.answer(*tensors)
        if float(margin) < 1e-3:
            continue
        for name, image in images.items():
            kept.setdefault(f"image.{name}", []).append(image)
        ids = tensors[-1][0].numpy()
        row = {"state": observation.state, "input_ids": ids, "instruction": np.array(observation.instruction)}
        for key, value in (row | {"actions": actions[0].numpy(), "points": points[0].numpy()}).items():
            kept[key].append(value)
    else:
        raise VolarError("no golden set: the best two tokens tie in nearly every observation; is the policy trained?")
    return {key: np.stack(values) for key, values in kept.items()}


def _smooth_image(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    coarse = rng.uniform(0, 255, (6, 6, 3))
    rows, columns = (np.arange(height) * 6) // height, (np.arange(width) * 6) // width
    image: NDArray[np.uint8] = coarse[rows][:, columns].astype(np.uint8)
    return image


def model_card(policy: "TorchPolicy", source: Path, settings: ExportConfig) -> str:
    contract = policy.contract
    cameras = ", ".join(f"{c.name} {c.width}x{c.height}" for c in contract.cameras)
    action, config = contract.action, policy.graph.model.config
    tokens = f"{config.decoder}, action tokenizer: {config.tokenizer}"
    decoder = "flow, always from the same noise" if config.decoder == "flow" else tokens
    return f"""# Volar policy for {contract.robot}

- backbone: {config.backbone.name}, decoder: {decoder}, exported from `{source.name}`
- artifact: {settings.format}, {settings.precision}
- contract: `{contract.sha256}`
- action: {action.kind} at {action.rate_hz:g} Hz ({", ".join(action.names)}), frame {action.frame},
  gripper {action.gripper}; chunks of {contract.chunk_length}, of which {contract.execute_steps} are
  executed before looking again
- observation: {cameras}; state {", ".join(contract.state_names)}

Run it: `volar-control policy=ARTIFACT robot=sim/{contract.robot} instruction="lift the red block"`.
Check it: `volar-doctor ARTIFACT`.
"""


def main() -> int:
    return run("volar-export", ExportConfig, export, doc=__doc__, examples=EXAMPLES)


if __name__ == "__main__":
    raise SystemExit(main())
