"""An OpenVLA checkpoint as a `Policy`: one image and an instruction in, one action out."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.robots.exported_policy import check_observation
from volar.robots.interface import ActionChunk, Observation
from volar.vla.action_tokenizers.uniform_bins import UniformBins
from volar.vla.openvla.checkpoint import TOKENIZER, Checkpoint, OpenVLAError

CONTRACT = "contract.json"
CENTER_CROP = "openvla.center_crop"  # of a contract's preprocessing: the share of the image's area that is kept
PROMPT = "In: What action should the robot take to {instruction}?\nOut:"  # the contract's instruction_template


class OpenVLAPolicy:
    """The policy in a folder that `volar-convert source=openvla` made; on the GPU where there is one.

    The same tokens and actions as OpenVLA's own `predict_action(do_sample=False)`, with two differences: a token that
    is no action token raises `DecodeError`, where OpenVLA takes it for the nearest bin, and actions are clipped to the
    contract's bounds; conversion tells where that changes one. Computed in the type of the stored weights. Raises
    `OpenVLAError`, and `ContractError` when there is no contract.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        checkpoint = Checkpoint.open(folder)
        self._contract = PolicyContract.load(folder / CONTRACT)
        if "action" not in self._contract.statistics:
            raise OpenVLAError(f"{folder / CONTRACT} has no statistics of the actions; convert the checkpoint again")
        try:
            self._words = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # what `tokenizers` raises
            raise OpenVLAError(f"{folder / TOKENIZER} cannot be read: {error}") from error
        self._words.no_padding()  # what a training run saved there holds for its batches
        self._words.no_truncation()
        self._bins = UniformBins(checkpoint.vocabulary_size)
        self._start = checkpoint.text.bos_token_id
        crop = self._contract.preprocessing.get(CENTER_CROP)
        self._crop = None if crop is None else float(crop)
        self._means, self._stds = checkpoint.means, checkpoint.stds
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = checkpoint.load(self._device)
        self._dtype = self._model.projector.fc1.weight.dtype

    @property
    def contract(self) -> PolicyContract:
        return self._contract

    def reset(self, seed: int) -> None:
        """Nothing to reset: decoding is greedy and the policy has no memory."""

    def predict(self, observation: Observation) -> ActionChunk:
        """Raises `ContractError` when the camera is not the contract's, `DecodeError` for tokens that are no action."""
        check_observation(self._contract, observation)
        (camera,) = self._contract.cameras
        ids = self.prompt_ids(observation.instruction)
        pixels = self.pixels(observation.images[camera.name])
        size = self._contract.action.size
        tokens = self._model.action_tokens(pixels, ids, size)
        action = self.physical(self._bins.decode_chunk(tokens, (1, size)))  # (1, A)
        return ActionChunk(action, observation.stamp_ns, 1.0 / self._contract.action.rate_hz)

    def prompt_ids(self, instruction: str) -> torch.Tensor:
        """(1, T), <s> first. Training data was in lower case."""
        text = self._contract.instruction_template.format(instruction=instruction.lower())
        ids = self._words.encode(text).ids
        if not ids or ids[0] != self._start:
            raise OpenVLAError(f"{TOKENIZER} does not begin a text with <s> ({self._start}): it is not OpenVLA's")
        return torch.tensor([ids], device=self._device)

    def pixels(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 (S, S, 3) -> (1, 6, S, S): normalized as the first tower wants it, and as the second does."""
        seen = image if self._crop is None else center_crop(image, self._crop)
        x = torch.tensor(seen).permute(2, 0, 1).float() / 255.0  # (3, S, S)
        mean, std = (
            torch.tensor(self._means)[..., None, None],
            torch.tensor(self._stds)[..., None, None],
        )  # (2, 3, 1, 1)
        return ((x - mean) / std).flatten(0, 1)[None].to(self._device, self._dtype)

    def physical(self, normalized: NDArray[np.float64]) -> NDArray[np.float32]:
        """(..., A) in [-1, 1] -> the contract's units, by OpenVLA's formula; masked dimensions stay as they are."""
        s, action = self._contract.statistics["action"], self._contract.action
        low, high = np.array(s.q01), np.array(s.q99)
        moved = np.where(s.mask, 0.5 * (normalized + 1.0) * (high - low) + low, normalized)
        return np.clip(moved, action.low, action.high).astype(np.float32)


def center_crop(image: NDArray[np.uint8], area: float) -> NDArray[np.uint8]:
    """uint8 (S, S, 3) -> the middle with that share of its area, scaled back to (S, S, 3).

    As OpenVLA evaluates what was trained with random crops: TensorFlow's `crop_and_resize`, which samples linearly
    between corners, and its conversion to bytes, which cuts off x * 255.5.
    """
    size = len(image)
    side = float(np.sqrt(area))
    places = (1.0 - side) / 2.0 * (size - 1) + np.arange(size) * side
    low = np.floor(places).astype(int)
    high, share = np.minimum(low + 1, size - 1), places - low
    x = image.astype(np.float64) / 255.0
    rows = x[low] + (x[high] - x[low]) * share[:, None, None]
    both = rows[:, low] + (rows[:, high] - rows[:, low]) * share[None, :, None]
    cropped: NDArray[np.uint8] = (np.clip(both, 0.0, 1.0) * 255.5).clip(0, 255).astype(np.uint8)
    return cropped


def load(directory: Path) -> OpenVLAPolicy:
    """The entry point `volar.policies`."""
    try:
        return OpenVLAPolicy(directory)
    except torch.OutOfMemoryError as error:
        raise VolarError(f"{directory} does not fit this machine's GPU: {error}") from error
