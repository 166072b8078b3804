"""Between physical units and the network: normalization in, action tokens out, as one graph.

`InferenceGraph` is both what a checkpoint runs and what is exported, so the two cannot differ in their
processing. Its inputs are raw: uint8 images, the state in physical units, token ids.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from volar.datasets.normalizer import Normalizer
from volar.robots.contract import PolicyContract
from volar.robots.exported_policy import check_observation
from volar.robots.interface import ActionChunk, Observation
from volar.vla.action_tokenizers import action_tokenizer, save_tokenizer
from volar.vla.action_tokenizers.uniform_bins import BINS
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import Outputs, VolarModel, pixels_from_images

STATE_CLIP = 3.0  # normalized state beyond three half-ranges tells the network nothing more
PIPELINES = ("policy_preprocessor.json", "policy_postprocessor.json")  # of LeRobot, see `vla/lerobot_plugin/`


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
    """Raw observation tensors -> chunk in physical units. Greedy decoding of the action tokens, if there are any.

    Where the network is: on its device.
    """

    table: Tensor
    noise: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self, model: VolarModel, contract: PolicyContract) -> None:
        super().__init__()
        self.model = model
        self.contract = contract
        self.state_scaler = StateScaler(contract)
        normalizer = Normalizer.of_contract(contract, "action")
        # The head's bins rise, the tokens' ids fall. Physical values of each bin, clipped to the bounds: (A, 256)
        centres = action_tokenizer("bins", BINS).decode(BINS - 1 - np.arange(BINS))[:, None]  # (256, 1)
        self.low, self.high = np.array(contract.action.low), np.array(contract.action.high)
        table = normalizer.unnormalize(np.repeat(centres, contract.action.size, 1)).T
        table = np.clip(table, self.low[:, None], self.high[:, None])
        self.register_buffer("table", torch.tensor(table, dtype=torch.float32))
        self.register_buffer("offset", torch.tensor(normalizer.offset, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(normalizer.inverse_scale, dtype=torch.float32))
        # What an artifact flows from: always the same, so that it answers the same.
        drawn = torch.randn(1, *model.action_shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", drawn)
        there = next(model.parameters()).device
        for module in (self.state_scaler, self):  # without `to`, which would go through the network's weights as well
            for name, value in module.named_buffers(recurse=False):
                setattr(module, name, value.to(there))

    def forward(
        self,
        images: Mapping[str, Tensor],
        state: Tensor,
        input_ids: Tensor,
        noise: Tensor | None = None,
        camera_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """{camera: uint8 (B, H, W, 3)}, (B, S), (B, T) -> actions (B, H, A), points (B, 2, 3) [m].

        `noise` (B, H, A): of decoder flow; one fixed chunk of it when None. `camera_mask`: bool (B, C), False where a
        camera is not there, which no robot's observation lacks.
        """
        actions, points, _ = self.answer(images, state, input_ids, noise, camera_mask)
        return actions, points

    def answer(
        self,
        images: Mapping[str, Tensor],
        state: Tensor,
        input_ids: Tensor,
        noise: Tensor | None = None,
        camera_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, and by how many logits (B,) the closest choice of a token was made; inf without tokens."""
        if self.model.config.decoder == "parallel":
            outputs = self.outputs(images, state, input_ids, camera_mask)
            top = outputs.action_logits.topk(2, -1).values
            return self.decode(outputs), outputs.points, (top[..., 0] - top[..., 1]).flatten(1).amin(1)
        pixels = pixels_from_images(images, self.model.config.backbone)
        if noise is None:
            noise = self.noise.expand(len(state), -1, -1)
        decoded, pointing = self.model.decode(pixels, input_ids, self.state_scaler(state), noise, camera_mask)
        low, high = (torch.tensor(b, dtype=torch.float32, device=state.device) for b in (self.low, self.high))
        actions = (decoded.actions * self.scale + self.offset).clamp(low, high)
        margin = decoded.margin if decoded.margin is not None else torch.full_like(state[:, 0], torch.inf)
        return actions, pointing.points, margin

    def outputs(
        self, images: Mapping[str, Tensor], state: Tensor, input_ids: Tensor, camera_mask: Tensor | None = None
    ) -> Outputs:
        """What the network with a parallel decoder says about raw observation tensors, shapes as in `forward`."""
        pixels = pixels_from_images(images, self.model.config.backbone)
        outputs: Outputs = self.model(pixels, input_ids, self.state_scaler(state), camera_mask)
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
        self.device = next(model.parameters()).device
        self.graph = InferenceGraph(model, contract).eval()
        self._noise = torch.Generator().manual_seed(0)  # on the CPU: the same draws on every device

    def reset(self, seed: int) -> None:
        """The seed decides the noise of decoder flow. The others decode greedily, and no policy has a memory."""
        self._noise.manual_seed(seed)

    @torch.inference_mode()
    def predict(self, observation: Observation) -> ActionChunk:
        """Raises `ContractError` when cameras or state are not the contract's."""
        check_observation(self.contract, observation)
        noise = None
        if self.graph.model.config.decoder == "flow":
            noise = torch.randn(1, *self.graph.model.action_shape, generator=self._noise).to(self.device)
        actions, _ = self.graph(*self.tensors(observation), noise)
        return ActionChunk(actions[0].cpu().numpy(), observation.stamp_ns, 1.0 / self.contract.action.rate_hz)

    def tensors(self, observation: Observation) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What the graph takes of one observation: images, state and token ids, each with a batch of one."""
        images = {c.name: torch.tensor(observation.images[c.name])[None].to(self.device) for c in self.contract.cameras}
        text = self.contract.instruction_template.format(instruction=observation.instruction)
        ids = torch.from_numpy(self.tokenizer.encode([text])).to(self.device)
        return images, torch.tensor(observation.state)[None].to(self.device), ids


def save_policy(directory: Path, model: VolarModel, contract: PolicyContract, tokenizer: InstructionTokenizer) -> None:
    """Writes `config.json`, `contract.json`, `tokenizer.json`, `model.safetensors`, LeRobot's two pipelines; and the
    action tokenizer if it is one that was trained."""
    from safetensors.torch import save_model

    directory.mkdir(parents=True, exist_ok=True)
    model.config.save(directory / "config.json")
    contract.save(directory / "contract.json")
    tokenizer.save(directory / "tokenizer.json")
    for name in PIPELINES:
        (directory / name).write_text((files("volar.vla") / "lerobot_plugin" / name).read_text())
    if model.config.tokenizer != "bins":
        save_tokenizer(model.tokenizer, directory)
    save_model(model, str(directory / "model.safetensors"), metadata={"contract_sha256": contract.sha256})
