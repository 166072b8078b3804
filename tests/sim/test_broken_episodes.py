"""A crash costs one episode, says how to see it again, and is the same crash when seen again."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.robots.errors import VolarError
from volar.robots.exported_policy import ExportedPolicy
from volar.sim.closed_loop import ClosedLoop, episode_seed
from volar.sim.episode_record import read_records
from volar.sim.evaluate import EvaluateConfig, evaluate, main
from volar.sim.evaluation import DIED, Bench, Job, _with_replay, run_jobs
from volar.sim.replay import ReplayConfig, Verdict, replay
from volar.sim.replay_file import read_replay
from volar.sim.world import TaskWorld

# A distribution that provides a policy type, as anybody's would; how it ends is in its config.json.
_POLICY = """
import json
import os
import signal
import numpy as np
from volar.robots.contract import PolicyContract
from volar.robots.interface import ActionChunk

def load(path):
    return Policy(PolicyContract.load(path / "contract.json"), json.loads((path / "config.json").read_text())["ends"])

class Policy:
    def __init__(self, contract, ends):
        self.contract, self.ends, self.seed, self.asked = contract, ends, 0, 0

    def reset(self, seed):
        self.seed, self.asked = seed, 0

    def predict(self, observation):
        self.asked += 1
        how = self.ends.get(str(self.seed), "")
        if how == "exit" and self.asked == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "raise" and self.asked == 2:
            raise RuntimeError("the network is on fire")
        actions = np.zeros((self.contract.chunk_length, 7), np.float32)
        actions[:, 0], actions[:, 6] = 0.01, 1.0
        return ActionChunk(actions, observation.stamp_ns, 0.1)
"""
SEEDS = [episode_seed(0, "reach", index) for index in range(6)]


@pytest.fixture
def policy(artifact_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Raises in episode 1, kills its process in episode 3, and otherwise creeps along x."""
    site = tmp_path / "site"
    info = site / "mishaps-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mishaps\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[volar.policies]\nmishaps = mishaps:load\n")
    (site / "mishaps.py").write_text(_POLICY)
    monkeypatch.syspath_prepend(site)  # here, and (through the environment) in the workers
    monkeypatch.setenv("PYTHONPATH", f"{site}:{':'.join(path for path in sys.path if path)}")
    folder = tmp_path / "policy"
    folder.mkdir()
    ExportedPolicy(artifact_folder).contract.save(folder / "contract.json")
    ends = {str(SEEDS[1]): "raise", str(SEEDS[3]): "exit"}
    (folder / "config.json").write_text(json.dumps({"type": "mishaps", "ends": ends}))
    return folder


@pytest.fixture
def config(policy: Path, tmp_path: Path) -> EvaluateConfig:
    return EvaluateConfig(
        policy=policy,
        tasks=("reach",),
        episodes=len(SEEDS),
        max_steps=8,
        wrong_instruction=False,
        videos=1,
        workers=2,
        output=tmp_path / "out",
    )


def test_a_crash_and_a_dead_worker_cost_one_episode_each(config: EvaluateConfig) -> None:
    results = evaluate(config)
    episodes = results["episodes"]
    assert [episode["broken"] for episode in episodes] == [index in (1, 3) for index in range(len(SEEDS))]
    assert [episode["seed"] for episode in episodes] == SEEDS
    assert all(episode["valid"] for episode in episodes)
    assert results["overall"]["episodes"] == len(SEEDS)  # they count, as failures
    assert results["overall"]["broken"] == 2
    assert episodes[1]["reason"] == "RuntimeError: the network is on fire"
    assert episodes[3]["reason"] == DIED
    _require_replays_break_again(config, episodes)
    report = (config.output / "report.html").read_text()
    assert "the network is on fire" in report
    assert f"volar-evaluate replay {config.output / episodes[1]['replay']}" in report
    resumed = evaluate(replace(config, resume=True, videos=0))  # nothing is left to be done
    assert resumed["episodes"] == episodes


def _require_replays_break_again(config: EvaluateConfig, episodes: list[dict[str, Any]]) -> None:
    crash, death = (config.output / episodes[index]["replay"] for index in (1, 3))
    found = read_replay(crash)
    assert found.facts["policy_sha256"]
    assert found.record.seed == SEEDS[1]
    assert "the network is on fire" in found.traceback
    assert "in predict" in found.traceback
    assert len(found.arrays["qpos"]) == found.periods > 0
    verdict = replay(ReplayConfig(crash, video=config.output / "crash.mp4"))
    assert verdict == Verdict(True, True, verdict.text)
    assert f"in control period {found.periods}" in verdict.text
    assert (config.output / "crash.mp4").read_bytes()[4:8] == b"ftyp"
    assert replay(ReplayConfig(death)) == Verdict(True, True, f"breaks again, bit for bit, in control period 0: {DIED}")


def test_a_repaired_policy_is_told_from_a_moved_one(config: EvaluateConfig, policy: Path) -> None:
    evaluate(replace(config, episodes=2, workers=1, videos=0))
    file = next((config.output / "replays").iterdir())
    repaired = policy.with_name("repaired")
    policy.rename(repaired)
    (repaired / "config.json").write_text(json.dumps({"type": "mishaps", "ends": {}}))
    assert "does not break any more" in replay(ReplayConfig(file, policy=repaired)).text
    with pytest.raises(VolarError, match="say where it is with policy="):
        replay(ReplayConfig(file))


def test_workers_that_die_whatever_they_run_end_the_evaluation(policy: Path, config: EvaluateConfig) -> None:
    ends = {str(seed): "exit" for seed in SEEDS}
    (policy / "config.json").write_text(json.dumps({"type": "mishaps", "ends": ends}))
    with pytest.raises(VolarError, match="a worker process died"):
        evaluate(replace(config, workers=2))
    assert read_records(config.output / "episodes.jsonl") == []  # no episode is to blame; all will run again


def test_diverged_physics_leave_a_file_that_plays_up_to_there(artifact_folder: Path, tmp_path: Path) -> None:
    loop = ClosedLoop(ExportedPolicy(artifact_folder), "reach", latency_s=0.02)
    steps = 0

    def poison(world: TaskWorld) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:  # after the third policy step
            world.data.qvel[0] = np.nan

    record = loop.run(SEEDS[0], 0, after_step=poison)
    assert record.broken
    assert "SimulationDiverged" in record.reason
    assert record.steps == 3
    job, bench = Job("reach", "standard", 0, SEEDS[0], output=str(tmp_path)), Bench(str(artifact_folder), "fr3", 0.02)
    file = tmp_path / _with_replay(bench, job, record, loop.trace).replay
    assert loop.run(SEEDS[1]).valid  # the next episode starts afresh
    loop.close()
    found = read_replay(file)
    assert found.record.reason == record.reason
    assert found.periods == 31
    assert np.isfinite(found.arrays["q"]).all()
    assert "does not break any more" in replay(ReplayConfig(file)).text  # nobody poisons it now


def test_an_episode_that_broke_in_its_premise_breaks_again(artifact_folder: Path, tmp_path: Path) -> None:
    """The arm holds still, and randomization throws the plate so fast that physics diverge: no policy was asked yet."""
    terms = tmp_path / "thrown.yaml"
    terms.write_text(
        "terms:\n  - {field: push, scope: object/plate, mode: interval, interval_s: 2.0, operation: add,"
        " distribution: {uniform: [1.0e+12, 2.0e+12]}}\n"
    )
    bench = Bench(str(artifact_folder), "fr3", 0.02, randomization=str(terms), max_steps=3)
    record = next(run_jobs(bench, [Job("place_on", "standard", 0, SEEDS[0], output=str(tmp_path))], workers=1))
    assert record.broken
    assert record.steps == 0
    verdict = replay(ReplayConfig(tmp_path / record.replay))
    assert verdict == Verdict(True, True, verdict.text)
    assert "SimulationDiverged" in verdict.text


def test_a_file_that_is_no_replay_is_named(tmp_path: Path) -> None:
    with pytest.raises(VolarError, match=r"no replay file .*nowhere\.npz"):
        replay(ReplayConfig(tmp_path / "nowhere.npz"))
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(VolarError, match=r"results\.json is no replay file: volar-evaluate leaves them as OUTPUT"):
        replay(ReplayConfig(tmp_path / "results.json"))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(VolarError, match=r"other\.npz is not a replay file"):
        replay(ReplayConfig(tmp_path / "other.npz"))
    with pytest.raises(ValueError, match=r"must end in \.mp4"):
        ReplayConfig(tmp_path / "other.npz", video=tmp_path / "film.gif")


def test_the_command_line_replays_a_file(
    config: EvaluateConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(replace(config, episodes=2, workers=1, videos=0))
    file = next((config.output / "replays").iterdir())
    capsys.readouterr()
    for words, code in ((["replay", str(file)], 0), (["replay", "nowhere.npz"], 1), (["replay", "--help"], 0)):
        monkeypatch.setattr(sys, "argv", ["volar-evaluate", *words])
        assert main() == code
    said = capsys.readouterr()
    assert "breaks again, bit for bit, in control period" in said.out
    assert "volar-evaluate replay: error: no replay file nowhere.npz" in said.err


def test_a_lazy_list_of_jobs_is_read_no_further_than_needed(artifact_folder: Path) -> None:
    read: list[int] = []

    def jobs() -> Any:
        for index in range(50):
            read.append(index)
            yield Job("reach", "standard", index, SEEDS[0] + index)

    records = run_jobs(Bench(str(artifact_folder), "fr3", 0.02, max_steps=1), jobs(), workers=1)
    for _ in range(5):
        next(records)
    assert len(read) <= 8
    records.close()  # type: ignore[attr-defined]
