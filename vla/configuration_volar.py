"""What a volar policy is made of; written as `config.json` beside its weights."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from volar.robots.errors import VolarError
from volar.vla.action_tokenizers import action_tokenizer
from volar.vla.action_tokenizers.uniform_bins import BINS
from volar.vla.backbone import BackboneConfig


@dataclass(frozen=True)
class VolarConfig:
    """Architecture of a `VolarPolicy`.

    `camera_tokens`: tokens along one side that each camera keeps after pooling, in the contract's
    camera order; the first camera is also the one points are found in. `point_mean`, `point_std`:
    (3,) [m], the scale of pointed positions in the base frame. `text_length`: T tokens.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    tokenizer: str = "bins"
    camera_tokens: tuple[int, ...] = (8, 4)
    head_width: int = 256
    text_length: int = 20
    point_mean: tuple[float, float, float] = (0.5, 0.0, 0.05)
    point_std: tuple[float, float, float] = (0.1, 0.1, 0.05)
    type: str = "volar"

    def __post_init__(self) -> None:
        action_tokenizer(self.tokenizer, BINS)  # raises where the parallel head cannot predict its tokens

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")

    @staticmethod
    def load(path: Path) -> "VolarConfig":
        """Raises `VolarError` when the file is missing, broken or of another policy type."""
        try:
            raw: dict[str, Any] = json.loads(path.read_text())
            if raw.get("type") != "volar":
                raise VolarError(f"{path} is of policy type {raw.get('type')!r}, not 'volar'")
            backbone = BackboneConfig(**raw.pop("backbone"))
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
            return VolarConfig(backbone=backbone, **values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise VolarError(f"{path} is not a readable policy configuration: {error}") from error
