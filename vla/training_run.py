"""One training run in memory: data, network, optimizer, averaged weights; one step at a time."""

import hashlib
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from volar.datasets.action_chunks import Batch
from volar.robots.contract import ContractError, PolicyContract
from volar.robots.errors import VolarError
from volar.vla.batch_accuracy import Said
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.losses import Counts, Losses, imitation_loss
from volar.vla.modeling_volar import Imitated, Outputs, VolarModel, pixels_from_images
from volar.vla.network import make_network
from volar.vla.network_facts import IMAGE, policy_contract
from volar.vla.processes import Processes, choose_precision
from volar.vla.sharding import whole
from volar.vla.training_checkpoint import write_checkpoint
from volar.vla.training_data import Data, Part, make_parts, open_data, places
from volar.vla.training_settings import checkpoint_to_resume, completed
from volar.vla.training_state import WeightAverage, load_progress, load_training_state

if TYPE_CHECKING:
    from volar.vla.train import TrainConfig


class TrainingRun:
    """Everything that changes while training; `step` and `elapsed_s` say how far it is. `bare`: the network without
    what shares it among processes, which is around it in `model`."""

    def __init__(
        self,
        config: "TrainConfig",
        processes: Processes,
        bare: VolarModel,
        contract: PolicyContract,
        tokenizer: InstructionTokenizer,
        data: Data,
        precision: str,
    ) -> None:
        self.config, self.processes, self.contract, self.tokenizer = config, processes, contract, tokenizer
        self.data, self.parts = data, make_parts(config, data, contract, tokenizer, processes.count)
        self.accelerator = processes.accelerator(precision)
        self.step, self.elapsed_s, self.gradient_norm = 0, 0.0, 0.0
        self.stopped = False  # before its end, in all processes
        self.said: list[Said] = []  # in the last step, where the decoder says it while it learns
        if config.gradient_checkpointing:
            compute_twice(bare)
        if processes.device.type == "cpu" and precision == "bf16":
            # The fused attention's backward pass takes more than three times as long there (docs/benchmarks.md).
            bare.backbone.language_model.set_attn_implementation("eager")
        self.bare, self.model = bare, processes.spread(bare.train())
        trained = [p for p in bare.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
        self.average = WeightAverage(bare, config.ema_decay)
        self.point_std = torch.tensor(bare.config.point_std, device=processes.device)

    @staticmethod
    def start(config: "TrainConfig") -> "TrainingRun":
        """A new run, or the one in `config.output` with `resume`. Raises `VolarError` on unusable input."""
        processes = Processes(config.parallel)
        last = checkpoint_to_resume(config, processes)
        config = completed(config, last)
        torch.manual_seed(config.seed)
        with processes.one_by_one():
            data = open_data(config)
        contract = training_contract(config, data)
        data = data.under(contract)
        if last is not None:
            return TrainingRun._resumed(config, processes, last, data, contract)
        network = make_network(config, contract, data.sources, data.labels_hand)
        if network.anew and processes.first:
            print(network.anew, flush=True)
        tokenizer = network.tokenizer.with_words(data.texts)
        (fast,) = processes.agree(choose_precision(config.precision) == "bf16")
        precision = "bf16" if fast else "no"
        return TrainingRun(config, processes, network.model, network.contract, tokenizer, data, precision)

    @staticmethod
    def _resumed(
        config: "TrainConfig", processes: Processes, last: Path, data: Data, contract: PolicyContract
    ) -> "TrainingRun":
        """The run as its last checkpoint left it: weights, averages, moments, vocabulary, precision and place."""
        from volar.vla.checkpoint_policy import load_parts

        model, before, tokenizer = load_parts(last / "pretrained_model")  # the averaged weights
        now = policy_contract(contract, model.config)
        # A run of before does not say what the network makes of images.
        facts = now.preprocessing if IMAGE in before.preprocessing else contract.preprocessing
        contract = replace(now, preprocessing=facts)
        progress = load_progress(last / "training_state")
        training = TrainingRun(config, processes, model, contract, tokenizer, data, progress["precision"])
        was, has = progress.get("data"), dict[str, Any](training.data_facts)
        if was is None:  # a run of before: frames alone
            was, has = {"frames": progress["frames"]}, {"frames": [part.frames for part in training.parts]}
        changed = [
            f"{name}: {was.get(name)}, now {has.get(name)}" for name in {**was, **has} if was.get(name) != has.get(name)
        ]
        if before != contract or changed:
            said = "; ".join(changed) or "its contract"
            raise VolarError(
                f"the data of {config.output} have changed since it was trained on them ({said}): start a new run with "
                f"init={config.output}"
            )
        load_training_state(last / "training_state", training.bare, training.optimizer)
        training.step, training.elapsed_s = int(progress["step"]), float(progress["elapsed_s"])
        return training

    @property
    def data_facts(self) -> dict[str, str]:
        """What must be the same for a resumed run to go on exactly: of each source in order frames, contract, share."""
        facts: dict[str, str] = {}
        for part in self.parts:
            shares = part.mixture.shares
            for source in part.mixture.sources:
                frames, contract = part.mixture.sizes[source.name], source.contract.sha256[:12]
                about = f"{frames} frames, contract {contract}, share {shares[source.name]:.6f}"
                facts[f"{len(facts)} {source.name}"] = about
        if self.data.answers:
            facts["answers"] = hashlib.sha256("\n".join(self.data.answers).encode()).hexdigest()[:12]
        return facts

    def done(self, config: "TrainConfig") -> float:
        """The share of the run that is over, in [0, 1]."""
        if config.steps is not None:
            return min(1.0, self.step / config.steps)
        return min(1.0, self.elapsed_s / (60 * float(config.minutes or 1)))

    def train_step(self, learning_rate: float) -> Losses:
        """One optimizer step on the samples that `seed` and `step` determine, of which this process takes its share.

        Returns this process's part of the step's losses. Weights stay as they are where `gradient_norm` is no number.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        pieces = self.config.accumulate
        first, shares = self.processes.index * pieces, self.processes.count * pieces
        samples = [self.batch(self.step, first + i, shares) for i in range(pieces)]
        here = sum(Counts.of(s["mask"], s["points"], s["answers"]).to_vector() for s in samples)
        assert isinstance(here, Tensor)
        counts = Counts.from_vector(self.processes.sum(here).to(self.processes.device))
        self.said, found = [], []
        for i, sample in enumerate(samples):
            last = i == pieces - 1
            with nullcontext() if last else self.processes.apart(self.model):
                losses = self._losses(self.on_device(sample), counts, first + i)
                # Gradients are averaged over processes, and each of these losses is a part of a sum.
                self.accelerator.backward(losses.total * self.processes.count)
            found.append(losses)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)  # of all processes' together
        self.gradient_norm = float(whole(norm))
        self.step += 1
        if math.isfinite(self.gradient_norm):
            self.optimizer.step()
            self.average.update(self.bare, self.step)
        self.optimizer.zero_grad()
        return found[0] if pieces == 1 else added(found)

    def _losses(self, sample: dict[str, Tensor], counts: Counts, share: int) -> Losses:
        # All that is drawn, by a decoder's loss or a pretrained model's dropout, follows from the step and the share.
        draws = np.random.SeedSequence([self.config.seed, self.step, *([share] if share else [])])
        seed = int(draws.generate_state(1)[0])
        torch.manual_seed(seed)
        with self.accelerator.autocast():
            outputs = self.look(sample, self.model, seed)
        labels = (sample["actions"], sample["mask"], sample["points"])
        if isinstance(outputs, Outputs):
            self.said.append(Said(outputs.action_logits.detach(), sample["actions"], sample["mask"]))
        return imitation_loss(
            outputs, *labels, self.point_std, sample["answers"] if self.data.answers else None, counts
        )

    def look(self, sample: dict[str, Tensor], model: torch.nn.Module, seed: int = 0) -> Outputs | Imitated:
        """What a network says about samples on its device; with what follows in words where there are questions."""
        cameras = None if sample["camera_mask"].all() else sample["camera_mask"]
        seen = (sample["pixels"], sample["input_ids"], sample["state"], cameras)
        outputs: Outputs | Imitated = model(
            *seen, sample["actions"], sample["mask"], seed, answers=bool(self.data.answers)
        )
        return outputs

    def batch(self, step: int, share: int = 0, shares: int = 1) -> dict[str, Tensor]:
        """Share `share` of `shares` of a step's samples, on the CPU."""
        here = places([part.mixture.batch_size for part in self.parts], step, share, shares)
        pieces = [self.tensors(part, part.mixture.at(at)) for part, at in zip(self.parts, here, strict=True) if len(at)]
        return {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}

    def on_device(self, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        """There, and with `pixels`; without the padding that all instructions have."""
        sample = sample | {"input_ids": self.bare.backbone.without_padding(sample["input_ids"])}
        moved = {key: value.to(self.processes.device, non_blocking=True) for key, value in sample.items()}
        images = {c.name: moved[f"image.{c.name}"] for c in self.contract.cameras}
        return moved | {"pixels": pixels_from_images(images, self.bare.config.backbone)}

    def tensors(self, part: Part, batch: Batch) -> dict[str, Tensor]:
        """A batch as the network and its losses take it, on the CPU and with images as they are."""
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
            "answers": torch.from_numpy(part.answer_ids[batch.instruction_id]),
        }

    def save(self) -> Path:
        """Writes a checkpoint; returns its policy directory. Raises `VolarError` when the disk does not take it."""
        root = self.config.output / "checkpoints"
        (there,) = self.processes.agree((root / "last").resolve().name == f"{self.step:06d}")
        if not there:  # a checkpoint is written once
            write_checkpoint(root, self)
            self.processes.wait()
        return root / "last" / "pretrained_model"

    def summary(self) -> str:
        frames = ", ".join(f"{part.frames} frames ({part.mixture.batch_size} a batch)" for part in self.parts)
        size = sum(p.numel() for p in self.bare.parameters()) / 1e6
        how, where = self.accelerator.mixed_precision, str(self.processes.device)
        if self.processes.count > 1:
            where = f"{self.processes.count} processes ({self.processes.parallel}) of {self.processes.device.type}"
        return f"{self.config.stage}: {size:.2f} M parameters, {frames}, precision {how}, on {where}"


def compute_twice(model: VolarModel) -> None:
    """Layers keep nothing but their inputs. Raises `VolarError` where that cannot be (decoder flow, some models)."""
    if model.config.decoder == "flow":
        raise VolarError("gradient_checkpointing=true drops the keys and values that decoder=flow reads: leave it away")
    network = model.backbone.model
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise VolarError(f"gradient_checkpointing=true: {error}") from error


def added(parts: list[Losses]) -> Losses:
    """The losses of a step from those of its parts, without their gradients."""
    named = [part.named() for part in parts]
    return Losses(**{name: torch.tensor(sum(found[name] for found in named)) for name in named[0]})


def training_contract(config: "TrainConfig", data: Data) -> PolicyContract:
    """The dataset's contract with this run's chunk. Raises `ContractError` when the sources do not fit."""
    assert config.chunk_length is not None
    assert config.execute_steps is not None
    contract = data.sources[0].contract
    contract = replace(contract, chunk_length=config.chunk_length, execute_steps=config.execute_steps)
    if config.stage == "cloning" and "action" not in contract.statistics:
        have = f"{config.dataset} holds no action statistics"
        raise ContractError(f"{have}: cloning needs demonstrations (stage=grounding does not)")
    for source, where in ((data.scenes, config.scenes), (data.questions, config.questions)):
        if source is not None:
            require_same_inputs(source.contract, contract, where)
    return contract


def require_same_inputs(
    a: PolicyContract, b: PolicyContract, where: Path | None, whom: str = "the dataset", but: tuple[str, ...] = ()
) -> None:
    """Raises `ContractError` listing the differing fields among robot, cameras, state and action, except `but`; `a` is
    the contract of `where`, `b` that of `whom`."""
    from volar.robots.contract import differences

    ignore = ("statistics", "chunk_length", "execute_steps", "preprocessing", "instruction_template")
    found = differences(b, a, ignore=(*ignore, *but))
    if found:
        raise ContractError(f"{where} does not fit {whom}: " + "; ".join(map(str, found)))
