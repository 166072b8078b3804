"""What is held out is not trained on and measured as it would act; what is measured is told everywhere."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from volar.datasets.action_chunks import Batch
from volar.datasets.frame_cache import FrameCache
from volar.datasets.held_out import split_episodes
from volar.datasets.lerobot_format import load_contract
from volar.datasets.lerobot_layout import DatasetError
from volar.datasets.mixture import Source
from volar.datasets.mixture_contract import MixtureRules
from volar.datasets.normalizer import Normalizer
from volar.datasets.statistics import field_statistics
from volar.robots.errors import UsageError, VolarError
from volar.robots.interface import Observation
from volar.vla.action_tokenizers.uniform_bins import BINS, UniformBins
from volar.vla.batch_accuracy import Said, batch_accuracy
from volar.vla.checkpoint_policy import load
from volar.vla.losses import answer_loss
from volar.vla.processes import Processes
from volar.vla.train import TrainConfig, train
from volar.vla.training_run import TrainingRun
from volar.vla.validation import HeldOut, Validation, groups_of

Settings = Callable[..., TrainConfig]


def rows(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_held_out_episodes_are_whole_and_never_drawn(settings: Settings, dataset: Path) -> None:
    cache = FrameCache.open(dataset)
    training = TrainingRun.start(settings(validation=0.25))
    (held,) = training.data.held_out
    assert held.rows is not None
    assert len(set((held.rows // 8).tolist())) * 8 == len(held.rows) == 16  # two of eight episodes of eight frames
    drawn = training.parts[0].mixture.at(np.arange(48 * 3))  # three epochs
    kept = np.setdiff1d(np.arange(64), held.rows)
    assert {tuple(x) for x in drawn.state.tolist()} == {tuple(x) for x in cache.state[kept].tolist()}
    other, _ = split_episodes(Source("a", 1.0, cache, load_contract(dataset)), 0.25, seed=9)
    assert other.size == 48
    single = replace(cache, episode_end=np.full(64, 64))
    with pytest.raises(VolarError, match="too few to hold some out"):
        split_episodes(Source("a", 1.0, single, load_contract(dataset)), 0.25, seed=0)


@pytest.mark.parametrize("decoder", ["parallel", "autoregressive"])
def test_what_is_measured_is_what_the_saved_policy_does(settings: Settings, dataset: Path, decoder: str) -> None:
    config = settings(validation=0.25, steps=2, decoder=decoder)
    train(config)
    measured = rows(config.output)[-1]
    policy = load(config.output / "checkpoints" / "last" / "pretrained_model")
    cache, spec = FrameCache.open(dataset), policy.contract.action
    (held,) = TrainingRun.start(replace(config, output=config.output.parent / "other")).data.held_out
    assert held.rows is not None
    errors: list[np.ndarray] = []
    for i in held.rows.tolist():
        images = {name: pictures[i] for name, pictures in cache.images.items()}
        seen = Observation(images, cache.state[i], cache.instructions[cache.instruction_id[i]], 0)
        steps = np.arange(i, min(i + 8, cache.episode_end[i]))
        errors += list(np.abs(policy.predict(seen).actions[: len(steps)] - cache.action[steps]))
    for group, columns in groups_of(spec).items():
        want = float(np.stack(errors)[:, columns].mean())
        assert measured[f"validation/l1_{group}"] == pytest.approx(want, rel=1e-2), group
    assert groups_of(spec) == {"m": [0, 1, 2], "rad": [3, 4, 5], "gripper": [6]}
    assert 0 <= measured["validation/token_accuracy"] < 0.2


@pytest.mark.parametrize("decoder", ["parallel", "flow"])
def test_a_camera_that_held_out_frames_lack_is_not_looked_at(
    settings: Settings, dataset: Path, tmp_path: Path, decoder: str
) -> None:
    (tmp_path / "whole").symlink_to(dataset)
    cache, contract = FrameCache.open(dataset), load_contract(dataset)
    lacking = replace(cache, images={"front": cache.images["front"]})
    lacking.save(tmp_path / "lacking", replace(contract, cameras=contract.cameras[:1]))
    rules = MixtureRules(missing_cameras="pad")
    config = settings(
        dataset=tmp_path, mixture="whole:1,lacking:1", mix=rules, validation=0.25, steps=2, decoder=decoder
    )
    train(config)
    assert rows(config.output)[-1]["validation/l1_m"] > 0
    training = TrainingRun.start(replace(config, output=tmp_path / "other"))
    for source in training.data.held_out:
        held = HeldOut(training, source)
        batch = next(held.batches())
        noisy = np.random.default_rng(0).integers(0, 255, batch.images["wrist"].shape, np.uint8)
        other = replace(batch, images=batch.images | {"wrist": noisy})
        with torch.inference_mode():
            decoded, looked = held.decode(batch)[0], held.decode(other)[0]
        assert np.array_equal(decoded, looked) == (source.name == "lacking")


def test_only_answers_carry_the_answer_loss() -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    answers = torch.tensor([3, -1, 7, -1])
    loss = answer_loss(logits, answers, torch.tensor(2.0))
    assert float(loss.detach()) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits[::2], answers[::2]).detach())
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[1::2] == 0).all()
    assert (gradient[::2] != 0).all()


def test_answers_are_learned_beside_actions(settings: Settings, questions: Path) -> None:
    """Held-out pictures are told apart, which guessing cannot."""
    config = settings(
        questions=questions,
        questions_fraction=0.5,
        batch_size=32,
        steps=40,
        width=32,
        layers=2,
        learning_rate=3e-3,
        warmup_steps=5,
        ema_decay=0.8,
    )
    train(config)
    measured = rows(config.output)[-1]
    assert measured["validation/answer_chance"] <= 0.75
    assert measured["validation/answer_accuracy"] == measured["validation/answer_accuracy/color"] == 1.0
    assert "validation/token_accuracy" not in measured
    with pytest.raises(DatasetError, match="kind=questions makes them"):
        train(settings(questions=config.dataset, output=config.output.parent / "other"))


def test_the_nearest_tokens_are_all_right(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of actions at or beyond the bounds of normalization."""
    training = TrainingRun.start(settings(validation=0.25))
    normalizer, bins = Normalizer.of_contract(training.contract, "action"), UniformBins(BINS)

    def nearest(self: HeldOut, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        tokens = bins.encode(normalizer.normalize(batch.actions))
        return normalizer.unnormalize(bins.decode(tokens)), np.ones(len(tokens), dtype=bool)

    assert FrameCache.open(settings().dataset).action.max(0)[0] > training.contract.statistics["action"].q99[0]
    monkeypatch.setattr(HeldOut, "decode", nearest)
    found = Validation(training).measure()
    assert found["validation/token_accuracy"] == 1.0


def test_what_a_step_says_is_told_beside_its_loss(settings: Settings, tmp_path: Path) -> None:
    """As decoding what the network says would give it, in pieces as in one; and perfect where it is."""
    training, pieces = (TrainingRun.start(settings(accumulate=n)) for n in (1, 4))
    sample = training.batch(0)
    for run in (training, pieces):
        run.train_step(0.0)
    found = batch_accuracy(training)
    assert batch_accuracy(pieces) == pytest.approx(found, abs=1e-4)
    (said,) = training.said
    decoded = UniformBins(BINS).decode(BINS - 1 - said.logits.argmax(-1).numpy())
    actions, mask = sample["actions"].numpy(), sample["mask"].numpy()
    scale = Normalizer.of_contract(training.contract, "action").inverse_scale
    error = (np.abs(decoded - actions) * scale)[mask]
    for group, columns in groups_of(training.contract.action).items():
        assert found[f"l1_{group}"] == pytest.approx(error[:, columns].mean(), abs=2e-5)
    ids = torch.tensor(BINS - 1 - UniformBins(BINS).encode(actions))
    training.said = [Said(torch.nn.functional.one_hot(ids, BINS).float(), said.actions, said.mask)]
    perfect = batch_accuracy(training)
    assert perfect["token_accuracy"] == 1.0
    assert perfect["l1_m"] <= (scale[:3].max() / BINS)
    train(settings(steps=1))
    assert {"token_accuracy", "l1_m", "l1_rad", "l1_gripper"} <= rows(settings().output)[-1].keys()
    train(settings(steps=1, stage="grounding", output=tmp_path / "grounding"))
    assert "token_accuracy" not in rows(tmp_path / "grounding")[-1]


def test_what_an_autoregressive_step_says_is_told_beside_its_loss(settings: Settings, tmp_path: Path) -> None:
    """In pieces as in one; what of FAST's chunks is right afterwards is of other tokens than its own, and says so."""
    small = {"decoder": "autoregressive", "width": 16, "layers": 1, "batch_size": 48}
    runs = [TrainingRun.start(settings(accumulate=n, **small)) for n in (1, 4)]
    whole, pieces = (run.train_step(0.0).named()["token_accuracy"] for run in runs)
    assert 0 < whole == pytest.approx(pieces)
    train(settings(steps=1, **small, tokenizer="fast", validation=0.25))
    (row,) = rows(settings().output)
    assert {"token_accuracy", "validation/bin_accuracy"} <= row.keys()
    assert "validation/token_accuracy" not in row
    train(settings(steps=1, **small, stage="grounding", output=tmp_path / "grounding"))
    assert "token_accuracy" not in rows(tmp_path / "grounding")[-1]


def test_metrics_go_on_where_the_run_does(settings: Settings) -> None:
    config = settings(steps=2, validation=0.2, validate_every_steps=1)
    train(config)
    with (config.output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "total": 1.0}\n{"step": 4, "tot')  # as a kill leaves it
    train(replace(config, steps=4, resume=True))
    assert [row["step"] for row in rows(config.output)] == [1, 2, 3, 4]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(config.output / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("validation/l1_m")] == [1, 2, 3, 4]
    assert [event.step for event in board.Scalars("total")] == [2, 4]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="Weights & Biases is installed")
def test_what_is_not_installed_is_said_first(settings: Settings) -> None:
    with pytest.raises(VolarError, match="pip install wandb"):
        train(settings(wandb="project"))
    assert not settings().output.exists()


def test_a_signal_ends_the_run_after_its_step(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    step, config = TrainingRun.train_step, settings()
    train(replace(config, output=config.output.parent / "whole"))
    before = signal.getsignal(signal.SIGTERM)

    def stopped_at_three(self: TrainingRun, rate: float) -> object:
        if self.step == 3:
            signal.raise_signal(signal.SIGTERM)  # in the middle of the step, as far as it is concerned
        return step(self, rate)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "train_step", stopped_at_three)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert signal.getsignal(signal.SIGTERM) is before
    last = config.output / "checkpoints" / "last"
    assert last.resolve().name == "000004"
    train(replace(config, resume=True))
    weights = "checkpoints/last/pretrained_model/model.safetensors"
    a, b = (load_file(folder / weights) for folder in (config.output, config.output.parent / "whole"))
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50), lambda: np.empty(2**50)], ids=["torch", "numpy"])
def test_too_little_memory_is_said_with_the_ways_out(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, allocate: Callable[[], object]
) -> None:
    step = TrainingRun.train_step

    def hungry_at_two(self: TrainingRun, rate: float) -> object:
        if self.step == 2:
            allocate()
        return step(self, rate)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "train_step", hungry_at_two)
        with pytest.raises(
            VolarError, match=r"step 3 with batch_size=8.*step 2 is whole.*resume=true and accumulate=2"
        ):
            train(settings(save_every_steps=1))
    train(settings(resume=True, accumulate=2))


def test_too_large_a_network_is_said_with_other_ways_out(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer samples at once would not help."""
    monkeypatch.setattr(Processes, "spread", lambda *_: torch.empty(2**50))
    with pytest.raises(VolarError, match=r"before the first step \(.*\): .*frozen.*parallel=fsdp.*smaller backbone="):
        train(settings())
    assert not settings().output.exists()


def before_the_robot(dataset: Path) -> Path:
    """The dataset with states there: of others, the evaluation refuses the policy."""
    cache, contract = FrameCache.open(dataset), load_contract(dataset)
    state = cache.state.copy()
    state[:, :3] = state[:, :3] * 0.2 + [0.5, 0.0, 0.2]
    state[:, -1] = (state[:, -1] + 0.5) * 0.08
    statistics = {**contract.statistics, "observation.state": field_statistics(state)}
    replace(cache, state=state).save(dataset.parent / "near", replace(contract, statistics=statistics))
    return dataset.parent / "near"


def test_success_in_closed_loop_is_measured_while_training(settings: Settings, dataset: Path) -> None:
    reach = {"evaluate_every_steps": 1, "evaluate_episodes": 1, "evaluate_tasks": ("reach",)}
    config = settings(dataset=before_the_robot(dataset), steps=1, **reach)
    train(config)
    (row,) = rows(config.output)
    assert row["success/episodes"] == 1
    assert row["success/wilson95_low"] <= row["success/rate"] <= row["success/wilson95_high"]
    assert row["success/reach"] == row["success/rate"]
    with pytest.raises(VolarError, match=r"evaluate_every_steps: .*unknown task 'raech'"):
        train(replace(config, steps=2, resume=True, evaluate_tasks=("raech",)))
    assert len(rows(config.output)) == 1
    with pytest.raises(UsageError):
        settings(evaluate_every_steps=0)


def running(word: str) -> list[str]:
    """Processes with that in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            found += [path.parent.name] if word.encode() in path.read_bytes() else []
    return found


def test_an_evaluation_that_is_stopped_is_made_up_for(settings: Settings, dataset: Path) -> None:
    """Ctrl-C, which the verb gets as well, and a signal to the run alone; neither leaves the verb running."""
    reach = {"evaluate_every_steps": 1, "evaluate_episodes": 1000, "evaluate_tasks": ("reach",)}
    config = settings(dataset=before_the_robot(dataset), steps=1, resume=True, **reach)
    words = [f"{name}={getattr(config, name)}" for name in ("dataset", "output", "steps", "batch_size", "warmup_steps")]
    words += ["precision=fp32", "threads=1", "evaluate_every_steps=1", "evaluate_episodes=1000", "evaluate_tasks=reach"]
    results = config.output / "evaluations" / "000001"
    for send, number in ((os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)):
        with subprocess.Popen(
            [sys.executable, "-m", "volar.vla.train", *words, "resume=true"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as run:
            try:
                while not results.exists() and run.poll() is None:
                    time.sleep(0.1)
                assert running(f"output={results}")
                send(run.pid, number)
                said = run.communicate(timeout=120)[1]
            finally:
                run.kill()
        assert run.returncode == 130, said
        assert not running(f"output={results}")
        assert rows(config.output) == []
        shutil.rmtree(results)
    train(replace(config, evaluate_episodes=1))
    (row,) = rows(config.output)
    assert row["success/episodes"] == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [({}, "the policy does not fit robot 'fr3': .*evaluate_every_steps= away"), ({"robot": "r2d2"}, "unknown robot")],
)
def test_what_could_not_be_evaluated_is_refused_before_the_first_step(
    settings: Settings, dataset: Path, changes: dict[str, str], says: str
) -> None:
    """Statistics that cannot be the robot's, and a robot that nobody can simulate."""
    replace(load_contract(dataset), **changes).save(dataset / "meta" / "volar_contract.json")
    with pytest.raises(VolarError, match=f"evaluate_every_steps: .*{says}"):
        train(settings(evaluate_every_steps=5000))
    assert not settings().output.exists()
