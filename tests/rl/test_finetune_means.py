"""One run, whatever runs its episodes and however often it was interrupted: under all randomization, with a critic of
pooled queries, whose end of an episode goes over the wire."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from volar.rl.episodes import Job, Setting
from volar.rl.exploration import Exploration
from volar.rl.finetune import FinetuneConfig, finetune
from volar.rl.finetuning_run import FinetuningRun
from volar.rl.rollouts import RolloutWorker, WorkerSetup
from volar.robots.errors import VolarError
from volar.vla.training_state import load_progress

LAST = "checkpoints/last/pretrained_model"


def config(policy: Path, output: Path, updates: int = 2, **other: object) -> FinetuneConfig:
    small: dict[str, object] = {"tasks": ("reach",), "episodes": 2, "workers": 1, "report_episodes": 0, "save_every": 1}
    small |= {"evaluation_episodes": 1, "evaluate_every": 9, "critic_updates": 0, "reward": "dense"}
    small |= {"randomization": "full", "critic": "pooled"}
    return FinetuneConfig(policy=policy, output=output, updates=updates, **(small | other))  # type: ignore[arg-type]


def same(output: Path, other: Path) -> bool:
    """Weights and moments, to the bit; not the files, whose header lists its metadata in any order."""
    files = "pretrained_model/model.safetensors", "training_state/state.safetensors"
    for a, b in ((load_file(path / "checkpoints" / "last" / file) for path in (output, other)) for file in files):
        if a.keys() != b.keys() or not all(torch.equal(value, b[name]) for name, value in a.items()):
            return False
    return True


@pytest.fixture(scope="module")
def run(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two updates in one process, without an interruption."""
    output: Path = tmp_path_factory.mktemp("run") / "finetuned"
    finetune(config(policy_folder, output))
    return output


def test_it_learns(run: Path) -> None:
    before, after = (load_file(run / path / "model.safetensors") for path in ("cloned", LAST))
    assert {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])} == {
        "action_head"
    }


@pytest.mark.parametrize("means", [{"workers": 2}, {"rollouts": "ray"}], ids=["processes", "ray"])
def test_other_means_make_the_same_run(
    means: dict[str, object], run: Path, policy_folder: Path, tmp_path: Path
) -> None:
    finetune(config(policy_folder, tmp_path / "other", **means))
    assert same(tmp_path / "other", run)


def test_a_resumed_run_is_the_uninterrupted_one(run: Path, policy_folder: Path, tmp_path: Path) -> None:
    finetune(config(policy_folder, tmp_path / "parts", 1))
    finetune(config(policy_folder, tmp_path / "parts", 2, resume=True))
    assert same(tmp_path / "parts", run)


def test_another_critic_is_another_run(run: Path, policy_folder: Path) -> None:
    with pytest.raises(VolarError, match="critic: was pooled, is state"):
        finetune(config(policy_folder, run, critic="state", resume=True))


def test_the_best_policy_outlives_a_kill(run: Path, policy_folder: Path, tmp_path: Path) -> None:
    output = shutil.copytree(run, tmp_path / "killed", symlinks=True)
    (output / "best").rename(output / "best.old")  # and then killed
    FinetuningRun.start(config(policy_folder, output, resume=True))
    assert (output / "best" / "model.safetensors").read_bytes() == (run / "best" / "model.safetensors").read_bytes()
    assert load_progress(output / "checkpoints" / "last" / "training_state")["updates"] == 2


def test_the_critic_sees_at_the_end_what_the_next_decision_would(policy_folder: Path) -> None:
    setting = Setting(("reach",), randomization="full", critic="pooled")
    worker = RolloutWorker(WorkerSetup(policy_folder, 4, Exploration(0.5, 4.0, 0.8), "head", setting), threads=None)
    runner = worker.runner
    found = runner.run(Job("reach", 7, noise_seed=3))
    assert not found.terminated
    assert "privileged" not in found.inputs
    world, loop = runner._worlds["reach"]
    loop.tick(world.body.now_ns)  # a decision is due: the clock cut the episode after whole chunks
    assert len(runner.policy.tokens) == len(found) + 1
    wanted = runner.policy.inputs[-1]["queries"].mean(0)
    assert found.last == pytest.approx(wanted, abs=1e-6)
    assert not np.allclose(found.last, found.inputs["queries"][-1].mean(0), atol=1e-3)
    assert not runner.run(Job("reach", 7, held_out=True)).last.any()  # nothing is learned from it
    worker.close()
