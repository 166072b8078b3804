"""The network that a training run starts with: new, around a pretrained backbone, or another policy's."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from volar.datasets.mixture import Source
from volar.robots.contract import PolicyContract
from volar.robots.errors import UsageError, VolarError
from volar.vla.action_tokenizers.action_tokenizer import ActionTokenizer, ids_needed
from volar.vla.action_tokenizers.uniform_bins import BINS, UniformBins
from volar.vla.adapters import PARTS, adapt, merge, require_float32
from volar.vla.backbone import BackboneConfig, VlmConfig
from volar.vla.configuration_volar import VolarConfig
from volar.vla.families import FAMILIES
from volar.vla.heads import HAND
from volar.vla.instruction_tokenizer import WORDS, InstructionTokenizer
from volar.vla.modeling_volar import VolarModel
from volar.vla.network_facts import Asked, camera_tokens, policy_contract

if TYPE_CHECKING:
    from volar.vla.train import TrainConfig

# Settings that `init` brings along where they are left away.
CHOSEN = ("decoder", "state_as", "points", "finds_hand", "lora_rank", "expert_width", "flow_steps", *PARTS)
_DECODERS_OWN = ("action_queries", "action_head.", "decoder.", "state_projection.")  # weights


@dataclass(frozen=True)
class Network:
    """A network with what goes with it; the contract says how its instructions are put. `anew`: what of another policy
    was not taken over, as a line to be told; empty where there is nothing."""

    model: VolarModel
    contract: PolicyContract
    tokenizer: InstructionTokenizer
    anew: str = ""


def make_network(
    config: "TrainConfig", contract: PolicyContract, sources: list[Source], labels_hand: bool = False
) -> Network:
    """The network of a new run's settings. `labels_hand`: whether the data say where the robot's hand appears.

    Raises `VolarError` for settings that do not go together.
    """
    chosen = {name: value for name in CHOSEN if (value := getattr(config, name)) is not None}
    if config.init is not None:
        return _from_policy(config, contract, chosen, sources)
    actions: ActionTokenizer = UniformBins(BINS)
    if config.tokenizer not in (None, "bins"):
        from volar.vla.tokenizer_data import train_tokenizer

        actions = train_tokenizer(config.tokenizer, sources, contract.chunk_length, config.seed)
        chosen |= {"tokenizer": config.tokenizer, "action_tokens": actions.size}
    has_hand = config.mix.one_state and set(HAND) <= set(contract.state_names)
    chosen = {"points": "hand" if has_hand else "base", "finds_hand": has_hand and labels_hand} | chosen
    if config.backbone in (None, "tiny"):
        architecture, tokenizer = _tiny(config, contract, chosen), InstructionTokenizer.load()
        _require_ids(architecture, actions, tokenizer)
        model = VolarModel(architecture, contract, tokenizer=actions)
        return Network(model, policy_contract(contract, architecture), tokenizer)
    return _from_pretrained(config, contract, chosen, actions)


def _tiny(config: "TrainConfig", contract: PolicyContract, chosen: dict[str, Any]) -> VolarConfig:
    asked = Asked.by(contract)
    size = config.image_size or asked.image_size or contract.cameras[0].width
    if size % 8:
        raise VolarError(f"images of {size} pixels do not divide into 8 x 8 patches; collect image_size=96")
    width, layers = config.width or BackboneConfig.width, config.layers or BackboneConfig.layers
    backbone = BackboneConfig(
        image_size=size,
        patch_size=size // 8,
        vision_width=width,
        vision_layers=max(1, layers - 1),
        width=width,
        layers=layers,
        resize=asked.resize,
    )
    usual = tuple(8 if i == 0 else 4 for i in range(len(contract.cameras)))
    sides = camera_tokens(contract, backbone.grid, config.camera_tokens, asked.camera_tokens, usual)
    return VolarConfig(backbone=backbone, camera_tokens=sides, head_width=2 * width, **chosen)


def _from_pretrained(
    config: "TrainConfig", contract: PolicyContract, chosen: dict[str, Any], actions: ActionTokenizer
) -> Network:
    from volar.vla.pretrained import TEXT_LENGTH, load_pretrained

    _require_no_dimensions(config, str(config.backbone))
    how = VolarConfig(**{part: chosen.get(part, "full") for part in PARTS})
    require_float32(how, config.backbone_dtype, f"backbone_dtype={config.backbone_dtype}")
    added = 0
    if config.action_ids == "added":
        if chosen.get("language", "full") != "full":
            raise UsageError(
                "added action tokens begin at random and must be learned: language=full, or action_ids=last"
            )
        added = ids_needed(actions)
    asked = Asked.by(contract)
    size, camera = config.image_size or asked.image_size, contract.cameras[0].width
    found = load_pretrained(str(config.backbone), size, config.backbone_dtype, added, camera)
    side = FAMILIES[found.config.name].side(found.backbone.model.config, found.config.image_size)
    usual = (side,) * len(contract.cameras)
    architecture = VolarConfig(
        backbone=replace(found.config, resize=asked.resize),
        camera_tokens=camera_tokens(contract, side, config.camera_tokens, asked.camera_tokens, usual),
        text_length=TEXT_LENGTH,
        **chosen,
    )
    _require_ids(architecture, actions, found.tokenizer)
    model = VolarModel(architecture, contract, found.backbone, actions)
    return Network(model, policy_contract(contract, architecture), found.tokenizer)


def _from_policy(
    config: "TrainConfig", contract: PolicyContract, chosen: dict[str, Any], sources: list[Source]
) -> Network:
    """Another policy's weights; what its decoder lacks, and the queries of another chunk length, are new.

    A `tiny` of bins (a grounding stage, too) may go on with another tokenizer, whose tokens begin at random.
    """
    from volar.robots.policies import find_policy
    from volar.vla.checkpoint_policy import load_parts
    from volar.vla.training_run import require_same_inputs

    assert config.init is not None
    before, theirs, words = load_parts(find_policy(config.init))
    require_same_inputs(theirs, contract, config.init)
    backbone = before.config.backbone
    has: dict[str, object] = {
        "backbone": backbone.name,
        "image_size": backbone.image_size,
        "camera_tokens": before.config.camera_tokens,
        "finds_hand": before.config.finds_hand,
    }
    if isinstance(backbone, BackboneConfig):
        has |= {"width": backbone.width, "layers": backbone.layers}
    else:
        _require_no_dimensions(config, str(config.init))
    if before.config.tokenizer != "bins" or not isinstance(backbone, BackboneConfig):
        has["tokenizer"] = before.config.tokenizer
    for name, value in has.items():
        if getattr(config, name) not in (None, value):
            raise VolarError(f"{config.init} has {name}={value}, not {getattr(config, name)}")
    actions = before.tokenizer
    if config.tokenizer not in (None, before.config.tokenizer):
        from volar.vla.tokenizer_data import train_tokenizer

        actions = train_tokenizer(config.tokenizer, sources, contract.chunk_length, config.seed)
        chosen = chosen | {"tokenizer": config.tokenizer, "action_tokens": actions.size}
    else:
        try:
            actions.require_steps(contract.chunk_length)
        except ValueError as error:
            raise VolarError(f"{config.init}: {error}; lower chunk_length, or train without init=") from error
    wanted = replace(before.config, **chosen)
    if any(getattr(wanted, name) != getattr(before.config, name) for name in ("decoder", "state_as", "tokenizer")):
        _require_ids(wanted, actions, words)
    for name, decoder in (("expert_width", "flow"), ("flow_steps", "flow"), ("points", "parallel")):
        if getattr(config, name) is not None and wanted.decoder != decoder:
            raise UsageError(f"{name} is for decoder={decoder}; {config.init} has decoder={wanted.decoder}")
    if wanted.finds_hand or (wanted.points == "hand" and wanted.decoder == "parallel"):
        reads = "finds_hand=true" if wanted.finds_hand else "points=hand"
        config.mix.require_one_state(f"{config.init} has {reads}, which")
    merge(before)
    backbone = before.config.backbone  # in float32 where updates were merged
    wanted = replace(wanted, backbone=backbone)
    if isinstance(backbone, VlmConfig):
        require_float32(wanted, backbone.dtype, f"{config.init} has backbone_dtype={backbone.dtype}")
        if backbone.dtype != "float32" and config.parallel == "fsdp":
            raise UsageError(f"parallel=fsdp shards weights of one precision; {config.init} has {backbone.dtype} ones")
    if config.lora_rank is not None and "lora" not in (wanted.vision, wanted.connector, wanted.language):
        raise UsageError(f"lora_rank={config.lora_rank} is for vision=lora, connector=lora or language=lora")
    plain = replace(wanted, vision="full", connector="full", language="full")
    keep = None if isinstance(backbone, BackboneConfig) else before.backbone
    model = VolarModel(plain, contract, keep, actions)
    fresh, old = model.state_dict(), before.state_dict()
    if actions is not before.tokenizer:
        old = {name: _words_kept(value, fresh.get(name, value)) for name, value in old.items()}
    weights = {
        name: old[name] if name in old and old[name].shape == fresh[name].shape else fresh[name] for name in fresh
    }
    begun = [name for name in fresh if weights[name] is fresh[name]]
    changed = [name for name in begun if not name.startswith(_DECODERS_OWN)]
    if changed:
        raise VolarError(f"{config.init} has no weights for {', '.join(changed[:3])}: another architecture")
    model.load_state_dict(weights)
    model.config = wanted
    adapt(model.backbone, wanted)
    parts = whole_parts(begun, fresh)
    if actions is not before.tokenizer:
        parts.append(f"the embeddings of its {actions.size} action tokens")
    anew = f"of init={config.init}, {', '.join(parts)} begin anew: {_changes(before.config, theirs, wanted, contract)}"
    return Network(model, policy_contract(contract, wanted), words, anew if parts else "")


def whole_parts(some: Collection[str], names: Collection[str]) -> list[str]:
    """The names `some` among those of all weights, `names`; where a module has no others, its name instead."""
    rest, found = set(names) - set(some), dict[str, None]()
    for name in some:
        words = name.split(".")
        above = [".".join(words[: i + 1]) for i in range(len(words))]
        found[next(part for part in above if not any(f"{other}.".startswith(f"{part}.") for other in rest))] = None
    return list(found)


def _changes(before: VolarConfig, theirs: PolicyContract, wanted: VolarConfig, contract: PolicyContract) -> str:
    """What of two policies calls for other weights, as settings."""
    names = ("decoder", "points", "state_as", "tokenizer", "expert_width")
    pairs = [(name, getattr(before, name), getattr(wanted, name)) for name in names]
    pairs += [("chunk_length", theirs.chunk_length, contract.chunk_length)]
    return ", ".join(f"{name}={now} (was {was})" for name, was, now in pairs if was != now)


def _require_ids(config: VolarConfig, actions: ActionTokenizer, tokenizer: InstructionTokenizer) -> None:
    """Raises `UsageError` where ids that say actions or the state would mean something else as well."""
    backbone, bins, in_tokens = config.backbone, isinstance(actions, UniformBins), config.state_as == "tokens"
    if isinstance(backbone, BackboneConfig) or backbone.words is None:  # no ids but those of actions
        if in_tokens and not bins:
            raise UsageError(
                f"state_as=tokens with tokenizer={config.tokenizer}: the state's bins have no ids but those of action "
                "tokens, which mean something else; state_as=projected, or tokenizer=bins"
            )
        return
    needed = ids_needed(actions) if config.decoder == "autoregressive" else 0
    if in_tokens:
        needed = BINS if bins else needed + BINS
    first, fix = backbone.words - needed, "action_ids=added for actions, state_as=projected for the state"
    if first < 0:
        raise UsageError(f"{backbone.name} has {backbone.words} words, actions and state need {needed} of them: {fix}")
    spoken = tokenizer.encode([backbone.template.replace("{instruction}", "")])[0]
    for id_ in (*backbone.head, *backbone.image_start, *backbone.image_end, *spoken.tolist()):
        if first <= id_ < backbone.words and id_ in tokenizer.markers:
            marker = f"{tokenizer.markers[id_]} of the prompt has id {id_}"
            raise UsageError(f"{marker}, and ids from {first} on would say actions or the state: {fix}")


def _words_kept(old: Tensor, fresh: Tensor) -> Tensor:
    """Embeddings of the words before those of other action tokens; any other weight as it is."""
    if old.shape == fresh.shape or old.ndim != 2 or old.shape[0] != WORDS + BINS or old.shape[1:] != fresh.shape[1:]:
        return old
    return torch.cat([old[:WORDS], fresh[WORDS:]])


def _require_no_dimensions(config: "TrainConfig", whose: str) -> None:
    if config.width is not None or config.layers is not None:
        raise UsageError(f"width and layers are those of backbone=tiny; {whose} has its own")
