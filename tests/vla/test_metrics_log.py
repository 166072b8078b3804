"""Weights & Biases, where it is installed: real runs of it, offline."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from volar.vla.train import TrainConfig, train


def test_a_resumed_training_goes_on_with_its_run(
    settings: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = settings(steps=2, wandb="project")
    train(config)
    train(replace(config, steps=3, resume=True))
    id_ = (config.output / "wandb_run.txt").read_text()
    logs = [folder / f"run-{id_}.wandb" for folder in (config.output / "wandb").glob("offline-run-*")]
    assert len(logs) == 2
    for log in logs:
        written = log.read_bytes()
        for name in (b"project", b"samples_per_s", b"batch_size"):  # the project, a metric and a setting
            assert name in written
