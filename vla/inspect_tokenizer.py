"""volar-train inspect_tokenizer: what a dataset's actions cost in tokens, and what they lose by it.

Tokenizers that are trained are trained on four fifths of the episodes; all are measured on the rest. Prints tokens a
chunk, without one that ends it, and the compression against one token a number; and for each action dimension how far
it comes back from where it was, in its own unit. What the normalization clips beforehand is listed by itself: no
tokenizer can help it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import UsageError

if TYPE_CHECKING:
    from volar.datasets.normalizer import Normalizer
    from volar.robots.contract import PolicyContract
    from volar.vla.action_tokenizers.action_tokenizer import ActionTokenizer

EXAMPLES = (
    "volar-train inspect_tokenizer dataset=runs/demos",
    "volar-train inspect_tokenizer dataset=data/bridge tokenizer=fast chunk_length=16",
)
ROUNDING = 1e-6  # of float32, in metres or radians: nothing was clipped
HELD_OUT = 5  # every fifth episode is measured on


@dataclass(frozen=True)
class InspectTokenizerConfig:
    """Settings of `volar-train inspect_tokenizer`."""

    dataset: Path = field(metadata={"help": "a LeRobotDataset v3 with meta/volar_contract.json"})
    tokenizer: str | None = field(default=None, metadata={"help": "bins or fast; null: all there are"})
    chunk_length: int = field(default=8, metadata={"help": "actions predicted at once"})
    normalization: Literal["q01_q99", "min_max"] = field(default="q01_q99", metadata={"help": "as for volar-train"})
    chunks: int = field(default=20_000, metadata={"help": "at most so many to train on, and to measure on"})
    seed: int = field(default=0, metadata={"help": "which chunks"})

    def __post_init__(self) -> None:
        for name in ("chunk_length", "chunks"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, is {getattr(self, name)}")


@dataclass(frozen=True)
class Measured:
    """Of one tokenizer. `tokens`: (N,) of each chunk; `mean_error`, `max_error`: (A,) in the actions' units."""

    vocabulary: int
    tokens: NDArray[np.int64]
    mean_error: NDArray[np.float64]
    max_error: NDArray[np.float64]


@dataclass(frozen=True)
class Inspection:
    """`clipped`: (A,) largest distance that the normalization moves an action; `held_out`: False for one episode."""

    contract: "PolicyContract"
    episodes: int
    held_out: bool
    clipped: NDArray[np.float64]
    by_name: dict[str, Measured]


def inspect_tokenizer(config: InspectTokenizerConfig) -> None:
    """Prints the tables. Raises `VolarError`."""
    from rich.console import Console
    from rich.table import Table

    from volar.vla.action_tokenizers import tokenizer_class

    found = measure(config)
    action, console = found.contract.action, Console()
    size = config.chunk_length * action.size
    about = Table(title=str(config.dataset))
    for column in ("tokenizer", "vocabulary", "tokens: mean", "p99", "max", "numbers a token"):
        about.add_column(column, justify="left" if column == "tokenizer" else "right")
    for name, m in found.by_name.items():
        mean, p99, most = m.tokens.mean(), np.quantile(m.tokens, 0.99), m.tokens.max()
        about.add_row(name, f"{m.vocabulary}", f"{mean:.1f}", f"{p99:.0f}", f"{most}", f"{size / mean:.2f}")
    console.print(about)
    errors = Table(title="how far an action comes back from where it was")
    for column in ("dimension", "unit", *(f"{name}\n{kind}" for name in found.by_name for kind in ("mean", "max"))):
        errors.add_column(column, justify="left" if column in ("dimension", "unit") else "right")
    errors.add_column(f"{config.normalization}\nclips, max", justify="right")
    for i, name in enumerate(action.names):
        columns = [f"{e[i]:.3g}" for m in found.by_name.values() for e in (m.mean_error, m.max_error)]
        errors.add_row(
            name, action.units[i], *columns, f"{found.clipped[i]:.3g}" if found.clipped[i] > ROUNDING else "0"
        )
    console.print(errors)
    measured = "episodes that training did not see" if found.held_out else "the episode that was trained on: only one"
    chunks = len(next(iter(found.by_name.values())).tokens)
    shape = f"{config.chunk_length} x {action.size} = {size} numbers"
    console.print(f"{found.episodes} episodes; {chunks} chunks of {shape}, of {measured}")
    if ending := [name for name in found.by_name if not tokenizer_class(name).one_token_a_number]:
        console.print(f"{', '.join(ending)}: chunks vary in length, and the token more that ends each is not counted")


def measure(config: InspectTokenizerConfig) -> Inspection:
    """Raises `Unknown` for a tokenizer, `DatasetError`, `VolarError` when a chunk does not survive."""
    from volar.datasets.lerobot_format import load_contract
    from volar.datasets.normalizer import Normalizer, with_normalization
    from volar.vla.action_tokenizers import TOKENIZERS, tokenizer_class
    from volar.vla.tokenizer_data import chunks_at, read_actions

    kinds = TOKENIZERS if config.tokenizer is None else {config.tokenizer: tokenizer_class(config.tokenizer)}
    contract = with_normalization(load_contract(config.dataset), config.normalization)
    normalizer = Normalizer.of_contract(contract, "action")
    actions, episode_end = read_actions(config.dataset)
    ends, episode = np.unique(episode_end, return_inverse=True)
    rest = episode % HELD_OUT == HELD_OUT - 1 if len(ends) >= HELD_OUT else episode == len(ends) - 1
    rng = np.random.default_rng(config.seed)

    def drawn(where: NDArray[np.bool_]) -> NDArray[np.float32]:
        frames = np.flatnonzero(where)
        starts = np.sort(rng.choice(frames, min(len(frames), config.chunks), replace=False))
        return chunks_at(starts, actions, episode_end, config.chunk_length)

    train = normalizer.normalize(drawn(~rest if len(ends) > 1 else rest))
    test = drawn(rest)
    normalized = normalizer.normalize(test)
    reference = normalizer.unnormalize(normalized)
    by_name = {
        name: _measured(name, kind.train(train), normalized, reference, normalizer) for name, kind in kinds.items()
    }
    clipped = np.abs(reference - test).max(axis=(0, 1)).astype(np.float64)
    return Inspection(contract, len(ends), len(ends) > 1, clipped, by_name)


def _measured(
    name: str,
    tokenizer: "ActionTokenizer",
    chunks: NDArray[np.float32],
    reference: NDArray[np.float32],
    normalizer: "Normalizer",
) -> Measured:
    """`chunks` (N, H, A) normalized; `reference`: the same in physical units."""
    from rich.console import Console
    from rich.progress import Progress

    counts, total, most = [], np.zeros(reference.shape[2]), np.zeros(reference.shape[2])
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for chunk, wanted in bar.track(list(zip(chunks, reference, strict=True)), description=f"measuring {name}"):
            ids = tokenizer.encode_chunk(chunk)
            back = normalizer.unnormalize(tokenizer.decode_chunk(ids, (chunk.shape[0], chunk.shape[1])))
            error = np.abs(back.astype(np.float64) - wanted)  # (H, A)
            counts.append(len(ids))
            total += error.mean(axis=0)
            most = np.maximum(most, error.max(axis=0))
    return Measured(tokenizer.size, np.array(counts), total / len(chunks), most)
