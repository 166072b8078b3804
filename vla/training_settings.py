"""The settings of a run that were left away: those of the policy that it starts from, or the defaults."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volar.datasets.normalizer import DEFAULT, NORMALIZATION
from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.robots.policies import find_policy
from volar.vla.configuration_volar import VolarConfig
from volar.vla.processes import Processes
from volar.vla.training_state import load_progress

if TYPE_CHECKING:
    from volar.vla.train import TrainConfig


def checkpoint_to_resume(config: "TrainConfig", processes: Processes) -> Path | None:
    """The last one, with `resume`; None where there is none. Called in all processes.

    Raises `VolarError` where they do not find the same: each would go on from another step.
    """
    last = config.output / "checkpoints" / "last"
    if not config.resume:
        return None
    mine = int(load_progress(last / "training_state")["step"]) if last.exists() else -1
    steps = [int(step) for step in processes.gather(mine)]
    other = next((i for i, step in enumerate(steps) if step != steps[0]), None)
    if other is not None:
        a, b = ("none" if steps[i] < 0 else f"that of step {steps[i]}" for i in (0, other))
        raise VolarError(
            f"process 0 finds {a} in {last.parent}, process {other} {b}: output= must be on a file system that all "
            "machines share"
        )
    return last if mine >= 0 else None


def completed(config: "TrainConfig", last: Path | None) -> "TrainConfig":
    """The settings with chunks, normalization and action tokens; of a run to resume, those of its checkpoint `last`.

    Raises `VolarError` when init cannot be read, `UsageError` where what was given does not fit what it has.
    """
    from volar.vla.train import DEFAULTS

    known: dict[str, Any] = DEFAULTS
    if last is not None:
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
