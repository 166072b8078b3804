"""The settings of a run that were left away: those of the policy that it starts from, or the defaults."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volar.datasets.normalizer import DEFAULT, NORMALIZATION
from volar.robots.contract import PolicyContract
from volar.robots.policies import find_policy
from volar.vla.configuration_volar import VolarConfig

if TYPE_CHECKING:
    from volar.vla.train import TrainConfig


def completed(config: "TrainConfig") -> "TrainConfig":
    """The settings with chunks, normalization and action tokens; of a run to resume, those that it has.

    Raises `VolarError` when init cannot be read, `UsageError` where what was given does not fit what it has.
    """
    from volar.vla.train import DEFAULTS

    last = config.output / "checkpoints" / "last"
    known: dict[str, Any] = DEFAULTS
    if config.resume and last.exists():
        known = _of_policy(last / "pretrained_model")
    elif config.init is not None:
        known = _of_policy(find_policy(config.init))
    return replace(config, **{name: value for name, value in known.items() if getattr(config, name) is None})


def _of_policy(directory: Path) -> dict[str, Any]:
    architecture = VolarConfig.load(directory / "config.json")
    contract = PolicyContract.load(directory / "contract.json")
    return {
        "chunk_length": contract.chunk_length,
        "execute_steps": contract.execute_steps,
        "normalization": contract.preprocessing.get(NORMALIZATION, DEFAULT),
        "tokenizer": architecture.tokenizer,
    }
