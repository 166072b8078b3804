"""Has what was asked for been done? A small network on the policy's own trunk says so, from images, state and words.

What the trunk makes of cameras, proprioception and the instruction (the mean hidden state of its action queries, the
positions it points to), beside the normalized state, goes through two hidden layers. Nothing of the simulator's state
enters. The trunk is a copy: a policy that learns does not move the judge of what it does.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from volar.robots.contract import ContractError, PolicyContract, differences, is_policys_own
from volar.robots.errors import VolarError
from volar.robots.kinematics import Arm
from volar.sim.world import TaskWorld
from volar.vla.checkpoint_policy import load_parts
from volar.vla.heads import POINTS
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import VolarModel, pixels_from_images
from volar.vla.processor_volar import StateScaler, save_policy

FACTS, HEAD, TRUNK = "classifier.json", "head.safetensors", "trunk"  # files and the policy's folder in a classifier's
_HIDDEN, _DROPOUT = 128, 0.1
# What a policy's contract must share: what is seen, and how often.
_SEEN = ("robot", "cameras", "state_names", "state_units", "action.rate_hz")
Array = NDArray[Any]


@dataclass(frozen=True)
class Look:
    """What the judge sees at one moment: camera -> uint8 (H, W, 3), and the state (S,) in physical units."""

    images: Mapping[str, Array]
    state: NDArray[np.float32]


@dataclass(frozen=True)
class Facts:
    """What a trained classifier says of itself. `thresholds`: task -> the least probability that counts as success;
    `consecutive`: steps in a row that must; `contract_sha256`: of the trunk's contract."""

    contract_sha256: str
    thresholds: Mapping[str, float]
    consecutive: int
    randomization: str


class SuccessNetwork(nn.Module):
    """Trunk and head. `mean`, `std` (F,): of the features it learned from."""

    mean: Tensor
    std: Tensor

    def __init__(self, vla: VolarModel, contract: PolicyContract, tokenizer: InstructionTokenizer) -> None:
        if vla.config.decoder != "parallel":
            raise VolarError(f"a policy with decoder={vla.config.decoder} has no queries to judge by; use parallel")
        super().__init__()
        self.vla, self.contract, self.tokenizer = vla, contract, tokenizer
        self.state_scaler = StateScaler(contract)
        size = vla.backbone.width + 3 * POINTS + len(contract.state_names)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.head = nn.Sequential(
            nn.Linear(size, _HIDDEN), nn.SiLU(), nn.Dropout(_DROPOUT), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU()
        )
        self.head.append(nn.Linear(_HIDDEN, 1))

    @torch.inference_mode()
    def features(self, looks: list[Look], instruction: str) -> NDArray[np.float32]:
        """(N, F) of N looks under one instruction."""
        cameras = [camera.name for camera in self.contract.cameras]
        images = {name: torch.from_numpy(np.stack([look.images[name] for look in looks])) for name in cameras}
        pixels = pixels_from_images(images, self.vla.config.backbone)
        text = self.contract.instruction_template.format(instruction=instruction)
        ids = torch.from_numpy(self.tokenizer.encode([text])).expand(len(looks), -1)
        state = self.state_scaler(torch.from_numpy(np.stack([look.state for look in looks])))
        seen = self.vla.trunk(pixels, ids, state)
        parts = (seen.queries.mean(1), seen.scaled_points.flatten(1), state)
        return torch.cat(parts, 1).numpy()

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> logits (N,) of success."""
        logits: Tensor = self.head((features - self.mean) / self.std)[:, 0]
        return logits

    @torch.no_grad()
    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, F) -> (N,)"""
        self.head.eval()
        return np.asarray(self(torch.from_numpy(features)).double().sigmoid().numpy())


class Eyes:
    """Looks at a world as the policies of a contract do."""

    def __init__(self, contract: PolicyContract) -> None:
        self._contract = contract
        self._arm: Arm | None = None

    def look(self, world: TaskWorld) -> Look:
        if self._arm is None or self._arm.spec is not world.spec:
            self._arm = Arm(world.spec)
        measured = world.body.joint_state()
        state = self._arm.state(self._contract.state_names, measured.q, measured.gripper_width_m)
        return Look(world.body.images(), state)


class Streak:
    """Counts: success is what is likely enough in that many steps in a row."""

    def __init__(self, threshold: float, consecutive: int) -> None:
        self._threshold, self._consecutive, self._count = threshold, consecutive, 0

    def after_step(self, probability: float) -> bool:
        self._count = self._count + 1 if probability >= self._threshold else 0
        return self._count >= self._consecutive


class SuccessJudge:
    """A trained classifier as the `Judge` of `volar.rl.episodes`: what is true it does not look at."""

    def __init__(self, network: SuccessNetwork, facts: Facts) -> None:
        self.network, self.facts = network, facts
        self._eyes, self._instruction = Eyes(network.contract), ""
        self._streak = Streak(1.0, facts.consecutive)

    def begin(self, world: TaskWorld, instruction: str) -> None:
        self._instruction = instruction
        self._streak = Streak(self.facts.thresholds[world.task.name], self.facts.consecutive)

    def after_step(self, world: TaskWorld, success: bool) -> bool:
        features = self.network.features([self._eyes.look(world)], self._instruction)
        return self._streak.after_step(float(self.network.probabilities(features)[0]))


def save_classifier(folder: Path, network: SuccessNetwork, facts: Facts) -> None:
    """Writes `head.safetensors`, the trunk's policy folder, and last `classifier.json`."""
    from safetensors.torch import save_file

    save_policy(folder / TRUNK, network.vla, network.contract, network.tokenizer)
    own = {name: value.contiguous() for name, value in network.state_dict().items() if not name.startswith("vla.")}
    save_file(own, str(folder / HEAD), metadata={"contract_sha256": facts.contract_sha256})
    (folder / FACTS).write_text(json.dumps(asdict(facts), indent=1) + "\n")


def load_classifier(folder: Path) -> SuccessJudge:
    """What `save_classifier` wrote. Raises `VolarError` naming the file that is missing or broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    facts = read_facts(folder)
    model, contract, tokenizer = load_parts(folder / TRUNK)
    if contract.sha256 != facts.contract_sha256:
        raise VolarError(f"{folder / FACTS} is of contract {facts.contract_sha256}, its trunk of {contract.sha256}")
    network = SuccessNetwork(model, contract, tokenizer)
    try:
        missing, unexpected = network.load_state_dict(load_file(folder / HEAD), strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise VolarError(f"{folder / HEAD} cannot be loaded: {error}") from error
    wrong = [name for name in (*missing, *unexpected) if not name.startswith("vla.")]
    if wrong:
        raise VolarError(f"{folder / HEAD} does not hold what it should: {', '.join(wrong)}")
    return SuccessJudge(network.eval(), facts)


def read_facts(folder: Path) -> Facts:
    """Raises `VolarError` where there is no trained classifier."""
    path = folder / FACTS
    if not path.is_file():
        raise VolarError(f"no trained classifier at {folder}; make one with python -m volar.rl.success_classifier")
    try:
        return Facts(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise VolarError(f"{path} cannot be read: {error}") from error


def _is_seen(field: str) -> bool:
    _, of_preprocessing, fact = field.partition("preprocessing.")
    return not is_policys_own(fact) if of_preprocessing else field.startswith(_SEEN)


def require_classifier(folder: Path, contract: PolicyContract, tasks: tuple[str, ...]) -> None:
    """Raises `ContractError` listing the fields in which a policy is shown something else than the classifier, and
    `VolarError` for tasks it has not learned."""
    facts = read_facts(folder)
    own = PolicyContract.load(folder / TRUNK / "contract.json")
    wrong = [str(found) for found in differences(contract, own) if _is_seen(found.field)]
    if wrong:
        raise ContractError(f"the classifier {folder} does not fit the policy: {'; '.join(wrong)}")
    new = [task for task in tasks if task not in facts.thresholds]
    if new:
        known = ", ".join(facts.thresholds)
        raise VolarError(f"the classifier {folder} has not learned {', '.join(new)} (it knows {known}); train another")
