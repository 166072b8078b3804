"""What a training run learns from: datasets opened, mixed and told apart."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from volar.datasets.choose_frames import Form, choose_frames
from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_format import load_contract
from volar.datasets.mixture import Mixture, Source, load_mixture, sources_of
from volar.datasets.normalizer import with_normalization
from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.processor_volar import StateScaler

if TYPE_CHECKING:
    from volar.vla.train import TrainConfig


@dataclass
class Part:
    """One stream of samples, of which a batch takes as many as `mixture` gives at once."""

    mixture: Mixture
    token_ids: NDArray[np.int64]  # (instructions, T)
    has_actions: bool
    state_scalers: list[StateScaler]  # one for each source

    @property
    def frames(self) -> int:
        return sum(self.mixture.sizes.values())


def open_frames(source: Path, form: Form = "auto") -> FrameCache:
    """The frames of a dataset, decoded on first use where the disk has room, or of generated scenes."""
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task(f"decoding {source}")
        return choose_frames(
            source,
            form,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            say=bar.console.print,
        )


def open_sources(config: "TrainConfig") -> list[Source]:
    """The demonstrations: one dataset, or those of a mixture. Raises `ContractError` when they do not fit together."""
    weights, folders = {config.dataset.name: 1.0}, [config.dataset]
    if config.mixture is not None:
        weights = load_mixture(config.mixture)
        folders = [config.dataset / name for name in weights]
    caches = [open_frames(folder, config.frames) for folder in folders]
    contracts = [with_normalization(load_contract(folder), config.normalization) for folder in folders]
    return sources_of(weights, caches, contracts, config.mix)


def make_parts(
    config: "TrainConfig", groups: list[list[Source]], contract: PolicyContract, tokenizer: InstructionTokenizer
) -> list[Part]:
    """The demonstrations first, then the generated scenes with their share of the batch."""
    scenes = round(config.scenes_fraction * config.batch_size) if len(groups) > 1 else 0
    shares = [config.batch_size - scenes, scenes]
    parts = []
    for i, sources in enumerate(groups):
        mixture = Mixture(
            sources,
            batch_size=shares[i],
            seed=config.seed + i,
            chunk_length=contract.chunk_length,
            weights=config.mix.weights,
            augmentation=config.augmentation,
        )
        texts = [contract.instruction_template.format(instruction=text) for text in mixture.instructions]
        scalers = [StateScaler(source.contract) for source in sources]
        part = Part(mixture, tokenizer.encode(texts), config.stage == "cloning" and i == 0, scalers)
        if part.frames < shares[i]:
            have = f"{part.frames} frames do not fill a batch of {shares[i]}"
            raise VolarError(f"{have}; collect more or lower batch_size")
        parts.append(part)
    return parts
