"""Between physical units and the network: normalization in, action tokens out, as one graph.

`InferenceGraph` is both what a checkpoint runs and what is exported, so the two cannot differ in their
processing. Its inputs are raw: uint8 images, the state in physical units, token ids.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from volar.datasets.normalizer import Normalizer
from volar.robots.contract import PolicyContract
from volar.robots.exported_policy import check_observation
from volar.robots.interface import ActionChunk, Observation
from volar.vla.action_tokenizers import action_tokenizer
from volar.vla.action_tokenizers.uniform_bins import BINS
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import VOCABULARY, Outputs, VolarModel, pixels_from_images

STATE_CLIP = 3.0  # normalized state beyond three half-ranges tells the network nothing more


class StateScaler(nn.Module):
    """Normalizes the state vector: (B, S) physical -> (B, S), the bounds of the contract's mode at -1 and 1."""

    offset: Tensor
    scale: Tensor

    def __init__(self, contract: PolicyContract) -> None:
        super().__init__()
        normalizer = Normalizer.of_contract(contract, "observation.state")
        self.register_buffer("offset", torch.tensor(normalizer.offset, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(normalizer.scale, dtype=torch.float32))

    def forward(self, state: Tensor) -> Tensor:
        return ((state - self.offset) * self.scale).clamp(-STATE_CLIP, STATE_CLIP)


class InferenceGraph(nn.Module):
    """Raw observation tensors -> chunk in physical units. Greedy decoding of the action tokens."""

    table: Tensor

    def __init__(self, model: VolarModel, contract: PolicyContract) -> None:
        super().__init__()
        self.model = model
        self.contract = contract
        self.state_scaler = StateScaler(contract)
        normalizer = Normalizer.of_contract(contract, "action")
        # The head's bins rise, the tokens' ids fall. Physical values of each bin, clipped to the bounds: (A, 256)
        ids = VOCABULARY - 1 - np.arange(BINS)
        centres = action_tokenizer(model.config.tokenizer, VOCABULARY).decode(ids)[:, None]  # (256, 1)
        table = normalizer.unnormalize(np.repeat(centres, contract.action.size, 1)).T
        table = np.clip(table, np.array(contract.action.low)[:, None], np.array(contract.action.high)[:, None])
        self.register_buffer("table", torch.tensor(table, dtype=torch.float32))

    def forward(self, images: Mapping[str, Tensor], state: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """{camera: uint8 (B, H, W, 3)}, (B, S), (B, T) -> actions (B, H, A), points (B, 2, 3) [m]."""
        outputs = self.outputs(images, state, input_ids)
        return self.decode(outputs), outputs.points

    def outputs(self, images: Mapping[str, Tensor], state: Tensor, input_ids: Tensor) -> Outputs:
        """What the network says about raw observation tensors, shapes as in `forward`."""
        pixels = pixels_from_images(images, self.model.config.backbone.image_size)
        outputs: Outputs = self.model(pixels, input_ids, self.state_scaler(state))
        return outputs

    def decode(self, outputs: Outputs) -> Tensor:
        """The most probable token of each dimension and step, in physical units: (B, H, A)."""
        bins = outputs.action_logits.argmax(-1)  # (B, H, A)
        flat = bins + torch.arange(self.table.shape[0], device=bins.device) * BINS
        return self.table.flatten()[flat]


class TorchPolicy:
    """A checkpoint as a `Policy`; exported artifacts run the same graph without torch."""

    def __init__(self, model: VolarModel, contract: PolicyContract, tokenizer: InstructionTokenizer) -> None:
        self.contract = contract
        self.tokenizer = tokenizer
        self.graph = InferenceGraph(model, contract).eval()

    def reset(self, seed: int) -> None:
        """Nothing to reset: decoding is greedy and the policy has no memory."""

    @torch.inference_mode()
    def predict(self, observation: Observation) -> ActionChunk:
        """Raises `ContractError` when cameras or state are not the contract's."""
        check_observation(self.contract, observation)
        images = {camera.name: torch.tensor(observation.images[camera.name])[None] for camera in self.contract.cameras}
        text = self.contract.instruction_template.format(instruction=observation.instruction)
        ids = torch.from_numpy(self.tokenizer.encode([text]))
        actions, _ = self.graph(images, torch.from_numpy(observation.state)[None], ids)
        return ActionChunk(actions[0].numpy(), observation.stamp_ns, 1.0 / self.contract.action.rate_hz)


def save_policy(directory: Path, model: VolarModel, contract: PolicyContract, tokenizer: InstructionTokenizer) -> None:
    """Writes `config.json`, `contract.json`, `tokenizer.json`, `model.safetensors`."""
    from safetensors.torch import save_model

    directory.mkdir(parents=True, exist_ok=True)
    model.config.save(directory / "config.json")
    contract.save(directory / "contract.json")
    tokenizer.save(directory / "tokenizer.json")
    save_model(model, str(directory / "model.safetensors"), metadata={"contract_sha256": contract.sha256})
