"""A weighted mixture of datasets as one endless stream of batches, in one process or many.

    sources = sources_of(load_mixture("runs/a:0.7,runs/b:0.3"), caches, contracts, MixtureRules())
    rank, ranks = accelerator.process_index, accelerator.num_processes
    loader = MixtureLoader(Mixture(sources, batch_size=64, seed=0, rank=rank, ranks=ranks), workers=2)

Batch k of the stream is a function of the mixture and k alone (`mixture_order.py`). Of R processes, number r gets
batches r, r + R, ...; of its W workers, number w makes every W-th of those, and `DataLoader` hands them on in order. So
every place is taken exactly once, and the state of a run is one number. The processes are already sharded: do not
pass the loader through Accelerate's `prepare`, only the model and the optimizer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from volar.datasets.action_chunks import ActionChunks, Batch
from volar.datasets.augmentation import Augmentation
from volar.datasets.episode import without_places
from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_layout import IMAGE_PREFIX, POINTS
from volar.datasets.mixture_contract import MixtureRules, mixture_contracts
from volar.datasets.mixture_order import MixtureOrder
from volar.datasets.mixture_states import STATE
from volar.datasets.normalizer import Normalizer
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.errors import Unknown, UsageError, VolarError

MIXTURES = Path(__file__).parent / "configs" / "mixture"


@dataclass(frozen=True)
class Source:
    """One dataset of a mixture: its frames, and its contract with the statistics it is normalized with.

    `state_places`: (S_i,), where the numbers of its frames' states are in the contract's; None where they are those.
    `rows`: int64 (N,), the frames that are drawn from; None: all.
    """

    name: str
    weight: float
    frames: FrameCache
    contract: PolicyContract
    state_places: NDArray[np.int64] | None = None
    rows: NDArray[np.int64] | None = None

    @property
    def size(self) -> int:
        """Frames that are drawn from."""
        return len(self.frames) if self.rows is None else len(self.rows)


def load_mixture(text: str) -> dict[str, float]:
    """Dataset -> weight, of `NAME:WEIGHT,NAME:WEIGHT`, of a mixture in `configs/mixture`, or of one's own YAML file.

    A name is a folder, relative to wherever the caller keeps its datasets; without a weight it is 1. The YAML is
    a mapping `name: weight`. Raises `Unknown`, `UsageError`.
    """
    if ":" in text or "," in text:
        parts = [part.strip().rpartition(":") if ":" in part else (part.strip(), ":", "1") for part in text.split(",")]
        items: list[tuple[Any, Any]] = [(name, weight) for name, _, weight in parts]
        where = f"mixture {text!r}"
    else:
        from omegaconf import OmegaConf

        path = Path(text) if text.endswith((".yaml", ".yml")) else MIXTURES / f"{text}.yaml"
        if not path.is_file():
            raise Unknown("mixture", text, [p.stem for p in MIXTURES.glob("*.yaml")])
        raw = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(raw, dict):
            raise UsageError(f"{path} must be a mapping 'name: weight'")
        items, where = list(raw.items()), str(path)
    weights: dict[str, float] = {}
    for name, weight in items:
        try:
            weights[str(name)] = float(weight)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where}: the weight of {name} is {weight!r}, not a number") from error
    if not weights or len(weights) < len(items) or "" in weights:
        raise UsageError(f"{where} must name each dataset once")
    return weights


def sources_of(
    weights: Mapping[str, float],
    caches: Sequence[FrameCache],
    contracts: Sequence[PolicyContract],
    rules: MixtureRules,
) -> list[Source]:
    """Checks the datasets against the first and gives them the statistics that `rules` say. Raises `ContractError`."""
    names = list(weights)
    fitted, layout = mixture_contracts(names, caches, contracts, rules)
    places = layout.places if layout else (None,) * len(names)
    return [Source(*item) for item in zip(names, weights.values(), caches, fitted, places, strict=True)]


class Mixture(IterableDataset[dict[str, Any]]):
    """Batches of B samples, as tensors in LeRobot's keys, normalized; or, by number, as `Batch` in physical units.

    The first source's contract says which cameras there are and their sizes; others are scaled to those, and a
    camera that a source or an episode lacks is black and masked: whether that is wanted, `sources_of` has checked.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        batch_size: int,
        seed: int,
        chunk_length: int | None = None,
        weights: str = "share",
        rank: int = 0,
        ranks: int = 1,
        augmentation: Augmentation | None = None,
    ) -> None:
        """`weights`: as in `MixtureRules`. `chunk_length`: H, the first contract's by default."""
        if not 0 <= rank < ranks or batch_size < 1:
            raise ValueError(f"rank {rank} of {ranks}, batch_size {batch_size}")
        self.sources, self.batch_size, self.seed = tuple(sources), batch_size, seed
        self.rank, self.ranks, self.augmentation = rank, ranks, augmentation or Augmentation()
        self.contract = sources[0].contract
        length = chunk_length or self.contract.chunk_length
        self.chunks = [ActionChunks(source.frames, length) for source in sources]
        self.sizes = {source.name: source.size for source in sources}
        by_size = {source.name: source.weight * self.sizes[source.name] for source in sources}
        self.shares = by_size if weights == "frames" else {source.name: source.weight for source in sources}
        self.order = MixtureOrder(self.sizes, self.shares, seed)
        self.instructions = tuple(text for source in sources for text in source.frames.instructions)
        self.start = 0  # batches of this process that are behind it

    def batch(self, number: int) -> Batch:
        """Batch `number` of the whole stream, in physical units."""
        return self.at(np.arange(number * self.batch_size, (number + 1) * self.batch_size))

    def at(self, places: NDArray[np.int64]) -> Batch:
        """The samples at rising places (B,) of the stream, in physical units."""
        source, index = self.order.at(places)
        parts, rows, instruction = [], [], 0
        for s, chunks in enumerate(self.chunks):
            row = np.flatnonzero(source == s)
            if len(row):
                drawn = self.sources[s].rows
                part = chunks.batch(index[row] if drawn is None else drawn[index[row]])
                part = replace(part, source=source[row], instruction_id=part.instruction_id + np.int32(instruction))
                parts.append(_with_cameras(_with_state(part, self.sources[s]), self.contract.cameras))
                rows.append(row)
            instruction += len(chunks.cache.instructions)
        return self.augmentation.apply(_joined(parts, rows), places, self.seed)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Endless; in a worker of a `DataLoader` (with `batch_size=None`) this worker's part."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        number = self.start + worker
        while True:
            yield self.tensors(self.batch(number * self.ranks + self.rank))
            number += workers

    def tensors(self, batch: Batch) -> dict[str, Any]:
        """LeRobot's keys: images uint8 (B, H, W, 3); `observation.state` (B, S) and `action` (B, H, A), normalized
        with their source's statistics; `..._is_pad` True where there is nothing; `task`: the instructions."""
        shown = {IMAGE_PREFIX + name: torch.from_numpy(images) for name, images in batch.images.items()}
        masks = {
            f"{IMAGE_PREFIX}{name}_is_pad": torch.from_numpy(~batch.camera_mask[name])
            if name in batch.camera_mask
            else torch.zeros(len(batch.source), dtype=torch.bool)
            for name in batch.images
        }
        numbers: dict[str, Tensor] = {
            STATE: torch.from_numpy(self.normalized(batch, STATE, batch.state)),
            "action": torch.from_numpy(self.normalized(batch, "action", batch.actions)),
            "action_is_pad": torch.from_numpy(~batch.action_mask),
            "observation.state_is_pad": torch.from_numpy(~batch.state_mask)
            if batch.state_mask is not None
            else torch.zeros(batch.state.shape, dtype=torch.bool),
            POINTS: torch.from_numpy(batch.points),
            "instruction_id": torch.from_numpy(batch.instruction_id),
            "source": torch.from_numpy(batch.source),
        }
        return shown | masks | numbers | {"task": list(batch.instructions)}

    def normalized(self, batch: Batch, key: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, ..., D), each sample with its source's statistics. Raises `MissingStatistics`."""
        y = np.empty_like(x)
        for s in np.unique(batch.source).tolist():
            here = batch.source == s
            y[here] = Normalizer.of_contract(self.sources[s].contract, key).normalize(x[here])
        return y


class MixtureLoader:
    """The batches of one process, made by `workers` processes ahead of time; counts what it has handed out.

    Its state may be loaded with any number of workers, and of ranks when that divides the batches taken.
    """

    def __init__(self, mixture: Mixture, workers: int = 0, *, prefetch: int = 2, pin_memory: bool = False) -> None:
        self.mixture, self.batches = mixture, 0
        self._options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin_memory}
        if workers:
            self._options |= {"prefetch_factor": prefetch}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.mixture.start = self.batches
        for batch in DataLoader(self.mixture, batch_size=None, **self._options):
            self.batches += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """JSON values; the same in all ranks."""
        mixture = self.mixture
        about = {"sizes": mixture.sizes, "shares": mixture.shares, "seed": mixture.seed}
        return about | {"batch_size": mixture.batch_size, "batches": self.batches * mixture.ranks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `VolarError` when the state is of another mixture, seed or batch size."""
        here = self.state_dict()
        del here["batches"]
        # The stream depends on the order of the datasets too, which a comparison of mappings does not see.
        wrong = [f"{k}: was {state.get(k)}, is {v}" for k, v in here.items() if _pairs(state.get(k)) != _pairs(v)]
        if wrong:
            raise VolarError(f"cannot resume the mixture: {'; '.join(wrong)}")
        batches, left = divmod(int(state["batches"]), self.mixture.ranks)
        if left:
            raise VolarError(
                f"{state['batches']} batches were taken; {self.mixture.ranks} processes do not divide them"
            )
        self.batches = batches


def _pairs(value: Any) -> Any:
    return list(value.items()) if isinstance(value, Mapping) else value


def _with_state(batch: Batch, source: Source) -> Batch:
    """The contract's state vector; what the dataset does not have is what its normalizer makes 0, and masked."""
    if source.state_places is None:
        return batch
    offset = Normalizer.of_contract(source.contract, STATE).offset  # (S,)
    state, mask = np.tile(offset, (len(batch.state), 1)), np.zeros((len(batch.state), len(offset)), bool)
    own = slice(None, len(source.state_places))  # of no state that is used, none
    state[:, source.state_places], mask[:, source.state_places] = batch.state[:, own], True
    return replace(batch, state=state, state_mask=mask)


def _with_cameras(batch: Batch, cameras: Sequence[CameraSpec]) -> Batch:
    """The contract's cameras in its order and sizes; points go with the first camera, whose places they name.

    Where the dataset's own first camera is another one, of the points only their positions are kept.
    """
    import cv2

    count = len(batch.source)
    images, masks = {}, {}
    for camera in cameras:
        there = camera.name in batch.images
        masks[camera.name] = batch.camera_mask.get(camera.name, np.full(count, there))
        frames = batch.images[camera.name] if there else np.zeros((count, camera.height, camera.width, 3), np.uint8)
        if frames.shape[1:3] != (camera.height, camera.width):
            size = (camera.width, camera.height)
            frames = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in frames])
        images[camera.name] = frames
    first = masks[cameras[0].name] if cameras else np.zeros(count, bool)
    points = np.where(first[:, None, None], batch.points, np.float32(np.nan))
    if cameras and next(iter(batch.images), None) != cameras[0].name:
        points = without_places(points)
    return replace(batch, images=images, camera_mask=masks, points=points)


def _joined(parts: Sequence[Batch], rows: Sequence[NDArray[np.int64]]) -> Batch:
    """The samples of all parts, each at its row."""
    if len(parts) == 1:
        return parts[0]
    back = np.argsort(np.concatenate(rows))

    def join(arrays: list[NDArray[Any]]) -> NDArray[Any]:
        joined: NDArray[Any] = np.concatenate(arrays)[back]
        return joined

    texts = [text for part in parts for text in part.instructions]
    names = ["state", "actions", "action_mask", "points", "instruction_id", "source"]
    names += ["state_mask"] if parts[0].state_mask is not None else []
    return Batch(
        images={name: join([part.images[name] for part in parts]) for name in parts[0].images},
        camera_mask={name: join([part.camera_mask[name] for part in parts]) for name in parts[0].camera_mask},
        instructions=tuple(texts[i] for i in back),
        **{name: join([getattr(part, name) for part in parts]) for name in names},
    )
