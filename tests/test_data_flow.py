"""The whole path on a small scale, through the verbs a user types: a little training must show."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from volar.datasets.frame_cache import FrameCache
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.interface import ActionChunk, Observation, Policy
from volar.robots.policies import load_policy
from volar.sim.closed_loop import ClosedLoop, episode_seed
from volar.vla.checkpoint_policy import load, load_parts
from volar.vla.modeling_volar import VolarModel
from volar.vla.processor_volar import TorchPolicy, save_policy

POLICY = "policy/checkpoints/last/pretrained_model"
TIE = 1e-4  # [logits] where the two best tokens are nearer than that, rounding may choose either, a bin apart


def volar(verb: str, *settings: str, cwd: Path) -> str:
    """Runs a console script of this installation; returns what it printed."""
    script = Path(sys.executable).parent / f"volar-{verb}"
    done = subprocess.run([script, *settings], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"volar-{verb} {' '.join(settings)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a policy trained for a minute or two (grounding, then cloning), an untrained one, and the artifact."""
    root = tmp_path_factory.mktemp("runs")
    volar("collect", "kind=scenes", "scenes=3000", "image_size=64", "output=scenes", cwd=root)
    volar("collect", "tasks=reach", "episodes=240", "image_size=64", "output=demonstrations", cwd=root)
    small = ("width=64", "layers=2", "steps=400", "batch_size=32", "learning_rate=3e-3", "threads=1")
    volar("train", "stage=grounding", "dataset=scenes", *small, "output=grounding", cwd=root)
    cloning = ("dataset=demonstrations", "scenes=scenes", "init=grounding")
    volar("train", *cloning, *small, "warmup_steps=30", "output=policy", cwd=root)
    volar("export", "policy=policy", "output=artifact", cwd=root)
    model, contract, tokenizer = load_parts(root / POLICY)
    torch.manual_seed(0)
    save_policy(root / "untrained", VolarModel(model.config, contract), contract, tokenizer)
    return root


def distances_m(policy: Policy, episodes: int = 12) -> list[float]:
    """How near the fingertips end to the place above the named block, in held-out reach episodes."""
    loop = ClosedLoop(policy, "reach", latency_s=0.02)
    found = []
    for index in range(episodes):
        loop.run(episode_seed(5, "reach", index), index)
        state = loop.world.state
        found.append(float(np.linalg.norm(state.tcp - state.block(loop.world.goal.color) - [0, 0, 0.04])))
    loop.close()
    return found


def looks(runs: Path, count: int) -> list[Observation]:
    """Real observations: frames of the demonstrations, evenly spaced."""
    cache = FrameCache.build(runs / "demonstrations")
    return [
        Observation(
            {name: images[i] for name, images in cache.images.items()},
            cache.state[i],
            cache.instructions[cache.instruction_id[i]],
            0,
        )
        for i in np.linspace(0, len(cache) - 1, count).astype(int)
    ]


def test_a_little_training_beats_no_training(runs: Path) -> None:
    trained, untrained = (distances_m(load_policy(runs / name)) for name in ("policy", "untrained"))
    assert np.mean(trained) < 0.6 * np.mean(untrained), (trained, untrained)


class Watched:
    """A checkpoint; `margin`: by how little its closest choice of a token since `reset` was made."""

    def __init__(self, policy: TorchPolicy) -> None:
        self.policy, self.contract, self.margin = policy, policy.contract, np.inf

    def reset(self, seed: int) -> None:
        self.margin = np.inf
        self.policy.reset(seed)

    def predict(self, observation: Observation) -> ActionChunk:
        with torch.inference_mode():
            self.margin = min(self.margin, float(self.policy.graph.answer(*self.policy.tensors(observation))[2]))
        return self.policy.predict(observation)


def test_what_is_evaluated_is_what_is_deployed(runs: Path) -> None:
    """Checkpoint and artifact: the same success in the same episodes, the same actions for the same looks."""
    checkpoint, artifact = Watched(load(runs / POLICY)), ExportedPolicy(runs / "artifact")
    results = []
    for name in ("policy", "artifact"):
        settings = ("tasks=reach", "episodes=6", "seed=3", "videos=0", "wrong_instruction=false")
        volar("evaluate", f"policy={name}", *settings, f"output=evaluated_{name}", cwd=runs)
        results.append(json.loads((runs / f"evaluated_{name}" / "results.json").read_text()))
    a, b = results
    assert a["contract_sha256"] == b["contract_sha256"]
    assert {"successes", "episodes", "success_rate", "wilson95"} <= a["overall"].keys()
    loop, decided = ClosedLoop(checkpoint, "reach", latency_s=0.02), 0
    for one, other in zip(a["episodes"], b["episodes"], strict=True):
        here = loop.run(one["seed"], one["index"])
        if checkpoint.margin > TIE:
            assert here.success == one["success"] == other["success"]
            decided += 1
    loop.close()
    assert decided > 0
    decided = 0
    for look in looks(runs, 60):
        checkpoint.reset(0)
        wanted, found = checkpoint.predict(look).actions, artifact.predict(look).actions
        if checkpoint.margin > TIE:
            np.testing.assert_allclose(found, wanted, atol=1e-4)
            decided += 1
    assert decided > 30


def test_the_artifact_moves_the_arm_in_real_time(runs: Path) -> None:
    instruction = "instruction=move to the red block"
    volar("control", "policy=artifact", "robot=sim/fr3", instruction, "duration_s=2", "output=control", cwd=runs)
    report = json.loads((runs / "control" / "control.json").read_text())
    assert report["margins"]["velocity"] > 0
    assert report["margins"]["jerk"] > 0


def test_the_doctor_finds_what_was_changed_in_an_artifact(runs: Path) -> None:
    volar("doctor", "artifact", "timer_seconds=0", cwd=runs)
    shutil.copytree(runs / "artifact", runs / "damaged")
    graph = bytearray((runs / "damaged" / "policy.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (runs / "damaged" / "policy.onnx").write_bytes(graph)
    script = Path(sys.executable).parent / "volar-doctor"
    done = subprocess.run([script, "damaged", "timer_seconds=0"], cwd=runs, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "policy.onnx" in done.stdout + done.stderr
