"""OpenVLA's network: two vision towers, a projector and Llama 2; one action token after the other.

    <s> [patches of both towers, projected] In: What action should the robot take to ...?\\nOut: <empty> -> 7 tokens

Module names are those of the checkpoints. Facts: openvla/openvla, `prismatic/extern/hf/modeling_prismatic.py`.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from volar.vla.openvla.vision_tower import TowerShape, VisionTower

if TYPE_CHECKING:
    from transformers import LlamaConfig

EMPTY = 29871  # Llama's token of a lone space: training data had it between the colon and the action


class OpenVLAModel(nn.Module):
    """`towers`: DINOv2's shape, then SigLIP's; `text`: of the language model."""

    def __init__(self, towers: tuple[TowerShape, TowerShape], text: "LlamaConfig") -> None:
        super().__init__()
        from transformers import LlamaForCausalLM

        self.vision_backbone = nn.ModuleDict(
            {"featurizer": VisionTower(towers[0]), "fused_featurizer": VisionTower(towers[1])}
        )
        self.projector = Projector(towers[0].width + towers[1].width, text.hidden_size)
        self.language_model = LlamaForCausalLM(text)

    def embed(self, pixels: Tensor, input_ids: Tensor) -> Tensor:
        """pixels (1, 6, S, S): the image as each tower wants it; prompt ids (1, T), <s> first -> (1, P + T, D)."""
        first, second = pixels[:, :3], pixels[:, 3:]
        seen = [self.vision_backbone["featurizer"](first), self.vision_backbone["fused_featurizer"](second)]
        patches = self.projector(torch.cat(seen, dim=2))  # (1, P, D)
        words = self.language_model.get_input_embeddings()(with_empty_token(input_ids))
        return torch.cat([words[:, :1], patches, words[:, 1:]], dim=1)

    @torch.inference_mode()
    def action_tokens(self, pixels: Tensor, input_ids: Tensor, count: int) -> list[int]:
        """The `count` most probable tokens, one after the other; inputs as for `embed`."""
        found: list[int] = []
        inputs, cache = {"inputs_embeds": self.embed(pixels, input_ids)}, None
        for _ in range(count):
            out = self.language_model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            found.append(int(out.logits[0, -1].argmax()))
            inputs, cache = {"input_ids": input_ids.new_tensor([[found[-1]]])}, out.past_key_values
        return found


class Projector(nn.Module):
    """Vision features to the language model's width: the fused form, with three layers."""

    def __init__(self, vision: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (
            nn.Linear(vision, 4 * vision),
            nn.Linear(4 * vision, width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        gelu = nn.functional.gelu
        out: Tensor = self.fc3(gelu(self.fc2(gelu(self.fc1(x)))))
        return out


def with_empty_token(input_ids: Tensor) -> Tensor:
    """(1, T) -> (1, T or T + 1): ends with `EMPTY`."""
    if int(input_ids[0, -1]) == EMPTY:
        return input_ids
    return torch.cat([input_ids, input_ids.new_tensor([[EMPTY]])], dim=1)
