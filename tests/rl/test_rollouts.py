"""Rollouts are the same data wherever they run, and whoever dies meanwhile."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from volar.rl.episodes import Job, Setting, Trajectory
from volar.rl.exploration import Exploration
from volar.rl.ray_rollouts import RayRollouts
from volar.rl.rollouts import ProcessRollouts, RolloutWorker, WorkerSetup
from volar.rl.wire import decode_jobs, decode_trajectory, encode_jobs, encode_trajectory, encode_weights, trained_names
from volar.robots.errors import VolarError

JOBS = [Job("reach", 7, noise_seed=3), Job("lift", 8, noise_seed=4, width=0.5), Job("reach", 9)]


@pytest.fixture(scope="module")
def setup(policy_folder: Path) -> WorkerSetup:
    setting = Setting(("reach", "lift"), randomization="dynamics", reward="dense")
    return WorkerSetup(policy_folder, 4, Exploration(0.5, 4.0, 0.8), "head", setting)


@pytest.fixture(scope="module")
def local(setup: WorkerSetup) -> Iterator[RolloutWorker]:
    worker = RolloutWorker(setup)
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def weights(setup: WorkerSetup) -> bytes:
    """Others than those on the disk."""
    policy = RolloutWorker(setup).policy
    with torch.no_grad():
        policy.vla.action_head.bins.bias.add_(torch.linspace(-1, 1, policy.vla.action_head.bins.bias.numel()))
    return encode_weights(policy.vla, trained_names(policy.vla))


@pytest.fixture(scope="module")
def wanted(local: RolloutWorker, weights: bytes) -> list[bytes]:
    """What one process finds, one job after the other."""
    local.load(weights)
    return [local.run(encode_jobs([job])) for job in JOBS]


def same(found: list[Trajectory], wanted: list[bytes]) -> bool:
    return [encode_trajectory(t) for t in found] == wanted


def test_an_episode_holds_what_was_decided(local: RolloutWorker) -> None:
    t = local.runner.run(JOBS[0])
    assert len(t) == len(t.rewards) == len(t.steps) == len(t.inputs["queries"]) == 10
    assert t.steps.tolist() == [4] * 10  # forty steps of reach, four a decision
    assert t.tokens.shape == (10, 4, 7)
    assert not t.terminated
    assert np.array_equal(local.runner.run(JOBS[0]).tokens, t.tokens)
    assert not np.array_equal(local.runner.run(replace(JOBS[0], noise_seed=99)).tokens, t.tokens)


def test_an_episode_that_fails_says_why_and_harms_no_other(local: RolloutWorker, wanted: list[bytes]) -> None:
    assert local.runner.run(JOBS[0]).valid
    found = local.runner.run(Job("reach", -1))
    assert not found.valid
    assert "ValueError" in found.error
    assert found.broken  # which counts as no success where policies are compared
    assert decode_trajectory(encode_trajectory(found)).error == found.error
    assert local.run(encode_jobs(JOBS[:1])) == wanted[0]


def test_jobs_and_trajectories_survive_the_wire(local: RolloutWorker) -> None:
    assert decode_jobs(encode_jobs(JOBS)) == JOBS
    t = local.runner.run(JOBS[1])
    again = decode_trajectory(encode_trajectory(t))
    assert again.job == t.job
    assert (again.success, again.terminated, again.valid) == (t.success, t.terminated, t.valid)
    assert all(np.array_equal(again.inputs[key], value) for key, value in t.inputs.items())
    assert np.array_equal(again.rewards, t.rewards)


def test_processes_find_what_one_finds(setup: WorkerSetup, weights: bytes, wanted: list[bytes]) -> None:
    with ProcessRollouts(setup, 2) as rollouts:
        rollouts.broadcast(weights)
        assert same(rollouts.run(JOBS), wanted)
        assert rollouts.deaths == 0


def test_a_worker_that_is_killed_is_replaced(setup: WorkerSetup, weights: bytes, wanted: list[bytes]) -> None:
    with ProcessRollouts(setup, 2) as rollouts:
        rollouts.broadcast(weights)
        kills = iter([rollouts.pids[0]])

        def kill_one() -> None:  # called when the first episode is over: the other worker is in the middle of its own
            for pid in kills:
                os.kill(pid, signal.SIGKILL)

        found = rollouts.run(JOBS + JOBS[:1], kill_one)
        assert rollouts.deaths == 1
        assert same(found, wanted + wanted[:1])


def test_an_episode_that_kills_every_worker_is_given_up(setup: WorkerSetup) -> None:
    with ProcessRollouts(setup, 1) as rollouts:
        over = threading.Event()

        def kill() -> None:
            seen: set[int] = set()
            while not over.wait(0.01):
                pid = rollouts.pids[0]
                if pid and pid not in seen and len(seen) < 2:
                    seen.add(pid)
                    os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        found = rollouts.run([JOBS[2]])
        over.set()
        killer.join()
        assert [t.valid for t in found] == [False]
        assert "two workers died in it" in found[0].error
        assert rollouts.deaths == 2


def test_ray_finds_what_processes_find_also_when_its_actor_is_killed(
    setup: WorkerSetup, weights: bytes, wanted: list[bytes]
) -> None:
    with RayRollouts(setup, 1) as rollouts:
        rollouts.broadcast(weights)
        killers = iter([threading.Timer(0.1, rollouts._ray.kill, rollouts.pool[:1])])

        def kill_once() -> None:  # called when the first episode is over: the actor dies in the middle of the second
            for killer in killers:
                killer.start()

        assert same(rollouts.run(JOBS, kill_once), wanted)
        assert rollouts.deaths == 1
        assert same(rollouts.run(JOBS[:1]), wanted[:1])


def test_ray_says_what_does_not_fit(setup: WorkerSetup, tmp_path: Path) -> None:
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(VolarError, match=r"workers=2 need a CPU each, .* has 1; give fewer"):
            RayRollouts(setup, 2)
        with (
            RayRollouts(replace(setup, policy=tmp_path / "elsewhere"), 1) as rollouts,
            pytest.raises(VolarError, match="elsewhere"),
        ):
            rollouts.broadcast(b"")
    finally:
        ray.shutdown()
