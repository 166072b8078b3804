"""Loads a policy directory: weights, configuration, contract and tokenizer."""

from pathlib import Path

from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.vla.action_tokenizers import load_tokenizer
from volar.vla.backbone import VlmConfig
from volar.vla.configuration_volar import VolarConfig
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import VolarModel
from volar.vla.network_facts import require_facts
from volar.vla.processor_volar import TorchPolicy


def load_parts(directory: Path) -> tuple[VolarModel, PolicyContract, InstructionTokenizer]:
    """The network with its weights, its contract and tokenizer. Raises `VolarError` naming the broken file."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_model

    config = VolarConfig.load(directory / "config.json")
    contract = PolicyContract.load(directory / "contract.json")
    require_facts(contract, config, "contract.json or config.json was changed after training; use another checkpoint")
    tokenizer = InstructionTokenizer.load(directory / "tokenizer.json", config.text_length)
    actions = load_tokenizer(directory) if config.tokenizer != "bins" else None
    model = VolarModel(config, contract, tokenizer=actions)
    weights = directory / "model.safetensors"
    try:
        with safe_open(str(weights), "pt") as handle:
            found = (handle.metadata() or {}).get("contract_sha256")
        load_model(model, str(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise VolarError(f"{weights} cannot be loaded (cut short, or of another architecture): {error}") from error
    if found != contract.sha256:
        raise VolarError(f"{weights} was trained under contract {found}, beside it lies {contract.sha256}")
    return model.eval(), contract, tokenizer


def load(directory: Path) -> TorchPolicy:
    """The policy in `directory`; the entry point `volar.policies`.

    On the CPU, but with a pretrained backbone on a GPU if there is one.
    """
    import torch

    model, contract, tokenizer = load_parts(directory)
    if isinstance(model.config.backbone, VlmConfig) and torch.cuda.is_available():
        model = model.cuda()
    return TorchPolicy(model, contract, tokenizer)
