"""One training run in memory: data, network, optimizer, averaged weights; one step at a time."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from volar.datasets.action_chunks import Batch
from volar.datasets.lerobot_format import load_contract
from volar.datasets.mixture import Source
from volar.robots.contract import ContractError, PolicyContract
from volar.robots.errors import VolarError
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.losses import Losses, imitation_loss
from volar.vla.modeling_volar import VolarModel, pixels_from_images
from volar.vla.network import make_network, with_prompt
from volar.vla.processor_volar import save_policy
from volar.vla.training_data import Part, make_parts, open_frames, open_sources
from volar.vla.training_state import (
    WeightAverage,
    load_progress,
    load_training_state,
    publish,
    save_training_state,
)

if TYPE_CHECKING:
    from volar.vla.train import TrainConfig


class TrainingRun:
    """Everything that changes while training; `step` and `elapsed_s` say how far it is."""

    def __init__(
        self,
        config: "TrainConfig",
        model: VolarModel,
        contract: PolicyContract,
        tokenizer: InstructionTokenizer,
        parts: list[Part],
        precision: str,
    ) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator(mixed_precision=precision)
        if self.accelerator.num_processes > 1:
            raise VolarError("volar-train runs in one process so far; start it without accelerate launch")
        self.config, self.contract, self.tokenizer, self.parts = config, contract, tokenizer, parts
        self.step, self.elapsed_s = 0, 0.0
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        plain = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.average = WeightAverage(self.bare, config.ema_decay)
        device = self.accelerator.device
        self.point_std = torch.tensor(model.config.point_std, device=device)

    @property
    def bare(self) -> VolarModel:
        """The network without what Accelerate wraps around it."""
        model: VolarModel = self.accelerator.unwrap_model(self.model)
        return model

    @staticmethod
    def start(config: "TrainConfig") -> "TrainingRun":
        """A new run, or the one in `config.output` with `resume`. Raises `VolarError` on unusable input."""
        torch.manual_seed(config.seed)
        sources = open_sources(config)
        scenes = (
            Source("scenes", 1.0, open_frames(config.scenes), load_contract(config.scenes)) if config.scenes else None
        )
        contract = training_contract(config, [sources[0].contract, *([scenes.contract] if scenes else [])])
        groups = [sources]
        if scenes:  # seen by the same network: its states are normalized as the demonstrations' are
            groups.append([replace(scenes, contract=contract)])
        instructions = [text for group in groups for source in group for text in source.frames.instructions]
        last = config.output / "checkpoints" / "last"
        if config.resume and last.exists():
            return TrainingRun._resumed(config, last, groups, contract)
        network = make_network(config, contract, sources)
        model, contract, tokenizer = network.model, network.contract, network.tokenizer
        tokenizer = tokenizer.with_words(instructions)
        parts = make_parts(config, groups, contract, tokenizer)
        return TrainingRun(config, model, contract, tokenizer, parts, choose_precision(config.precision))

    @staticmethod
    def _resumed(
        config: "TrainConfig", last: Path, groups: list[list[Source]], contract: PolicyContract
    ) -> "TrainingRun":
        """The run as its last checkpoint left it: weights, averages, moments, vocabulary, precision and place."""
        from volar.vla.checkpoint_policy import load_parts

        model, before, tokenizer = load_parts(last / "pretrained_model")  # the averaged weights
        contract = with_prompt(contract, model.config.backbone)
        progress = load_progress(last / "training_state")
        parts = make_parts(config, groups, contract, tokenizer)
        frames = [part.frames for part in parts]
        if before != contract or progress["frames"] != frames:
            raise VolarError(
                f"{config.dataset} has changed since {config.output} was trained on it ({progress['frames']} frames, "
                f"now {frames}): start a new run with init={config.output}"
            )
        training = TrainingRun(config, model.train(), contract, tokenizer, parts, progress["precision"])
        load_training_state(last / "training_state", training.bare, training.optimizer)
        training.step, training.elapsed_s = int(progress["step"]), float(progress["elapsed_s"])
        return training

    def done(self, config: "TrainConfig") -> float:
        """The share of the run that is over, in [0, 1]."""
        if config.steps is not None:
            return min(1.0, self.step / config.steps)
        return min(1.0, self.elapsed_s / (60 * float(config.minutes or 1)))

    def train_step(self, learning_rate: float) -> Losses:
        """One optimizer step on the batch that `seed` and `step` determine."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        sample = self.batch(self.step)
        with self.accelerator.autocast():
            cameras = None if sample["camera_mask"].all() else sample["camera_mask"]
            seen = (sample["pixels"], sample["input_ids"], sample["state"], cameras)
            outputs = self.model(*seen, sample["actions"], sample["mask"], self.draws)
        losses = imitation_loss(outputs, sample["actions"], sample["mask"], sample["points"], self.point_std)
        self.accelerator.backward(losses.total)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.average.update(self.bare, self.step)
        return losses

    @property
    def draws(self) -> int:
        """A seed for what this step's loss draws, determined by the run's seed and the step."""
        return int(np.random.SeedSequence([self.config.seed, self.step]).generate_state(1)[0])

    def batch(self, step: int) -> dict[str, Tensor]:
        """The tensors of one step on the device."""
        pieces = [self._tensors(part, part.mixture.batch(step)) for part in self.parts]
        merged = {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
        merged = {key: value.to(self.accelerator.device, non_blocking=True) for key, value in merged.items()}
        merged["pixels"] = pixels_from_images(
            {c.name: merged[f"image.{c.name}"] for c in self.contract.cameras}, self.bare.config.backbone.image_size
        )
        return merged

    def _tensors(self, part: Part, batch: Batch) -> dict[str, Tensor]:
        actions = batch.actions
        if part.has_actions:
            actions = part.mixture.normalized(batch, "action", actions)
        state, source = torch.from_numpy(batch.state), torch.from_numpy(batch.source)
        for i, scaler in enumerate(part.state_scalers):
            state = torch.where((source == i)[:, None], scaler(torch.from_numpy(batch.state)), state)
        cameras = np.stack([batch.camera_mask[camera.name] for camera in self.contract.cameras], axis=1)  # (B, C)
        mask = batch.action_mask if part.has_actions else np.zeros_like(batch.action_mask)
        return {f"image.{name}": torch.from_numpy(image) for name, image in batch.images.items()} | {
            "state": state,
            "camera_mask": torch.from_numpy(cameras),
            "input_ids": torch.from_numpy(part.token_ids[batch.instruction_id]),
            "actions": torch.from_numpy(actions),
            "mask": torch.from_numpy(mask),
            "points": torch.from_numpy(batch.points),
        }

    def save(self) -> Path:
        """Writes a checkpoint; returns its policy directory. Raises `VolarError` when the disk does not take it."""
        from safetensors import SafetensorError

        root = self.config.output / "checkpoints"
        if (root / "last").resolve().name != f"{self.step:06d}":  # a checkpoint is written once
            try:
                self._write(root)
            except (OSError, SafetensorError) as error:
                shutil.rmtree(root / ".writing", ignore_errors=True)
                have = "the last complete one is kept" if (root / "last").exists() else "there is none before it"
                raise VolarError(
                    f"the checkpoint of step {self.step} could not be written to {root} ({error}); {have}: "
                    "free some space, then continue with resume=true"
                ) from error
        return root / "last" / "pretrained_model"

    def _write(self, root: Path) -> None:
        temporary = root / ".writing"
        shutil.rmtree(temporary, ignore_errors=True)
        self.average.swap(self.bare)
        try:
            save_policy(temporary / "pretrained_model", self.bare, self.contract, self.tokenizer)
        finally:
            self.average.swap(self.bare)
        progress = {
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "precision": self.accelerator.mixed_precision,
            "frames": [part.frames for part in self.parts],
        }
        save_training_state(temporary / "training_state", self.bare, self.optimizer.optimizer, progress)
        publish(root, self.step, temporary, self.config.keep)

    def summary(self) -> str:
        frames = ", ".join(f"{part.frames} frames ({part.mixture.batch_size} a batch)" for part in self.parts)
        size = sum(p.numel() for p in self.bare.parameters()) / 1e6
        how = self.accelerator.mixed_precision
        return f"{self.config.stage}: {size:.2f} M parameters, {frames}, precision {how}, on {self.accelerator.device}"


def training_contract(config: "TrainConfig", contracts: list[PolicyContract]) -> PolicyContract:
    """The dataset's contract with this run's chunk. Raises `ContractError` when the sources do not fit."""
    contract = replace(contracts[0], chunk_length=config.chunk_length, execute_steps=config.execute_steps)
    if config.stage == "cloning" and "action" not in contract.statistics:
        have = f"{config.dataset} holds no action statistics"
        raise ContractError(f"{have}: cloning needs demonstrations (stage=grounding does not)")
    for other in contracts[1:]:
        require_same_inputs(other, contract, config.scenes)
    return contract


def require_same_inputs(a: PolicyContract, b: PolicyContract, where: Path | None) -> None:
    """Raises `ContractError` listing the differing fields among robot, cameras, state and action."""
    from volar.robots.contract import differences

    ignore = ("statistics", "chunk_length", "execute_steps", "preprocessing", "instruction_template")
    found = differences(b, a, ignore=ignore)
    if found:
        raise ContractError(f"{where} does not fit the dataset: " + "; ".join(map(str, found)))


def choose_precision(wanted: str) -> str:
    """`auto`: bf16 where a matrix product of the training's size is at least 1.5x faster in it, else fp32."""
    if wanted != "auto":
        return "bf16" if wanted == "bf16" else "no"
    import time

    device = "cuda" if torch.cuda.is_available() else "cpu"
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(20):  # in turn, and the best of each: other processes disturb both alike
        for dtype in best:
            a, b = torch.ones(4096, 128, dtype=dtype, device=device), torch.ones(128, 256, dtype=dtype, device=device)
            start = time.perf_counter()
            (a @ b)[0, 0].item()
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return "bf16" if best[torch.bfloat16] * 1.5 < best[torch.float32] else "no"
