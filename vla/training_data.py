"""What a training run learns from, and what it is measured on: datasets opened, told apart, mixed and shared out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from volar.datasets.choose_frames import Form, choose_frames
from volar.datasets.episode import HAND_ROW
from volar.datasets.frame_cache import FrameCache
from volar.datasets.held_out import split_episodes
from volar.datasets.lerobot_format import load_contract
from volar.datasets.mixture import Mixture, Source, load_mixture, sources_of
from volar.datasets.normalizer import with_normalization
from volar.datasets.questions import Questions
from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.processor_volar import StateScaler

if TYPE_CHECKING:
    from volar.vla.train import TrainConfig

QUESTIONS_HELD_OUT = 0.05  # of the scenes that questions are about, or `validation` where that is more


@dataclass(frozen=True)
class Data:
    """`sources`: demonstrations, or the scenes of stage=grounding; `held_out`: their episodes that are not trained on.

    `scenes`: to keep pointing on. `questions`, `held_questions`: likewise; `answers`, `kinds`: to each question.
    """

    sources: list[Source]
    held_out: list[Source]
    scenes: Source | None = None
    questions: Source | None = None
    held_questions: Source | None = None
    answers: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def beside(self) -> list[Source]:
        """What is mixed in."""
        return [source for source in (self.scenes, self.questions) if source is not None]

    @property
    def labels_hand(self) -> bool:
        """Whether any frame says where the robot's hand appears."""
        return any(np.isfinite(s.frames.points[:, HAND_ROW]).any() for s in [*self.sources, *self.beside])

    @property
    def texts(self) -> list[str]:
        """Everything that is read or said."""
        sources = [*self.sources, *self.beside]
        return [*(text for source in sources for text in source.frames.instructions), *self.answers]

    def under(self, contract: PolicyContract) -> "Data":
        """Seen by the same network, what is mixed in is normalized as the demonstrations are."""
        names = ("scenes", "questions", "held_questions")
        found = {name: getattr(self, name) for name in names}
        return replace(self, **{k: v and replace(v, contract=contract) for k, v in found.items()})


@dataclass
class Part:
    """One stream of samples, of which a step takes as many as `mixture` gives at once."""

    mixture: Mixture
    token_ids: NDArray[np.int64]  # (instructions, T)
    answer_ids: NDArray[np.int64]  # (instructions,), -1 where an instruction is no question
    has_actions: bool
    state_scalers: list[StateScaler]  # one for each source

    @property
    def frames(self) -> int:
        return sum(self.mixture.sizes.values())


def places(sizes: Sequence[int], step: int, share: int, shares: int) -> list[NDArray[np.int64]]:
    """Where in each stream the samples of share `share` of `shares` of a step stand, of which it has `sizes`.

    The step's samples stand in a row, stream after stream, and are shared out evenly: nobody's share is empty where
    there are as many of them as shares, though a stream may have fewer.
    """
    found: list[NDArray[np.int64]] = []
    total, begin = sum(sizes), 0
    first, end = total * share // shares, total * (share + 1) // shares
    for size in sizes:
        mine = np.arange(max(first - begin, 0), min(end - begin, size))
        found.append(step * size + mine)
        begin += size
    return found


def open_frames(source: Path, form: Form = "auto") -> FrameCache:
    """The frames of a dataset, decoded on first use where the disk has room, or of generated scenes."""
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task(f"decoding {source}")
        return choose_frames(
            source,
            form,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            say=bar.console.print,
        )


def open_sources(config: "TrainConfig") -> list[Source]:
    """The demonstrations: one dataset, or those of a mixture. Raises `ContractError` when they do not fit together."""
    assert config.normalization is not None
    weights, folders = {config.dataset.name: 1.0}, [config.dataset]
    if config.mixture is not None:
        weights = load_mixture(config.mixture)
        folders = [config.dataset / name for name in weights]
    caches = [open_frames(folder, config.frames) for folder in folders]
    contracts = [with_normalization(load_contract(folder), config.normalization) for folder in folders]
    return sources_of(weights, caches, contracts, config.mix)


def open_data(config: "TrainConfig") -> Data:
    """Everything that the settings name. Raises `VolarError` where something is missing or does not fit together."""
    sources, held_out = open_sources(config), []
    if config.validation:
        pairs = [split_episodes(source, config.validation, config.seed) for source in sources]
        sources, held_out = [trained for trained, _ in pairs], [held for _, held in pairs]
    scenes = None
    if config.scenes is not None:
        scenes = Source("scenes", 1.0, open_frames(config.scenes), load_contract(config.scenes))
    if config.questions is None:
        return Data(sources, held_out, scenes)
    found = Questions.open(config.questions)
    asked = Source("questions", 1.0, found.frames, load_contract(config.questions))
    trained, held = split_episodes(asked, max(config.validation, QUESTIONS_HELD_OUT), config.seed)
    return Data(sources, held_out, scenes, trained, held, found.answers, found.kinds)


def make_parts(
    config: "TrainConfig", data: Data, contract: PolicyContract, tokenizer: InstructionTokenizer, processes: int = 1
) -> list[Part]:
    """The demonstrations first, then what is mixed in with its share of the batch."""
    pieces = config.accumulate * processes
    if config.batch_size < pieces:
        have = f"batch_size {config.batch_size} for {pieces} parts (processes times accumulate={config.accumulate})"
        raise VolarError(f"{have}: raise batch_size or lower accumulate")
    fractions = {"scenes": config.scenes_fraction, "questions": config.questions_fraction}
    shares = [round(fractions[source.name] * config.batch_size) for source in data.beside]
    groups = [data.sources, *([source] for source in data.beside)]
    parts = []
    for i, (sources, size) in enumerate(zip(groups, [config.batch_size - sum(shares), *shares], strict=True)):
        if size < 1:
            raise VolarError(f"{sources[0].name} gets no sample of a batch of {config.batch_size}; raise batch_size")
        mixture = Mixture(
            sources,
            batch_size=size,
            seed=config.seed + i,
            chunk_length=contract.chunk_length,
            weights=config.mix.weights,
            augmentation=config.augmentation,
        )
        part = make_part(mixture, contract, tokenizer, data.answers if sources[0] is data.questions else ())
        part.has_actions = config.stage == "cloning" and i == 0
        if part.frames < size:
            have = f"{part.frames} frames do not fill a batch of {size}"
            raise VolarError(f"{have}; collect more or lower batch_size")
        parts.append(part)
    return parts


def make_part(
    mixture: Mixture, contract: PolicyContract, tokenizer: InstructionTokenizer, answers: tuple[str, ...] = ()
) -> Part:
    """A stream without actions, or with `answers` to its instructions."""
    texts = [contract.instruction_template.format(instruction=text) for text in mixture.instructions]
    ids = np.array([answer_id(tokenizer, answer) for answer in answers] or [-1] * len(texts), dtype=np.int64)
    scalers = [StateScaler(source.contract) for source in mixture.sources]
    return Part(mixture, tokenizer.encode(texts), ids, False, scalers)


def answer_id(tokenizer: InstructionTokenizer, answer: str) -> int:
    """The id of an answer of one word. Raises `VolarError` where a vocabulary spells it with several."""
    # As it follows other words: there a pretrained model has another id for it than at the beginning of a text.
    before, after = (tokenizer.encode([text])[0] for text in ("a", f"a {answer}"))
    ids = after[: int((after > 0).sum())][int((before > 0).sum()) :]
    if len(ids) != 1:
        raise VolarError(f"the answer {answer!r} is {len(ids)} tokens of the backbone's vocabulary, not one")
    return int(ids[0])
