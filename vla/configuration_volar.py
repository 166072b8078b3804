"""What a volar policy is made of; written as `config.json` beside its weights."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from volar.robots.errors import Unknown, VolarError
from volar.robots.policies import ARTIFACT_FILE
from volar.vla.action_tokenizers import action_tokenizer, tokenizer_class
from volar.vla.action_tokenizers.uniform_bins import BINS
from volar.vla.backbone import BackboneConfig, VlmConfig

Decoding = Literal["parallel", "autoregressive", "flow"]
Training = Literal["frozen", "lora", "full"]
StateAs = Literal["projected", "tokens"]
PointsFrom = Literal["base", "hand"]

# What LeRobot writes beside ours when it saves a policy (its `PreTrainedConfig`, and `vla/lerobot_plugin/`).
LEROBOT_FIELDS = frozenset(
    [
        "n_obs_steps",
        "input_features",
        "output_features",
        "device",
        "use_amp",
        "use_peft",
        "push_to_hub",
        "repo_id",
        "private",
        "tags",
        "license",
        "pretrained_path",
        "pretrained_revision",
        "chunk_length",
        "execute_steps",
        "learning_rate",
        "discover_packages_path",
    ]
)


@dataclass(frozen=True)
class VolarConfig:
    """Architecture of a `VolarPolicy`.

    `camera_tokens`: tokens along one side that each camera keeps after pooling, in the contract's
    camera order; the first camera is also the one points are found in. `point_mean`, `point_std`:
    (3,) [m], the scale of pointed positions in the base frame. `text_length`: T tokens.
    `decoder`: how actions come out (`vla/decoders/`); `action_tokens`: ids that its tokenizer takes. `state_as`:
    proprioception as one projected embedding, or as one token a number. `vision`, `connector`, `language`: what of the
    backbone trains, `lora_rank` being that of its low-rank updates. `expert_width`, `flow_steps`: of decoder `flow`.
    `points`: of decoder `parallel`, whether its head sees pointed positions from the base alone or from the hand, too.
    `finds_hand`: whether pointing finds the robot's own hand in the image, too, to tell how the camera stands.
    """

    backbone: BackboneConfig | VlmConfig = field(default_factory=BackboneConfig)
    tokenizer: str = "bins"
    camera_tokens: tuple[int, ...] = (8, 4)
    head_width: int = 256
    text_length: int = 20
    point_mean: tuple[float, float, float] = (0.5, 0.0, 0.05)
    point_std: tuple[float, float, float] = (0.1, 0.1, 0.05)
    decoder: Decoding = "parallel"
    action_tokens: int = BINS
    state_as: StateAs = "projected"
    points: PointsFrom = "base"
    finds_hand: bool = False
    vision: Training = "full"
    connector: Training = "full"
    language: Training = "full"
    lora_rank: int = 16
    expert_width: int = 256
    flow_steps: int = 10
    type: str = "volar"

    def __post_init__(self) -> None:
        named = (
            ("decoder", Decoding),
            ("state_as", StateAs),
            ("points", PointsFrom),
            ("vision", Training),
            ("connector", Training),
            ("language", Training),
        )
        for name, choices in named:
            if getattr(self, name) not in get_args(choices):
                raise Unknown(name, getattr(self, name), get_args(choices))
        if self.decoder == "autoregressive":
            tokenizer_class(self.tokenizer)
        else:
            action_tokenizer(self.tokenizer, BINS)  # raises where the tokens are no numbers, one each
        for name in ("lora_rank", "flow_steps", "expert_width"):
            if getattr(self, name) < 1:
                raise VolarError(f"{name} must be at least 1, is {getattr(self, name)}")

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")

    @staticmethod
    def load(path: Path) -> "VolarConfig":
        """Raises `VolarError` when the file is missing, broken or of another policy type, or beside an artifact."""
        if not path.is_file() and (path.parent / ARTIFACT_FILE).is_file():
            raise VolarError(
                f"{path.parent} is an exported artifact, which has no weights to go on with: give the policy directory "
                "or the training run that it was made from"
            )
        try:
            raw: dict[str, Any] = json.loads(path.read_text())
            if raw.get("type") != "volar":
                raise VolarError(f"{path} is of policy type {raw.get('type')!r}, not 'volar'")
            return VolarConfig.of({key: value for key, value in raw.items() if key not in LEROBOT_FIELDS})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise VolarError(f"{path} is not a readable policy configuration: {error}") from error

    @staticmethod
    def of(raw: dict[str, Any]) -> "VolarConfig":
        """From plain values, as in JSON. Raises `TypeError` or `KeyError` on fields too many or too few."""
        inner = _tuples(raw["backbone"])
        backbone = VlmConfig(**inner) if "architecture" in inner else BackboneConfig(**inner)
        return VolarConfig(**_tuples({**raw, "backbone": backbone}))


def _tuples(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
