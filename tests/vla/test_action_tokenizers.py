"""What holds for every action tokenizer, what FAST promises beyond that, and that a third is a file and a line."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from volar.robots.errors import UsageError, VolarError
from volar.robots.interface import Observation
from volar.vla.action_tokenizers import FILE, TOKENIZERS, action_tokenizer, load_tokenizer, save_tokenizer
from volar.vla.action_tokenizers.action_tokenizer import ActionTokenizer, DecodeError, checked_chunk, checked_ids
from volar.vla.action_tokenizers.fast import SCALE, Fast, dct, train_fast
from volar.vla.action_tokenizers.uniform_bins import BINS
from volar.vla.checkpoint_policy import load
from volar.vla.decoders.autoregressive import Autoregressive
from volar.vla.export import exportable
from volar.vla.inspect_tokenizer import InspectTokenizerConfig, measure
from volar.vla.pretrained import load_pretrained
from volar.vla.train import TrainConfig, train
from volar.vla.training_run import TrainingRun

from .tiny_vlms import tiny_folder

SHAPE = (8, 7)


def motions(count: int, steps: int = SHAPE[0], seed: int = 0) -> NDArray[np.float64]:
    """Smooth chunks (N, H, 7) as demonstrations have them, with a gripper that opens or closes."""
    rng = np.random.default_rng(seed)
    drift = np.cumsum(rng.normal(0, 0.08, (count, steps, 6)), axis=1) + rng.uniform(-0.5, 0.5, (count, 1, 6))
    closes = rng.integers(0, 2 * steps, (count, 1, 1))
    gripper = (np.arange(steps)[None, :, None] < closes).astype(float)
    return np.clip(np.concatenate([drift, gripper], axis=2), -1, 1)


CHUNKS = motions(2000)
TRAINED: dict[str, ActionTokenizer] = {name: kind.train(CHUNKS) for name, kind in TOKENIZERS.items()}
WORST = {"bins": 1 / 255, "fast": np.sqrt(SHAPE[0]) / (2 * SCALE)}  # how far a number in [-1, 1] may come back
numbers = arrays(np.float64, SHAPE, elements=st.floats(-1, 1))
every = pytest.mark.parametrize("tokenizer", TRAINED.values(), ids=TRAINED.keys())


@pytest.mark.parametrize("name", TOKENIZERS)
@given(chunk=numbers, first_id=st.integers(0, 40_000))
@settings(deadline=None)
def test_any_chunk_comes_back_within_the_bound(name: str, chunk: NDArray[np.float64], first_id: int) -> None:
    tokenizer = TRAINED[name].placed(first_id)
    ids = tokenizer.encode_chunk(chunk)
    assert 1 <= len(ids) <= chunk.size
    assert all(first_id <= i < first_id + tokenizer.size for i in ids)
    said = tokenizer.numbers()
    assert said is not None
    assert said[np.array(ids) - first_id].sum() == chunk.size  # what decoding counts on
    tokenizer.require_steps(len(chunk))
    if tokenizer.one_token_a_number:
        assert ids == [i for step in chunk for number in step for i in tokenizer.encode_chunk(number.reshape(1, 1))]
    back = tokenizer.decode_chunk(ids, SHAPE)
    assert back.shape == SHAPE
    assert np.abs(back - chunk).max() <= WORST[name] + 1e-9
    assert np.abs(back).max() <= 1.0


@every
def test_ids_may_lie_anywhere(tokenizer: ActionTokenizer) -> None:
    plain = tokenizer.placed(0).encode_chunk(CHUNKS[0])
    at_the_end = tokenizer.placed(32_000 - tokenizer.size)
    assert at_the_end.first_id + at_the_end.size == 32_000
    assert at_the_end.encode_chunk(CHUNKS[0]) == [i + 32_000 - tokenizer.size for i in plain]
    with pytest.raises(ValueError, match="-1"):
        tokenizer.placed(-1)


@every
def test_values_outside_are_clipped(tokenizer: ActionTokenizer) -> None:
    assert tokenizer.encode_chunk(CHUNKS[0] * 50) == tokenizer.encode_chunk(np.clip(CHUNKS[0] * 50, -1, 1))


@every
def test_a_saved_tokenizer_is_the_same(tokenizer: ActionTokenizer, tmp_path: Path) -> None:
    placed = tokenizer.placed(1280)
    save_tokenizer(placed, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded == placed
    assert type(loaded) is type(placed)
    for chunk in motions(50, seed=1):
        assert loaded.encode_chunk(chunk) == placed.encode_chunk(chunk)


@every
def test_a_file_that_is_no_tokenizer_is_named(tokenizer: ActionTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    raw: dict[str, Any] = json.loads((tmp_path / FILE).read_text())
    for key in raw:
        broken = {name: value for name, value in raw.items() if name != key}
        (tmp_path / FILE).write_text(json.dumps(broken))
        with pytest.raises(VolarError, match=f"{FILE} holds no action tokenizer: KeyError\\('{key}'\\)"):
            load_tokenizer(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({**raw, "type": "fsat"}))
    with pytest.raises(VolarError, match="fsat"):
        load_tokenizer(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(VolarError, match=FILE):
        load_tokenizer(tmp_path)


@every
def test_ids_that_are_no_chunk_are_refused(tokenizer: ActionTokenizer) -> None:
    placed = tokenizer.placed(100)
    ids = placed.encode_chunk(CHUNKS[0])
    with pytest.raises(DecodeError, match="empty"):
        placed.decode_chunk([], SHAPE)
    for stranger in (99, 100 + placed.size, -1):
        with pytest.raises(DecodeError, match=rf"token {stranger} at place {len(ids)} .*\(100\.\.{99 + placed.size}\)"):
            placed.decode_chunk([*ids, stranger], SHAPE)
    for wrong in (ids[:-1], [*ids, ids[0]]):
        with pytest.raises(DecodeError, match="8 x 7 = 56"):
            placed.decode_chunk(wrong, SHAPE)


@every
def test_what_is_no_chunk_is_refused(tokenizer: ActionTokenizer) -> None:
    for bad in (np.nan, np.inf):
        chunk = CHUNKS[0].copy()
        chunk[3, 2] = bad
        with pytest.raises(ValueError, match="non-finite"):
            tokenizer.encode_chunk(chunk)
        with pytest.raises(ValueError, match="non-finite"):
            type(tokenizer).train(chunk[None])
    for shape in ((56,), (1, 8, 7), (0, 7)):
        with pytest.raises(ValueError, match=r"must be \(H, A\)"):
            tokenizer.encode_chunk(np.zeros(shape))
    with pytest.raises(ValueError, match=r"must be \(N, H, A\)"):
        type(tokenizer).train(CHUNKS[0])


def test_a_decoder_of_one_token_a_number_refuses_others() -> None:
    with pytest.raises(UsageError, match="tokenizer=bins"):
        action_tokenizer("fast", 32_000)


@given(st.integers(1, 64))
def test_the_transform_is_scipys(steps: int) -> None:
    from scipy.fft import dct as reference

    x = np.random.default_rng(steps).normal(size=(steps, 3))
    np.testing.assert_allclose(dct(steps) @ x, reference(x, axis=0, norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(dct(steps).T @ dct(steps), np.eye(steps), atol=1e-12)


def test_the_lowest_frequency_of_all_dimensions_comes_first() -> None:
    """Without merges the ids are the integers themselves, so that their order can be read off."""
    fast = Fast.train(motions(1), vocabulary=2 * 29 + 1)
    constant = np.tile(np.linspace(-0.6, 0.6, 7), (8, 1))  # only the first coefficients: sqrt(8) x
    q = np.array(fast.encode_chunk(constant)) - fast.largest
    assert q[:7].tolist() == np.rint(10 * np.sqrt(8) * constant[0]).tolist()
    assert not q[7:].any()


def test_training_data_decides_the_merges_only() -> None:
    """A chunk unlike anything in the training data is encoded as exactly as any other."""
    fast = train_fast(np.zeros((10, *SHAPE)))
    assert len(fast.encode_chunk(np.zeros(SHAPE))) == 1
    wild = np.random.default_rng(0).choice([-1.0, 1.0], SHAPE)
    assert np.abs(fast.decode_chunk(fast.encode_chunk(wild), SHAPE) - wild).max() <= WORST["fast"]


def test_chunks_that_are_longer_than_the_alphabet_reaches_are_refused() -> None:
    fast = TRAINED["fast"]
    assert isinstance(fast, Fast)
    for steps in (1, 7, 8):  # full speed all the time gives the largest coefficient there is
        whole = np.ones((steps, 7))
        assert np.abs(fast.decode_chunk(fast.encode_chunk(whole), whole.shape) - whole).max() <= WORST["fast"]
    with pytest.raises(ValueError, match=r"9 steps need integers up to 30 .*up to 29: at most 8 steps"):
        fast.encode_chunk(np.zeros((9, 7)))


def test_smooth_motion_needs_few_tokens() -> None:
    fast = TRAINED["fast"]
    unseen = motions(200, seed=5)
    mean = np.mean([len(fast.encode_chunk(chunk)) for chunk in unseen])
    assert mean < 0.6 * SHAPE[0] * SHAPE[1]  # against one token a number
    errors = [np.abs(fast.decode_chunk(fast.encode_chunk(chunk), SHAPE) - chunk).mean() for chunk in unseen]
    assert np.mean(errors) < 0.03


def test_training_is_deterministic_and_bounded() -> None:
    chunks = motions(500, seed=2)
    assert train_fast(chunks, 512) == train_fast(chunks, 512)
    assert train_fast(chunks, 512).size == 512
    assert train_fast(chunks[:, :1], 1024).size < 1024  # nothing left to merge
    with pytest.raises(ValueError, match="59 integers, more than a vocabulary of 50"):
        train_fast(chunks, 50)


def test_added_ids_of_bins_have_none_that_ends_a_chunk(
    settings: Callable[..., TrainConfig], look: Callable[[int], Observation], tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "smolvlm")
    size = load_pretrained(str(folder)).backbone.vocabulary_size
    of: dict[str, Any] = {"backbone": str(folder), "action_ids": "added", "chunk_length": 2, "steps": 1}
    run = settings(**of, decoder="autoregressive", tokenizer="bins")
    train(run)
    policy = load(run.output / "checkpoints/last/pretrained_model")
    model = policy.graph.model
    assert isinstance(model.decoder, Autoregressive)
    assert model.backbone.vocabulary_size == size + BINS
    assert (model.decoder.first_id, model.decoder.end) == (size, size + BINS)
    assert policy.predict(look(0)).actions.shape == (2, 7)


@dataclass(frozen=True)
class Levels:
    """Nine levels; a third tokenizer, for chunks as long as those that it was trained on."""

    one_token_a_number: ClassVar[bool] = True
    size: ClassVar[int] = 9
    longest: int
    first_id: int = 0

    @classmethod
    def train(cls, chunks: NDArray[np.floating]) -> Self:
        return cls(checked_chunk(chunks, dimensions=3).shape[1])

    def placed(self, first_id: int) -> Self:
        return replace(self, first_id=first_id)

    def require_steps(self, steps: int) -> None:
        if steps > self.longest:
            raise ValueError(f"at most {self.longest} steps")

    def encode_chunk(self, chunk: NDArray[np.floating]) -> list[int]:
        self.require_steps(len(chunk))
        levels = np.rint(4 * checked_chunk(chunk) + 4).astype(int).reshape(-1)
        return [self.first_id + i for i in levels.tolist()]

    def decode_chunk(self, ids: Sequence[int], shape: tuple[int, int]) -> NDArray[np.float64]:
        levels = checked_ids(ids, self.first_id, self.size)
        if len(levels) != shape[0] * shape[1]:
            raise DecodeError(f"{len(levels)} levels are no {shape}")
        return levels.reshape(shape) / 4 - 1.0

    def numbers(self) -> NDArray[np.int64] | None:
        return np.ones(self.size, np.int64)

    def to_json(self) -> dict[str, Any]:
        return {"longest": self.longest, "first_id": self.first_id}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        return cls(int(raw["longest"]), int(raw["first_id"]))


class Pairs(Levels):
    """Nine ids more, for two equal levels after each other, so that chunks vary in length."""

    one_token_a_number: ClassVar[bool] = False
    size: ClassVar[int] = 18

    def encode_chunk(self, chunk: NDArray[np.floating]) -> list[int]:
        found: list[int] = []
        for i in super().encode_chunk(chunk):
            if found and found[-1] == i:
                found[-1] += 9
            else:
                found.append(i)
        return found

    def decode_chunk(self, ids: Sequence[int], shape: tuple[int, int]) -> NDArray[np.float64]:
        own = checked_ids(ids, self.first_id, self.size)
        return super().decode_chunk((np.repeat(own % 9, own // 9 + 1) + self.first_id).tolist(), shape)

    def numbers(self) -> NDArray[np.int64] | None:
        return np.repeat([1, 2], 9)


@pytest.mark.parametrize("kind", [Levels, Pairs])
def test_a_third_tokenizer_is_one_file_and_one_line(
    kind: type[Levels],
    settings: Callable[..., TrainConfig],
    look: Callable[[int], Observation],
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It trains, is saved and loaded, acts, is measured and refused where it is of no use: nothing knows its name."""
    monkeypatch.setitem(TOKENIZERS, "toy", kind)
    of: dict[str, Any] = {"width": 16, "layers": 1, "chunk_length": 2, "tokenizer": "toy", "steps": 1}
    run = settings(**of, decoder="autoregressive", validation=0.2, validate_every_steps=1)
    train(run)
    last = run.output / "checkpoints/last/pretrained_model"
    assert load_tokenizer(last) == kind(2)
    policy = load(last)
    model = policy.graph.model
    assert type(model.tokenizer) is kind
    assert model.decoder.end - model.decoder.first_id == kind.size + (kind is Pairs)
    assert policy.predict(look(0)).actions.shape == (2, 7)
    again = settings(init=run.output, output=tmp_path / "again", steps=1)
    train(again)
    assert load_tokenizer(again.output / "checkpoints/last/pretrained_model") == kind(2)
    with pytest.raises(VolarError, match="at most 2 steps; lower chunk_length"):
        TrainingRun.start(replace(again, output=tmp_path / "longer", chunk_length=3))
    with pytest.raises(VolarError, match="no static graph decodes tokenizer=toy"):
        exportable(policy)
    with pytest.raises(UsageError, match="tokenizer=toy is for decoder=autoregressive"):
        TrainingRun.start(settings(**of, output=tmp_path / "parallel"))
    sharded: dict[str, Any] = {"decoder": "autoregressive", "parallel": "fsdp", "validation": 0.2}
    if kind is Levels:
        settings(**of, **sharded)
    else:
        with pytest.raises(UsageError, match="cannot decode sequences of varying length"):
            settings(**of, **sharded)
    found = measure(InspectTokenizerConfig(dataset, tokenizer="toy", chunk_length=2))
    assert (found.by_name["toy"].tokens == 14).all() == (kind is Levels)
