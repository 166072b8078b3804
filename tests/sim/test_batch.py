"""Batched simulations are the single ones, bit for bit, at any number of threads."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from volar.robots.errors import UsageError
from volar.sim.batch import BatchEnv, BatchState
from volar.sim.sim_robot import SimRobot
from volar.sim.world import TaskWorld

SEEDS = (3, 4, 11, 12)


def actions(state: BatchState, steps: int) -> np.ndarray:
    """A random walk of the joints (steps, N, J + 1), the gripper closing."""
    rng = np.random.default_rng(0)
    q = state.q + np.cumsum(rng.uniform(-0.02, 0.02, (steps, *state.q.shape)), axis=0)
    width = np.linspace(0.08, 0.02, steps)[:, None, None] * np.ones((1, len(state.q), 1))
    return np.concatenate([q, width], axis=-1)


def play(threads: int, steps: int = 100) -> tuple[BatchEnv, BatchState]:
    env = BatchEnv("lift", len(SEEDS), randomization="dynamics", control_hz=50, threads=threads)
    state = env.reset(SEEDS)
    for action in actions(state, steps):
        state = env.step(action)
    return env, state


def test_threads_change_nothing() -> None:
    (_, one), (_, two) = play(1), play(2)
    for name in ("q", "dq", "gripper_width_m", "tcp", "blocks", "plate"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_each_is_the_single_simulation() -> None:
    """Layout, draws, pushes and motion are those of a `TaskWorld` whose servos are told the same."""
    steps = 100  # two seconds: one push
    env, state = play(2, steps)
    world = TaskWorld("lift", cameras=(), randomization="dynamics")
    for i, seed in enumerate(SEEDS[:2]):
        world.reset(seed)
        assert world.draws == env.draws[i]
        assert isinstance(world.body, SimRobot)
        plan = actions(BatchEnv("lift", len(SEEDS), randomization="dynamics", control_hz=50).reset(SEEDS), steps)[:, i]
        plain = TaskWorld("lift", cameras=()).model  # the controller knows the nominal servos
        lag_s = -plain.actuator_biasprm[:7, 2] / plain.actuator_gainprm[:7, 0]
        before = np.append(world.body.joint_state().q, world.body.joint_state().gripper_width_m)
        assert world.randomizer is not None
        for target in plan:
            world.randomizer.tick(world.body.now_ns)
            for part in range(1, 11):
                world.data.ctrl[:] = before + part / 10 * (target - before)
                world.data.ctrl[:7] += lag_s * ((target - before) / 0.02)[:7]
                world.body.advance(0.002)
            before = target
        np.testing.assert_array_equal(state.q[i], world.data.qpos[:7])
        np.testing.assert_array_equal(state.blocks[i], world.state.blocks)
        np.testing.assert_array_equal(state.tcp[i], world.state.tcp)


def test_success_is_the_task_s() -> None:
    env = BatchEnv("lift", 3)
    env.reset((0, 1, 2))
    assert not env.success().any()
    env._qpos[1, env._world.model.joint(f"block_{env.goals[1].color}").qposadr[0] + 2] += 0.2
    assert env.success().tolist() == [False, True, False]


@pytest.mark.filterwarnings("ignore")
def test_one_that_diverges_is_flagged_and_the_others_go_on() -> None:
    env = BatchEnv("lift", 3, control_hz=50)
    state = env.reset((0, 1, 2))
    plan = actions(state, 4)
    alone = BatchEnv("lift", 1, control_hz=50)
    alone.reset((2,))
    env._qvel[1] = np.nan
    for action in plan:
        state, single = env.step(action), alone.step(action[2:])
        assert env.diverged.tolist() == [False, True, False]
        np.testing.assert_array_equal(state.q[2], single.q[0])
    assert not env.success()[1]
    env.reset((5,), which=(1,))
    state = env.step(plan[-1])
    assert not env.diverged.any()
    assert np.isfinite(state.q).all()


def test_resetting_some_leaves_the_others() -> None:
    env = BatchEnv("push", 2, randomization="dynamics")
    before = env.reset((0, 1))
    after = env.reset((7,), which=(0,))
    np.testing.assert_array_equal(after.blocks[1], before.blocks[1])
    assert not np.array_equal(after.blocks[0], before.blocks[0])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match=r"image_noise.*cannot act in a batch"):
        BatchEnv("lift", 2, randomization="full")
    with pytest.raises(ValueError, match="control_hz"):
        BatchEnv("lift", 2, control_hz=30)
    with pytest.raises(ValueError, match="simulations"):
        BatchEnv("lift", 0)
    env = BatchEnv("lift", 2)
    with pytest.raises(ValueError, match="1 seeds for 2"):
        env.reset((0,))
    with pytest.raises(ValueError, match=r"\(2, 8\)"):
        env.step(np.zeros((2, 7)))


@pytest.mark.parametrize(("task", "robot"), [("press_button", "so101"), ("open_drawer", "ur5e"), ("place_in", "fr3")])
def test_props_stand_where_the_layout_puts_them(task: str, robot: str) -> None:
    """Fixed ones too, which are not in `qpos`: things rest on them, and touch them, as in the single simulation."""
    env, world = BatchEnv(task, 2, robot, control_hz=50), TaskWorld(task, robot, cameras=())
    state = env.reset((5, 6))
    hold = np.hstack([state.q, state.gripper_width_m[:, None]])
    for _ in range(20):
        env.step(hold)
    for i, seed in enumerate((5, 6)):
        world.reset(seed)
        world.data.ctrl[: hold.shape[1]] = hold[i]
        world.advance(0.4)
        np.testing.assert_array_equal(env._qpos[i], world.data.qpos)
        joint = f"{task.split('_')[1]}_{env.goals[i].color}"
        if joint in world.state.joints:
            low, high = world.model.joint(joint).range
            env._qpos[i, world.model.joint(joint).qposadr[0]] = low if task == "press_button" else high
    assert env.success().tolist() == [task != "place_in"] * 2


def test_success_is_judged_on_each_simulations_own_table(tmp_path: Path) -> None:
    """Its height moves the robot's base in the model, of which each simulation has its own."""
    heights = tmp_path / "heights.yaml"
    heights.write_text("terms:\n  - {field: table_height, distribution: {uniform: [-0.1, 0.1]}}\n")
    env = BatchEnv("reach", 4, randomization=str(heights))
    state = env.reset((0, 1, 2, 3))
    seen: list[np.ndarray] = []
    task = env._world.task
    env._world.task = SimpleNamespace(success=lambda state, goal: seen.append(state.tcp))  # type: ignore[assignment]
    env.success()
    env._world.task = task
    np.testing.assert_allclose(seen, state.tcp, atol=1e-9)
    assert np.ptp(state.tcp[:, 2]) > 0.02
