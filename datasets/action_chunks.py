"""Training samples: one frame and the H actions that follow it, by index, in batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.datasets.frame_cache import FrameCache
from volar.robots.errors import VolarError


@dataclass(frozen=True)
class Batch:
    """B samples. `images`: camera -> uint8 (B, H, W, 3); `state`: float32 (B, S), physical units.

    `actions`: float32 (B, H, A), physical units; `action_mask`: bool (B, H), False past the episode's end,
    where the last action is repeated. `points`: float32 (B, 3, 5), NaN where there is none.
    `instruction_id`: int32 (B,), into the cache's `instructions`; `instructions`: their texts. `source`: int64
    (B,), which dataset of a mixture. `camera_mask`: camera -> bool (B,), False where the episode or the whole dataset
    lacks the camera and the image is black; a camera that is not named is there in all samples. `state_mask`: bool
    (B, S), False where the dataset has no such number; None where all are there.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    action_mask: NDArray[np.bool_]
    points: NDArray[np.float32]
    instruction_id: NDArray[np.int32]
    instructions: tuple[str, ...]
    source: NDArray[np.int64]
    camera_mask: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    state_mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class ActionChunks:
    """Samples of a cache: sample i is frame i and the actions i .. i + H - 1 of the same episode.

    `chunk_length`: H. Raises `ValueError` when it is below 1.
    """

    cache: FrameCache
    chunk_length: int

    def __post_init__(self) -> None:
        if self.chunk_length < 1:
            raise ValueError(f"chunk_length must be at least 1, is {self.chunk_length}")

    def __len__(self) -> int:
        return len(self.cache)

    def batch(self, indices: NDArray[np.integer]) -> Batch:
        """Samples at `indices` (B,), in that order. Raises `IndexError` when one is out of range."""
        cache = self.cache
        i = np.asarray(indices, dtype=np.int64)
        steps = i[:, None] + np.arange(self.chunk_length)  # (B, H)
        end = cache.episode_end[i][:, None]  # (B, 1)
        ids = cache.instruction_id[i]
        return Batch(
            images={name: np.asarray(array[i]) for name, array in cache.images.items()},
            state=cache.state[i],
            actions=cache.action[np.minimum(steps, end - 1)],  # (B, H, A)
            action_mask=steps < end,
            points=cache.points[i],
            instruction_id=ids,
            instructions=tuple(cache.instructions[k] for k in ids),
            source=np.zeros(len(i), np.int64),
            camera_mask={name: mask[i] for name, mask in cache.camera_mask.items()},
        )

    def __getitem__(self, index: int) -> Batch:
        """A batch of one."""
        return self.batch(np.array([range(len(self))[index]]))


class ShuffledIndices:
    """Endless batches of indices: every sample once in each epoch, in an order of its own.

    Step k takes the places k B .. (k + 1) B - 1 of the epochs' permutations laid end to end, so the order
    depends on (n, batch_size, seed) and the step alone, and a resumed run goes on exactly.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        if n < 1 or batch_size < 1:
            raise ValueError(f"n and batch_size must be at least 1, are {n} and {batch_size}")
        self.n, self.batch_size, self.seed, self.step = n, batch_size, seed, 0
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def at(self, step: int) -> NDArray[np.int64]:
        """The indices (B,) of a step."""
        return self.places(np.arange(step * self.batch_size, (step + 1) * self.batch_size))

    def places(self, place: NDArray[np.int64]) -> NDArray[np.int64]:
        """The indices (B,) at rising places of the epochs laid end to end."""
        first, last = int(place[0] // self.n), int(place[-1] // self.n)
        self._epochs = {e: p for e, p in self._epochs.items() if first <= e <= last}
        order = np.concatenate([self._permutation(epoch) for epoch in range(first, last + 1)])
        indices: NDArray[np.int64] = order[place - first * self.n]
        return indices

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return self

    def __next__(self) -> NDArray[np.int64]:
        self.step += 1
        return self.at(self.step - 1)

    def state_dict(self) -> dict[str, int]:
        return {"n": self.n, "batch_size": self.batch_size, "seed": self.seed, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `VolarError` when the state is of another data set, batch size or seed."""
        for name in ("n", "batch_size", "seed"):
            if state[name] != getattr(self, name):
                raise VolarError(f"cannot resume: {name} was {state[name]}, is {getattr(self, name)}")
        self.step = int(state["step"])

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            self._epochs[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.n)
        return self._epochs[epoch]
