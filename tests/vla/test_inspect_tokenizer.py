"""volar-train inspect_tokenizer says of a dataset on disk what the tokenizers really do to it."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from volar.datasets.episode import POINTS_SHAPE, Episode
from volar.datasets.episode_writer import EpisodeWriter
from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_format import load_contract
from volar.datasets.mixture import Source
from volar.datasets.normalizer import Normalizer
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.errors import Unknown, UsageError
from volar.robots.fr3 import FR3
from volar.vla.action_tokenizers.fast import Fast
from volar.vla.action_tokenizers.uniform_bins import UniformBins
from volar.vla.inspect_tokenizer import InspectTokenizerConfig, measure
from volar.vla.tokenizer_data import chunks_at, read_actions, train_tokenizer
from volar.vla.train import TrainConfig, main

EPISODES, STEPS = 11, 12


@pytest.fixture(scope="module")
def lerobot(contract: PolicyContract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven smooth episodes of a LeRobotDataset v3; from one to the next the arm is faster."""
    root = tmp_path_factory.mktemp("lerobot") / "demos"
    empty = replace(contract, cameras=(CameraSpec("front", 8, 8),), execute_steps=2, statistics={})
    writer = EpisodeWriter.create(root, empty)
    for number in range(EPISODES):
        rng = np.random.default_rng(number)
        steps = STEPS + number % 3
        phase = np.linspace(0, np.pi, steps)[:, None]
        actions = np.sin(phase) * rng.uniform(-0.02, 0.02, 7)
        actions[:, 6] = np.arange(steps) < steps // 2
        writer.append(
            Episode(
                images={"front": np.zeros((steps, 8, 8, 3), np.uint8)},
                state=rng.normal(size=(steps, 10)).astype(np.float32),
                actions=actions.astype(np.float32),
                points=np.full((steps, *POINTS_SHAPE), np.nan, np.float32),
                instruction="lift the red block",
                task="lift",
                success=True,
            )
        )
    writer.finalize()
    return root


def test_the_images_are_not_needed_to_read_the_actions(lerobot: Path, dataset: Path) -> None:
    for folder, cache in ((lerobot, FrameCache.build(lerobot)), (dataset, FrameCache.open(dataset))):
        actions, episode_end = read_actions(folder)
        np.testing.assert_array_equal(actions, cache.action)
        np.testing.assert_array_equal(episode_end, cache.episode_end)


def test_a_chunk_repeats_the_last_action_of_its_episode() -> None:
    actions, ends = np.arange(10, dtype=np.float32)[:, None], np.repeat([4, 10], [4, 6])
    chunks = chunks_at(np.array([0, 2, 8]), actions, ends, 3)[..., 0]
    assert chunks.tolist() == [[0, 1, 2], [2, 3, 3], [8, 9, 9]]


def test_what_is_said_of_bins_can_be_computed(lerobot: Path) -> None:
    """One token a number, and the mean error of rounding to 255 centres is a quarter of their distance."""
    found = measure(InspectTokenizerConfig(lerobot))
    assert set(found.by_name) == {"bins", "fast"}
    assert (found.episodes, found.held_out) == (EPISODES, True)
    bins = found.by_name["bins"]
    assert set(bins.tokens) == {8 * 7}
    assert len(bins.tokens) == STEPS + 1 + STEPS  # of episodes 4 and 9
    half_width = Normalizer.of_contract(found.contract, "action").inverse_scale
    assert (bins.max_error <= half_width / 255 * 1.001).all()
    np.testing.assert_allclose(bins.mean_error[:6], half_width[:6] / 255 / 2, rtol=0.3)


def test_fast_needs_fewer_tokens_and_stays_within_its_bound(lerobot: Path) -> None:
    found = measure(InspectTokenizerConfig(lerobot, tokenizer="fast", chunk_length=12))
    fast = found.by_name["fast"]
    assert fast.tokens.mean() < 0.7 * 12 * 7
    half_width = Normalizer.of_contract(found.contract, "action").inverse_scale
    assert (fast.max_error <= half_width * np.sqrt(12) / 20 * 1.001).all()
    assert (fast.mean_error[:6] > 0).all()


def test_clipping_is_told_apart_from_the_tokenizers_error(lerobot: Path) -> None:
    assert measure(InspectTokenizerConfig(lerobot, normalization="min_max")).clipped.max() < 1e-6
    assert measure(InspectTokenizerConfig(lerobot)).clipped[:6].max() > 1e-5  # beyond q01 and q99


def test_a_training_runs_tokenizer_is_that_of_its_normalized_chunks(lerobot: Path) -> None:
    cache, contract = FrameCache.build(lerobot), load_contract(lerobot)
    slower = replace(cache, action=cache.action / 2)
    sources = [Source("a", 0.75, cache, contract), Source("b", 0.25, slower, contract)]
    fast = train_tokenizer("fast", sources, 8, seed=3)
    assert isinstance(fast, Fast)
    assert fast == train_tokenizer("fast", sources, 8, seed=3)
    assert fast != train_tokenizer("fast", sources[:1], 8, seed=3)
    every = np.concatenate([chunks_at(np.arange(len(c)), c.action, c.episode_end, 8) for c in (cache, slower)])
    assert fast == Fast.train(Normalizer.of_contract(contract, "action").normalize(every))  # all fit
    assert train_tokenizer("bins", sources, 8) == UniformBins(256)


def test_the_verb_prints_every_dimension(
    lerobot: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["volar-train", "inspect_tokenizer", f"dataset={lerobot}", "chunk_length=4"])
    assert main() == 0
    printed = capsys.readouterr().out
    out = " ".join(printed.split())
    assert "chunks of 4 x 7 = 28 numbers" in out
    for name in (*FR3.action.names, "bins", "fast", "vocabulary"):
        assert name in out
    assert "fast: chunks vary in length, and the token more that ends each is not counted" in out
    rows = {words[0]: words[1:] for line in printed.splitlines() if len(words := line.replace("│", " ").split()) == 6}
    assert rows["bins"] == ["256", "28.0", "28", "28", "1.00"]
    mean = measure(InspectTokenizerConfig(lerobot, tokenizer="fast", chunk_length=4)).by_name["fast"].tokens.mean()
    assert (rows["fast"][1], rows["fast"][4]) == (f"{mean:.1f}", f"{28 / mean:.2f}")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "tokenizer=bins"])
    assert main() == 0
    assert "not counted" not in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["volar-train", "inspect_tokenizer", f"dataset={lerobot}", "tokenizer=fsat"])
    assert main() == 2
    assert "did you mean fast?" in capsys.readouterr().err


def test_settings_that_cannot_be_are_refused(lerobot: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="chunk_length must be at least 1, is 0"):
        InspectTokenizerConfig(lerobot, chunk_length=0)
    with pytest.raises(Unknown, match="bins, fast"):
        measure(InspectTokenizerConfig(lerobot, tokenizer="x"))
    from volar.vla.training_run import TrainingRun

    with pytest.raises(UsageError, match="tokenizer=bins"):  # the default decoder takes one token a number
        TrainingRun.start(TrainConfig(lerobot, tmp_path / "out", tokenizer="fast", steps=1))
