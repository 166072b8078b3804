"""What of a backbone trains: nothing, low-rank updates (LoRA, Hu et al., 2021) or everything, for each of its parts.

Parts are the vision tower, the connector between it and the language model, and the language model with its embeddings
and head. A merged network is one of plain layers that computes the same.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from volar.robots.errors import UsageError
from volar.vla.backbone import VlmConfig
from volar.vla.configuration_volar import VolarConfig

if TYPE_CHECKING:
    from volar.vla.backbone import Backbone
    from volar.vla.modeling_volar import VolarModel

Part = Literal["vision", "connector", "language"]
PARTS: tuple[Part, ...] = ("vision", "connector", "language")


def part_of(backbone: "Backbone", name: str) -> Part:
    """The part of a module or parameter of `backbone.model`, by its name there."""
    inner, family = name.removeprefix("model."), backbone.family
    if any(inner == path or inner.startswith(f"{path}.") for path in family.connector):
        return "connector"
    return "vision" if inner.startswith(f"{family.vision}.") else "language"


def is_frozen(backbone: "Backbone", *parts: Part) -> bool:
    """Whether nothing of these parts trains."""
    parameters = backbone.model.named_parameters()
    return not any(parameter.requires_grad for name, parameter in parameters if part_of(backbone, name) in parts)


def adapt(backbone: "Backbone", config: VolarConfig) -> None:
    """Freezes and extends a backbone of plain layers as a configuration says, in place."""
    how: dict[Part, str] = {part: getattr(config, part) for part in PARTS}
    layers = [
        name
        for name, module in backbone.model.named_modules()
        # Not the head, often the words' embedding in another role, nor subclasses, whose weights others read.
        if type(module) is nn.Linear and name != "lm_head" and how[part_of(backbone, name)] == "lora"
    ]
    if layers:
        from peft import LoraConfig, inject_adapter_in_model

        low_rank = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_rank, target_modules=layers)
        inject_adapter_in_model(low_rank, backbone.model)
    if set(how.values()) == {"full"}:
        return
    for name, parameter in backbone.model.named_parameters():
        kind = how[part_of(backbone, name)]
        parameter.requires_grad_(kind == "full" or (kind == "lora" and ".lora_" in name))
        if ".lora_" in name:
            parameter.data = parameter.data.float()  # small steps would be lost beside weights in bfloat16


def merge(model: "VolarModel") -> "VolarModel":
    """Adds low-rank updates to the weights they belong to, in place; all of the result trains. Returns the model.

    Where there are some, a pretrained model's weights become float32, and `config` says so: in bfloat16, small updates
    would be rounded away.
    """
    backbone: Any = model.backbone.model
    updated = {name: module for name, module in backbone.named_modules() if hasattr(module, "get_base_layer")}
    if updated and isinstance(model.config.backbone, VlmConfig):
        backbone.float()
        model.config = replace(model.config, backbone=replace(model.config.backbone, dtype="float32"))
    for name, module in updated.items():
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, module.get_base_layer())
    if hasattr(backbone, "peft_config"):
        del backbone.peft_config  # else the next updates would be taken for further ones
    model.backbone.requires_grad_(True)
    model.config = replace(model.config, vision="full", connector="full", language="full")
    return model


def require_float32(config: VolarConfig, dtype: str, have: str) -> None:
    """Raises `UsageError` where weights train in a type that is too coarse for an optimizer's steps. `have`: who has
    it, for the message."""
    full = [f"{part}=full" for part in PARTS if getattr(config, part) == "full"]
    if dtype != "float32" and full:
        lost = f"{have}, which loses the small steps of {', '.join(full)}"
        raise UsageError(f"{lost}: frozen or lora, or backbone_dtype=float32 with precision=bf16")
