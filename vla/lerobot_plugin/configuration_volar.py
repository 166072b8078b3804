"""LeRobot's view of a policy's `config.json`: our architecture beside the fields that LeRobot adds.

Both sides write and read the same flat file: LeRobot's parser refuses fields that it does not know, so all of ours are
declared here; ours leaves LeRobot's out (`LEROBOT_FIELDS` in `vla/configuration_volar.py`).
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode
from lerobot.optim.optimizers import AdamWConfig

from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.vla import configuration_volar as volar_config

DEFAULT = volar_config.VolarConfig()


@PreTrainedConfig.register_subclass("volar")
@dataclass
class VolarConfig(PreTrainedConfig):  # type: ignore[misc]
    """Architecture as in `volar.vla.configuration_volar.VolarConfig`; `backbone`: {} is the one made from scratch.
    One that was pretrained is part of a policy that volar-train has begun.

    `chunk_length`: H, `execute_steps`: how many of them are done before the next; None: as the dataset's contract
    has it. A policy that was already trained keeps those of its contract, and other values raise.
    `discover_packages_path` has done its work when this exists: beside `--policy.path`, LeRobot takes its own flag for
    a field of the policy.
    """

    backbone: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = DEFAULT.tokenizer
    camera_tokens: tuple[int, ...] = DEFAULT.camera_tokens
    head_width: int = DEFAULT.head_width
    text_length: int = DEFAULT.text_length
    point_mean: tuple[float, float, float] = DEFAULT.point_mean
    point_std: tuple[float, float, float] = DEFAULT.point_std
    decoder: str = DEFAULT.decoder
    action_tokens: int = DEFAULT.action_tokens
    state_as: str = DEFAULT.state_as
    points: str = DEFAULT.points
    finds_hand: bool = DEFAULT.finds_hand
    vision: str = DEFAULT.vision
    connector: str = DEFAULT.connector
    language: str = DEFAULT.language
    lora_rank: int = DEFAULT.lora_rank
    expert_width: int = DEFAULT.expert_width
    flow_steps: int = DEFAULT.flow_steps
    chunk_length: int | None = None
    execute_steps: int | None = None
    learning_rate: float = 3e-4
    discover_packages_path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_obs_steps != 1:
            raise VolarError(f"n_obs_steps is {self.n_obs_steps}; a volar policy sees one observation: leave it at 1")

    def architecture(self) -> volar_config.VolarConfig:
        """What `VolarModel` is made of. Raises `VolarError` on values that it does not have."""
        names = {f.name for f in fields(volar_config.VolarConfig)} - {"type"}
        try:
            return volar_config.VolarConfig.of({name: getattr(self, name) for name in names})
        except (TypeError, ValueError) as error:  # of fields that a backbone does not have, sizes that do not divide
            raise VolarError(f"--policy.backbone={self.backbone} is no backbone: {error}") from error

    @property
    def normalization_mapping(self) -> dict[str, NormalizationMode]:
        """Identity for all: the graph normalizes. lerobot-train asks when it goes on from a trained policy."""
        return {kind.value: NormalizationMode.IDENTITY for kind in FeatureType}

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """Steps of a chunk. LeRobot asks before it has opened dataset or policy: a new one needs `chunk_length`."""
        length = self.chunk_length
        if length is None and self.pretrained_path is not None:
            directory = find_directory(self.pretrained_path, self.pretrained_revision)
            length = PolicyContract.load(directory / "contract.json").chunk_length
        if length is None:
            raise VolarError("how long is a chunk? give LeRobot --policy.chunk_length=8 (the contract's)")
        return list(range(length))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(lr=self.learning_rate, grad_clip_norm=1.0)

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        """Nothing: the dataset's contract is compared with the policy's when that is made."""


def find_directory(name: str | Path, revision: str | None = None, **how: Any) -> Path:
    """A policy directory, or that of a Hub repository, fetched first or found in its cache. `how`: as in
    `snapshot_download`."""
    directory = Path(name)
    if directory.is_dir():
        return directory
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(name), revision=revision, **how))
