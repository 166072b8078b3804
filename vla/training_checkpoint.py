"""Writing a checkpoint of a run, from one process or from many that each have a part of the network."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from volar.robots.errors import VolarError
from volar.vla.modeling_volar import VolarModel
from volar.vla.processor_volar import save_policy
from volar.vla.sharding import whole
from volar.vla.training_state import publish, save_training_state

if TYPE_CHECKING:
    from volar.vla.training_run import TrainingRun


def write_checkpoint(root: Path, training: "TrainingRun") -> None:
    """Puts what is spread over the processes together and writes it, in the first of them, under `root`.

    Called in all. Raises `VolarError` when the disk does not take it; the checkpoint before is untouched.
    """
    from safetensors import SafetensorError

    try:
        _write(root, training)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(root / ".writing", ignore_errors=True)
        have = "the last complete one is kept" if (root / "last").exists() else "there is none before it"
        raise VolarError(
            f"the checkpoint of step {training.step} could not be written to {root} ({error}; {free_space(root)}); "
            f"{have}: free some space, then continue with resume=true"
        ) from error


def _write(root: Path, training: "TrainingRun") -> None:
    first, temporary = training.processes.first, root / ".writing"
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
    with training.average.in_place(training.bare):
        policy = _whole_policy(training)
        if policy is not None:
            save_policy(temporary / "pretrained_model", policy, training.contract, training.tokenizer)
    progress = {
        "step": training.step,
        "elapsed_s": training.elapsed_s,
        "precision": training.accelerator.mixed_precision,
        "data": training.data_facts,
    }
    save_training_state(temporary / "training_state", training.bare, training.optimizer, progress, write=first)
    if first:
        publish(root, training.step, temporary, training.config.keep)


def _whole_policy(training: "TrainingRun") -> VolarModel | None:
    """The network with all of its weights, in the first process; where they are sharded, a copy on the CPU."""
    model, first = training.bare, training.processes.first
    if not training.processes.sharded:
        return model if first else None
    copy = None
    if first:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            copy = VolarModel(model.config, training.contract, tokenizer=model.tokenizer)
    targets = dict(copy.named_parameters()) if copy is not None else {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gathered = whole(parameter.detach())
            if copy is not None:
                targets[name].copy_(gathered)
    return copy


def free_space(path: Path) -> str:
    """On the disk where `path` is or will be."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return f"{shutil.disk_usage(there).free:,} bytes free there"
