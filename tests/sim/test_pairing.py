"""The same episodes whoever runs them, in whatever order, and however the last one ended; and only sound ones."""

import re
from pathlib import Path

import mujoco
import numpy as np
import pytest

from volar.robots.exported_policy import ExportedPolicy
from volar.sim import premise
from volar.sim.closed_loop import ClosedLoop, episode_seed
from volar.sim.episode_record import EpisodeRecord
from volar.sim.evaluation import Bench, Job, run_jobs
from volar.sim.evaluation_plan import Plan
from volar.sim.premise import broken_premise
from volar.sim.randomization import Draws
from volar.sim.tasks import load_suite
from volar.sim.world import TaskWorld

TASKS = ("reach", "lift")
EACH = 50  # episodes of a task, under each of two conditions: 200
STEPS = 5


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    plan = Plan(TASKS, ("standard", "wrong_instruction"), EACH, 0, tmp_path_factory.mktemp("pairing"))
    return list(plan.missing())


@pytest.fixture(scope="module")
def bench(artifact_folder: Path) -> Bench:
    return Bench(str(artifact_folder), "fr3", 0.02, max_steps=STEPS)


@pytest.fixture(scope="module")
def one_after_the_other(artifact_folder: Path, jobs: list[Job]) -> dict[tuple[str, str, int], EpisodeRecord]:
    """In this process, in order."""
    policy = ExportedPolicy(artifact_folder)
    loops = {task: ClosedLoop(policy, task, latency_s=0.02, max_steps=STEPS) for task in TASKS}
    found = {job.key: loops[job.task].run(job.seed, job.index, job.condition) for job in jobs}
    for loop in loops.values():
        loop.close()
    return found


def test_200_episodes_have_the_same_hashes_with_one_worker_two_or_none_in_any_order(
    bench: Bench, jobs: list[Job], one_after_the_other: dict[tuple[str, str, int], EpisodeRecord]
) -> None:
    assert len(jobs) == 4 * EACH == 200
    assert len({record.episode_sha256 for record in one_after_the_other.values()}) == 2 * EACH  # this policy is deaf
    shuffled = [jobs[i] for i in np.random.default_rng(0).permutation(len(jobs))]
    for workers, order in ((1, jobs[::-1]), (2, sorted(shuffled, key=lambda job: job.task))):
        found = {record.key: record for record in run_jobs(bench, order, workers)}
        assert found == one_after_the_other


def test_conditions_and_policies_share_the_start_of_every_episode(
    artifact_folder: Path, one_after_the_other: dict[tuple[str, str, int], EpisodeRecord]
) -> None:
    records = one_after_the_other
    for (task, condition, index), record in records.items():
        assert record.start_sha256 == records[task, "standard", index].start_sha256, condition
    assert len({record.start_sha256 for record in records.values()}) == len(TASKS) * EACH
    # Another policy, in effect: it answers later and for longer, so that every earlier episode ended elsewhere.
    other = ClosedLoop(ExportedPolicy(artifact_folder), "reach", latency_s=0.05, max_steps=12)
    for index in range(4):
        record, before = other.run(episode_seed(0, "reach", index), index), records["reach", "standard", index]
        assert record.start_sha256 == before.start_sha256
        assert record.episode_sha256 != before.episode_sha256
    other.close()


@pytest.mark.parametrize("task", [task.name for task in load_suite("tabletop")])
def test_the_premise_of_every_task_holds(task: str) -> None:
    world = TaskWorld(task, cameras=())
    assert [broken_premise(world, episode_seed(0, task, index)) for index in range(3)] == [""] * 3
    world.close()


class _Tampered(TaskWorld):
    """A world in which something is wrong from the start."""

    def reset(self, seed: int, draws: Draws | None = None) -> None:
        super().reset(seed, draws)
        block = self.data.joint(f"block_{self.goal.color}")
        if seed % 3 == 0:
            block.qpos[2] += 0.2  # it hangs in the air: lifted already
        elif seed % 3 == 1:
            block.qvel[:2] = 0.5  # it slides
        else:
            block.qvel[2] = 1.4  # it will be lifted by itself: v^2 / 2g = 0.1 m
        mujoco.mj_forward(self.model, self.data)


@pytest.mark.parametrize(
    ("seed", "reason"), [(3, "before anything moved"), (4, "block moves by"), (5, "succeeds by itself")]
)
def test_a_scene_that_does_not_stay_as_it_was_put_is_found(seed: int, reason: str) -> None:
    world = _Tampered("lift", cameras=())
    assert re.search(reason, broken_premise(world, seed))
    world.close()


def test_an_invalid_seed_is_not_run(artifact_folder: Path) -> None:
    loop = ClosedLoop(ExportedPolicy(artifact_folder), "reach")
    loop.world.__class__ = _Tampered  # the same world, tampered with at each reset
    record = loop.run(4, index=7)
    assert not record.valid
    assert not record.success
    assert not record.broken
    assert record.steps == 0
    assert "moves by" in record.reason
    assert (record.index, record.seed) == (7, 4)
    loop.close()


def test_looking_at_the_premise_changes_nothing_in_the_episode(
    artifact_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = []
    for periods in (0, premise.IDLE_STEPS, 2 * premise.IDLE_STEPS):
        monkeypatch.setattr(premise, "IDLE_STEPS", periods)
        loop = ClosedLoop(ExportedPolicy(artifact_folder), "reach", max_steps=3)
        hashes.append(loop.run(11).episode_sha256)
        loop.close()
    assert len(set(hashes)) == 1
