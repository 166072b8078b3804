"""volar-control: deadlines, what an instruction means, and one short run on the real clock."""

import hashlib
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.robots.contract import ContractError
from volar.robots.control_loop import ControlLoop
from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.in_process_source import InProcessSource
from volar.robots.kinematics import Arm
from volar.robots.real_time import SPIN_S, Pacer
from volar.robots.tokenize_words import TokenizerError
from volar.sim.closed_loop import ClosedLoop, episode_seed, world_for
from volar.sim.control import ControlConfig, control
from volar.sim.control_report import Run, print_summary, summarize
from volar.sim.orders import Order, seeds, understand
from volar.sim.tasks import TASKS
from volar.sim.tasks.layout import NoLayout
from volar.sim.wall_clock import run_in_real_time
from volar.sim.wilson import wilson_interval
from volar.sim.world import TaskWorld

PERIOD_NS = 10_000_000


class VirtualClock:
    """Time passes in `sleep` only, which overshoots by what a pacer allows for."""

    def __init__(self) -> None:
        self.now_ns = 12345

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round((seconds + SPIN_S) * 1e9)


def _pacer() -> tuple[Pacer, VirtualClock]:
    clock = VirtualClock()
    return Pacer(PERIOD_NS, clock, clock.sleep), clock


def test_deadlines_are_absolute() -> None:
    pacer, clock = _pacer()
    pacer.start()
    for index in range(5):
        assert pacer.wait() == 0
        assert pacer.now_ns == index * PERIOD_NS
        clock.now_ns += 3_000_000  # work that takes part of the period delays nothing


def test_late_periods_are_left_out_and_counted() -> None:
    pacer, clock = _pacer()
    pacer.start()
    pacer.wait()
    clock.now_ns += 12_000_000
    assert pacer.wait() == 0  # late by 2 ms: this tick is late, the next one is not
    assert pacer.now_ns == 12_000_000
    clock.now_ns += 33_000_000
    assert pacer.wait() == 2  # at 45 ms: deadlines 20 and 30 are gone, 40 is late
    assert pacer.wait() == 0
    assert pacer.now_ns == 50_000_000


def test_on_a_virtual_clock_it_does_what_evaluation_does(artifact_folder: Path) -> None:
    policy = ExportedPolicy(artifact_folder)
    evaluated = ClosedLoop(policy, "reach", latency_s=0.02)
    record = evaluated.run(21)

    world = world_for("reach", "fr3", policy.contract)
    source = InProcessSource(policy, 0.02)
    loop = ControlLoop.for_policy(world.body, Arm(world.spec), policy.contract, source)
    world.reset(21)
    source.reset(21)
    loop.set_instruction(world.instruction)
    run = run_in_real_time(world, loop, source, _pacer()[0], world.task.max_steps / 10, check_every=10)

    np.testing.assert_array_equal(world.data.qpos, evaluated.world.data.qpos)
    assert run.success == record.success
    assert run.holds == record.holds
    assert run.margins == record.margins
    assert run.timing.skipped == 0
    assert not run.timing.period_errors_s(0.01).any()


def test_physics_that_diverges_costs_its_own_episode_only(artifact_folder: Path) -> None:
    policy = ExportedPolicy(artifact_folder)
    world, source = world_for("reach", "fr3", policy.contract), InProcessSource(policy, 0.02)
    loop = ControlLoop.for_policy(world.body, Arm(world.spec), policy.contract, source)
    runs = []
    for seed, push in ((21, 1e12), (22, 0.0)):
        world.reset(seed)
        world.data.qvel[-1] += push  # of a block
        loop.set_instruction(world.instruction)
        runs.append(Run(seed, "", run_in_real_time(world, loop, source, _pacer()[0], 0.3, check_every=10)))
    result = json.loads(json.dumps(summarize(runs, 0.01), allow_nan=False))
    assert (result["episodes"], result["invalid"]) == (2, 1)
    assert "reach, seed 21: the simulation became unstable" in result["runs"][0]["reason"]
    assert not result["runs"][0]["success"]
    assert result["runs"][1]["reason"] == ""
    assert result["runs"][1]["duration_s"] == pytest.approx(0.3)
    world.close()


def _preempted() -> Pacer:
    """Another program has the core for 150 ms, once, between a deadline and its tick."""
    pacer, clock = _pacer()
    wait, number = pacer.wait, itertools.count()

    def late() -> int:
        skipped = wait()
        clock.now_ns += 150_000_000 if next(number) == 10 else 0
        return skipped

    pacer.wait = late  # type: ignore[method-assign]
    return pacer


def test_what_the_computer_stopped_is_not_counted_as_the_policys(
    artifact_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = ExportedPolicy(artifact_folder)
    world, source = world_for("reach", "fr3", policy.contract), InProcessSource(policy, 0.02)
    loop = ControlLoop.for_policy(world.body, Arm(world.spec), policy.contract, source)
    loop.set_instruction("move to the red block")
    runs = []
    for pacer in (_preempted(), _pacer()[0]):
        world.reset(21)
        source.reset(21)
        runs.append(Run(21, "", run_in_real_time(world, loop, source, pacer, 0.4, check_every=10)))
    world.close()
    late, whole = runs
    assert (late.stopped_by, late.counts) == ("stale_joint_state", False)
    assert (whole.stopped_by, whole.counts) == ("", True)
    assert not late.result.success
    assert replace(late, result=replace(late.result, success=True)).counts  # done before, or in spite of it
    driven = replace(late, result=replace(late.result, holds={"tracking_error": 3, "stale_joint_state": 1}))
    assert (driven.stopped_by, driven.counts) == ("tracking_error", True)

    both, none = (
        {"robot": "sim/fr3", "instruction": "", "task": "reach"} | summarize(some, 0.01) for some in (runs, [late])
    )
    assert (both["episodes"], both["counted"], both["not_counted"]) == (2, 1, {"stale_joint_state": 1})
    assert [run["stopped_by"] for run in both["runs"]] == ["stale_joint_state", ""]
    assert both["wilson95"] == list(wilson_interval(0, 1))
    assert (none["success_rate"], none["wilson95"]) == (None, None)
    print_summary(both)
    said = " ".join(capsys.readouterr().out.split())
    assert "success 0/1 (0–79 %); not counted, stopped by the computer or the robot: stale_joint_state 1" in said
    assert f"not the policy's: stale_joint_state {late.result.holds['stale_joint_state']}" in said
    print_summary(none)
    assert "success unknown: no episode counts; not counted" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", TASKS)
def test_every_phrasing_is_understood(name: str) -> None:
    for template in (*TASKS[name].templates, *TASKS[name].held_out_templates):
        order = understand(template.format(color="blue", side="right", other="red").capitalize() + ".")
        assert order.task == name
        assert order.color == "blue"
        assert order.side == ("right" if "{side}" in template else "")
        assert order.other == ("red" if "{other}" in template else "")


def test_what_is_not_understood_is_refused_with_examples() -> None:
    with pytest.raises(UsageError, match="lift the red block"):
        understand("make coffee")
    with pytest.raises(UsageError, match="must name one color"):
        understand("lift something", "lift")
    assert understand("hoist that yellow thing", "lift") == Order("lift", "yellow")
    assert understand("red over blue, please", "stack") == Order("stack", "red", other="blue")
    with pytest.raises(UsageError, match="must name two colors"):
        understand("red, please", "stack")
    assert understand("red one, to the left", "push") == Order("push", "red", "left")
    for text, task in (("the red one", "push"), ("red, left or right", "push"), ("bump the green knob", "turn_lever")):
        with pytest.raises(UsageError, match=r"must name one color .* and one side \(left, right\), such as"):
            understand(text, task)
    with pytest.raises(UsageError, match="and no side"):
        understand("lift red to the left", "lift")
    with pytest.raises(UsageError, match="asks for lift, and success would be judged by task=reach: leave task= out"):
        understand("Lift the red block.", "reach")
    with pytest.raises(Unknown, match="reach"):
        understand("lift the red block", "lfit")


def test_scenes_are_those_of_evaluation_with_the_ordered_goal() -> None:
    world = TaskWorld("push")
    order = Order("push", "green", "left")
    found = seeds(order, world, 0)
    for _ in range(2):
        seed = next(found)
        assert (world.goal.color, world.goal.side) == ("green", "left")
        assert seed in {episode_seed(0, "push", i) for i in range(200)}


class _Crowded(TaskWorld):
    """No layout is found for every other seed."""

    def reset(self, seed: int, draws: Any = None) -> None:
        if seed % 2:
            raise NoLayout(f"seed {seed}")
        super().reset(seed, draws)


def test_a_seed_without_a_layout_is_passed_over() -> None:
    found = seeds(Order("reach"), _Crowded("reach", cameras=()), 0)
    wanted = [seed for seed in (episode_seed(0, "reach", i) for i in range(20)) if seed % 2 == 0]
    assert [next(found) for _ in wanted] == wanted


@pytest.fixture
def config(artifact_folder: Path, tmp_path: Path) -> ControlConfig:
    text = "lift the red block"
    return ControlConfig(str(artifact_folder), instruction=text, duration_s=0.6, output=tmp_path / "out")


@pytest.mark.real_time
def test_a_short_run_leaves_its_figures(config: ControlConfig, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    result = control(replace(config, video=film, duration_s=1.5))
    written = json.loads((config.output / "control.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert written["task"] == "lift"
    assert written["episodes"] == len(written["runs"]) == 1
    assert written["runs"][0]["duration_s"] >= 1.5
    for key in ("period_error_ms", "busy_ms", "inference_ms", "observation_to_chunk_ms"):
        assert set(written[key]) == {"p50", "p99", "max"}
    assert all(margin > 0 for margin in written["margins"].values())
    assert film.read_bytes()[4:8] == b"ftyp"
    with pytest.raises(VolarError, match=r"holds a control.json; .*overwrite=true"):
        control(config)
    with pytest.raises(VolarError, match=r"film.mp4 exists; .*overwrite=true"):
        control(replace(config, video=film, output=tmp_path / "another"))
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"instruction": "set the red cube down on the big plate please"}, UsageError, "no task is known"),
        ({"instruction": "please do lift up the red block now", "task": "lift"}, TokenizerError, "at most 7"),
        ({"rate_hz": 33.0}, UsageError, "rate_hz=33"),
        ({"rate_hz": 60.0}, UsageError, "rate_hz=60"),
        ({"rate_hz": 0.0}, UsageError, "rate_hz=0 must be from 50 to 500"),
        ({"rate_hz": 1000.0}, UsageError, "rate_hz=1000 must be from 50 to 500"),
    ],
)
def test_refusals(config: ControlConfig, changes: dict[str, Any], error: type[VolarError], says: str) -> None:
    with pytest.raises(error, match=says):
        control(replace(config, **changes))
    assert not config.output.exists()


def test_a_policy_directory_is_sent_to_export(config: ControlConfig, tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text('{"type": "volar"}')
    with pytest.raises(VolarError, match="volar-export policy="):
        control(replace(config, policy=str(tmp_path / "policy")))


def test_an_artifact_for_another_robot_is_refused(config: ControlConfig, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(config.policy, folder)
    contract = replace(ExportedPolicy(Path(config.policy)).contract, robot="ur5e")
    contract.save(folder / "contract.json")
    manifest = json.loads((folder / "artifact.json").read_text())
    manifest["contract_sha256"] = contract.sha256
    manifest["files"]["contract.json"] = hashlib.sha256((folder / "contract.json").read_bytes()).hexdigest()
    (folder / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(ContractError, match="robot: policy wants ur5e, found fr3"):
        control(replace(config, policy=str(folder)))


def test_settings_are_checked_before_anything_runs(artifact_folder: Path) -> None:
    with pytest.raises(Unknown, match="sim/fr3"):
        ControlConfig(str(artifact_folder), robot="ros2/panda", task="lift")
    with pytest.raises(UsageError, match="say what to do"):
        ControlConfig(str(artifact_folder))
    with pytest.raises(ValueError, match=r"\.mp4"):
        ControlConfig(str(artifact_folder), task="lift", video=Path("film.gif"))
