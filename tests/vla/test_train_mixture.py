"""volar-train on several datasets: the same run after a kill, and a masked camera that tells the network nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from volar.datasets.augmentation import Augmentation
from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_format import load_contract
from volar.datasets.mixture_contract import MixtureRules
from volar.robots.command_line import parse
from volar.robots.contract import ContractError, PolicyContract
from volar.robots.errors import VolarError
from volar.vla.modeling_volar import VolarModel
from volar.vla.train import TrainConfig, train
from volar.vla.training_run import TrainingRun

AUGMENTATION = Augmentation(crop=0.8, brightness=0.2, hue=0.05)


@pytest.fixture
def settings(dataset: Path) -> TrainConfig:
    """A second dataset beside the first, without the second camera and of other statistics."""
    cache, contract = FrameCache.open(dataset), load_contract(dataset)
    front = contract.cameras[0]
    other = replace(cache, images={front.name: cache.images[front.name]}, action=cache.action[::-1] * np.float32(0.5))
    other.save(dataset.parent / "other", replace(contract, cameras=(front,)))
    return TrainConfig(
        dataset=dataset.parent,
        mixture="dataset:0.7,other:0.3",
        mix=MixtureRules(missing_cameras="pad"),
        output=dataset.parent / "run",
        steps=4,
        batch_size=8,
        warmup_steps=2,
        precision="fp32",
        threads=1,
        augmentation=AUGMENTATION,
    )


def weights(output: Path) -> dict[str, np.ndarray]:
    return load_file(output / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")


def test_a_killed_mixture_ends_with_the_same_bits(
    settings: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(replace(settings, output=tmp_path / "whole"))
    step = TrainingRun.train_step

    def killed_at_three(self: TrainingRun, rate: float) -> object:
        if self.step == 3:
            raise ConnectionAbortedError
        return step(self, rate)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "train_step", killed_at_three)
        with pytest.raises(ConnectionAbortedError):
            train(replace(settings, save_every_steps=2))
    train(replace(settings, resume=True))
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    # What is mixed, and how images are changed, makes a run this one and no other.
    for changes in ({"mixture": "dataset:0.5,other:0.5"}, {"augmentation": Augmentation()}, {"mix": MixtureRules()}):
        with pytest.raises(VolarError, match=next(iter(changes))):
            train(replace(settings, resume=True, **changes))


def test_a_mixture_that_changed_in_its_file_is_another_run(settings: TrainConfig, tmp_path: Path) -> None:
    file = tmp_path / "mixture.yaml"
    file.write_text("dataset: 0.7\nother: 0.3\n")
    config = replace(settings, mixture=str(file), steps=1)
    train(config)
    file.write_text("dataset: 0.5\nother: 0.5\n")
    with pytest.raises(VolarError, match=r"other: 64 frames, .* share 0\.3.*, now 64 frames, .* share 0\.5"):
        train(replace(config, steps=2, resume=True))


def test_each_dataset_can_keep_its_own_statistics(settings: TrainConfig, dataset: Path) -> None:
    config = replace(settings, mix=MixtureRules(missing_cameras="pad", statistics="own"), augmentation=Augmentation())
    training = TrainingRun.start(config)
    assert training.contract.statistics == load_contract(dataset).statistics
    joint = TrainingRun.start(replace(config, mix=MixtureRules(missing_cameras="pad")))
    a, b = training.batch(0), joint.batch(0)
    assert torch.equal(a["image.front"], b["image.front"])
    assert not torch.equal(a["actions"], b["actions"])
    with pytest.raises(ContractError, match=r"dataset other.*cameras\.wrist"):
        TrainingRun.start(replace(config, mix=MixtureRules()))


def test_an_episode_without_a_camera_is_masked_in_its_samples(settings: TrainConfig, dataset: Path) -> None:
    cache, contract = FrameCache.open(dataset), load_contract(dataset)
    there = np.arange(len(cache)) // 8 % 2 == 0  # every other episode
    images = {**cache.images, "wrist": cache.images["wrist"] * there[:, None, None, None].astype(np.uint8)}
    replace(cache, images=images, camera_mask={"wrist": there}).save(dataset.parent / "partial", contract)
    config = replace(settings, dataset=dataset.parent / "partial", mixture=None, augmentation=Augmentation())
    batch = TrainingRun.start(config).batch(0)
    black = (batch["image.wrist"] == 0).flatten(1).all(1)
    assert 0 < int(black.sum()) < len(black)
    assert torch.equal(batch["camera_mask"], torch.stack([torch.ones_like(black), ~black], 1))
    with pytest.raises(ContractError, match="lack camera wrist in 32 of 64 frames"):
        TrainingRun.start(replace(config, mix=MixtureRules()))


def test_a_masked_camera_tells_the_network_nothing(model: VolarModel, contract: PolicyContract) -> None:
    torch.manual_seed(1)
    pixels, state = torch.randn(3, 2, 3, 32, 32), torch.randn(3, len(contract.state_names))
    ids, mask = torch.ones(3, 20, dtype=torch.long), torch.tensor([[True, True], [True, False], [True, False]])
    other = pixels.clone()
    other[:, 1] = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        a, b = (model(p, ids, state, mask).action_logits for p in (pixels, other))
        plain, all_there = model(pixels, ids, state), model(pixels, ids, state, torch.ones(3, 2, dtype=torch.bool))
    assert torch.equal(a[1:], b[1:])
    assert not torch.equal(a[0], b[0])
    assert torch.allclose(a[0], plain.action_logits[0], atol=1e-5)
    assert torch.allclose(all_there.action_logits, plain.action_logits, atol=1e-5)


def test_normalization_goes_with_the_policy(settings: TrainConfig, dataset: Path) -> None:
    config = replace(settings, dataset=dataset, mixture=None, normalization="min_max", steps=1)
    train(config)
    contract = PolicyContract.load(config.output / "checkpoints" / "last" / "pretrained_model" / "contract.json")
    assert contract.preprocessing["normalization"] == "min_max"
    got = TrainingRun.start(replace(config, output=dataset.parent / "none")).batch(0)["actions"]
    assert float(got[..., :6].abs().max()) <= 1.0
    q01 = TrainingRun.start(replace(config, output=dataset.parent / "none", normalization="q01_q99")).batch(0)
    assert not torch.equal(got, q01["actions"])


def test_the_command_line_reaches_it_all() -> None:
    words = ["dataset=runs", "mixture=a:0.7,b:0.3", "output=out", "steps=1", "mix.allow=[robot,cameras]"]
    words += ["mix.weights=frames", "augmentation.crop=0.9", "augmentation.hue=0.02"]
    config = parse(TrainConfig, words)
    assert config.mixture == "a:0.7,b:0.3"
    assert config.mix == MixtureRules(weights="frames", allow=("robot", "cameras"))
    assert config.augmentation == Augmentation(crop=0.9, hue=0.02)
