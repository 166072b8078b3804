"""Chunks that action tokenizers are trained on and measured with: a dataset's actions, without its images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from volar.datasets.lerobot_layout import FRAMES
from volar.datasets.mixture import Source
from volar.datasets.normalizer import Normalizer
from volar.vla.action_tokenizers import tokenizer_class
from volar.vla.action_tokenizers.action_tokenizer import ActionTokenizer

CHUNKS = 20_000  # more change hardly a merge


def read_actions(dataset: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Actions (N, A) of a LeRobotDataset or of frames, and of each frame where its episode ends (N,).

    Raises `DatasetError` when it cannot be read.
    """
    if (dataset / FRAMES).is_file():
        return np.load(dataset / "action.npy"), np.load(dataset / "episode_end.npy")
    import pyarrow.parquet as pq

    from volar.datasets.lerobot_format import load_info, vectors

    info = load_info(dataset)
    files = list(dict.fromkeys(info.data_file(row) for row in info.episodes))
    actions = np.concatenate([vectors(pq.ParquetFile(path).read(["action"]), "action") for path in files])
    lengths = [int(row["length"]) for row in info.episodes]
    return actions.astype(np.float32), np.repeat(np.cumsum(lengths), lengths)


def chunks_at(
    starts: NDArray[np.int64], actions: NDArray[np.float32], episode_end: NDArray[np.int64], chunk_length: int
) -> NDArray[np.float32]:
    """The chunks (n, H, A) that begin at frames `starts` (n,); past an episode's end its last action is repeated."""
    steps = starts[:, None] + np.arange(chunk_length)
    chunks: NDArray[np.float32] = actions[np.minimum(steps, episode_end[starts][:, None] - 1)]
    return chunks


def train_tokenizer(name: str, sources: Sequence[Source], chunk_length: int, seed: int = 0) -> ActionTokenizer:
    """The tokenizer of that name for a training run's demonstrations, each normalized by its own contract.

    It sees `CHUNKS` of them at most, drawn in proportion to the sources' weights. Raises `Unknown`.
    """
    kind, rng = tokenizer_class(name), np.random.default_rng(seed)
    total = sum(source.weight for source in sources)
    parts = []
    for source in sources:
        frames = source.frames
        count = min(source.size, max(1, round(CHUNKS * source.weight / total)))
        starts = np.sort(rng.choice(source.size, count, replace=False))
        if source.rows is not None:
            starts = source.rows[starts]
        chunks = chunks_at(starts, frames.action, frames.episode_end, chunk_length)
        parts.append(Normalizer.of_contract(source.contract, "action").normalize(chunks))
    return kind.train(np.concatenate(parts))
