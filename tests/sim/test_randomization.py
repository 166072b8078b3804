"""Axes change what they say and nothing else; nothing drifts; saved draws give the same bits again."""

import json
from typing import Any

import mujoco
import numpy as np
import pytest

from volar.robots.errors import Unknown, UsageError, VolarError
from volar.sim.distributions import Bernoulli, Choice, Uniform
from volar.sim.randomization import Randomization, Term
from volar.sim.randomization_axes import AXES
from volar.sim.tasks.layout import NoLayout
from volar.sim.world import StepDriver, TaskWorld

MASS = ("body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0",
        "tendon_invweight0", "cam_poscom0", "light_poscom0")  # fmt: skip
# What each axis may change, the first it must: arrays of the model.
CHANGES: dict[str, tuple[str, ...]] = {
    "light_position": ("light_pos",), "light_direction": ("light_dir",), "light_color": ("light_diffuse",),
    "light_intensity": ("light_diffuse",), "ambient": ("vis.ambient",), "shadow": ("light_castshadow",),
    "texture": ("geom_matid",), "color": ("geom_rgba",), "hue": ("geom_rgba",), "camera_position": ("cam_pos",),
    "camera_rotation": ("cam_quat",), "camera_fov": ("cam_fovy",), "distractor_count": ("body_pos", "body_quat"),
    "table_height": ("body_pos",), "friction": ("geom_friction",), "mass": MASS, "joint_damping": ("dof_damping",),
    "armature": ("dof_armature", "dof_M0", "dof_invweight0", "body_invweight0", "actuator_acc0", "tendon_invweight0"),
    "actuator_gain": ("actuator_gainprm", "actuator_biasprm"), "actuator_bias": ("actuator_biasprm",),
    "gravity_tilt": ("opt.gravity",),
    "object_size": ("geom_size", "geom_rbound", "geom_aabb", "bvh_aabb", "body_inertia", "body_invweight0",
                    "dof_invweight0", "dof_M0", "dof_length"),
}  # fmt: skip


def only(*terms: Term) -> Randomization:
    return Randomization("test", terms)


def typical(field: str) -> Term:
    """The term that the preset `unseen` has for that axis: always away from what the scene has."""
    if field == "shadow":
        return Term(field, Bernoulli(1.0))
    return next(term for term in Randomization.of("unseen").terms if term.field == field and term.mode == "reset")


@pytest.mark.parametrize("field", [name for name in AXES if AXES[name].part != "sensing" and name != "push"])
def test_an_axis_changes_what_it_says_and_only_that(field: str) -> None:
    world = TaskWorld("lift", cameras=(), randomization=only(typical(field)))
    world.reset(0)
    assert world.randomizer is not None
    changed = set(world.randomizer.stage.changed())
    assert changed <= set(CHANGES[field])
    assert CHANGES[field][0] in changed


@pytest.mark.parametrize("field", [name for name in AXES if AXES[name].part == "sensing"])
def test_sensing_touches_no_model(field: str) -> None:
    world = TaskWorld("lift", cameras=(), randomization=only(typical(field)))
    world.reset(0)
    assert world.randomizer is not None
    assert world.randomizer.stage.changed() == []
    drawn, setting = world.draws[field], getattr(world.randomizer.disturbance(), field)
    np.testing.assert_array_equal(list(drawn.values()) if isinstance(drawn, dict) else drawn, setting)


def test_mass_and_inertia_go_together_and_gains_too() -> None:
    plain = TaskWorld("lift", cameras=()).model
    terms = [Term(name, Uniform(1.5, 2.0), operation="scale") for name in ("mass", "actuator_gain")]
    world = TaskWorld("lift", cameras=(), randomization=only(*terms))
    world.reset(1)
    for name, factor in world.draws["mass"].items():
        body = mujoco.mj_name2id(plain, mujoco.mjtObj.mjOBJ_BODY, name.partition("/")[2])
        np.testing.assert_allclose(world.model.body_mass[body], plain.body_mass[body] * factor, rtol=1e-12)
        np.testing.assert_allclose(world.model.body_inertia[body], plain.body_inertia[body] * factor, rtol=1e-12)
    np.testing.assert_array_equal(world.model.actuator_gainprm[:, 0], -world.model.actuator_biasprm[:, 1])
    np.testing.assert_array_equal(world.model.actuator_biasprm[:, 2], plain.actuator_biasprm[:, 2])
    again = mujoco.MjData(world.model)
    before = world.model.dof_M0.copy()
    mujoco.mj_setConst(world.model, again)
    np.testing.assert_array_equal(world.model.dof_M0, before)  # the derived constants were already right


def test_nothing_drifts() -> None:
    """After a hundred episodes of everything the restored model is the compiled one, bit for bit."""
    world = TaskWorld("push", cameras=(), randomization="full")
    for seed in range(100):
        world.reset(seed)
    assert world.randomizer is not None
    assert world.randomizer.stage.changed()
    world.randomizer.stage.restore()
    assert world.randomizer.stage.changed() == []


def test_the_shared_model_is_untouched() -> None:
    plain = TaskWorld("lift", cameras=())
    masses, colors = plain.model.body_mass.copy(), plain.model.geom_rgba.copy()
    varied = TaskWorld("lift", cameras=(), randomization="full")
    varied.reset(0)
    assert plain.model is TaskWorld("lift", cameras=()).model
    np.testing.assert_array_equal(plain.model.body_mass, masses)
    np.testing.assert_array_equal(plain.model.geom_rgba, colors)


def play(driver: StepDriver, seed: int, draws: Any = None, steps: int = 20) -> list[np.ndarray]:
    """Everything an episode shows: images, measured and true states."""
    driver.reset(seed, draws)
    world, seen = driver.world, []
    for _ in range(steps):
        seen += [*world.body.images().values(), driver.proprio(), world.data.qpos.copy(), world.data.qvel.copy()]
        action = np.clip(world.expert(), world.spec.action.low, world.spec.action.high)
        driver.step(action.astype(np.float32))
    return [*seen, world.data.qpos.copy()]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("preset", ["full", "unseen"])
def test_saved_draws_replay_bit_for_bit(preset: str) -> None:
    """Through JSON, after other episodes, in another world; and the seed alone does the same."""
    driver = StepDriver(TaskWorld("lift", image_size=32, randomization=preset))
    first = play(driver, 5)
    saved = json.dumps(dict(driver.world.draws), allow_nan=False)
    assert not same(first, play(driver, 6))
    assert same(first, play(driver, 5, json.loads(saved)))
    other = StepDriver(TaskWorld("lift", image_size=32, randomization=preset))
    assert same(first, play(other, 5))
    assert json.dumps(dict(other.world.draws)) == saved
    driver.world.close()
    other.world.close()


def test_draws_decide_and_not_the_seed_when_they_are_given() -> None:
    world = TaskWorld("lift", cameras=(), randomization="dynamics")
    world.reset(1)
    draws, masses = dict(world.draws), world.model.body_mass.copy()
    world.reset(2)
    assert not np.array_equal(world.model.body_mass, masses)
    world.reset(2, draws)
    np.testing.assert_array_equal(world.model.body_mass, masses)


def test_layouts_do_not_depend_on_randomization() -> None:
    plain, varied = TaskWorld("push", cameras=()), TaskWorld("push", cameras=(), randomization="full")
    for seed in range(5):
        plain.reset(seed)
        varied.reset(seed)
        assert plain.instruction == varied.instruction
        assert plain.goal.color == varied.goal.color
        np.testing.assert_array_equal(plain.state.blocks[:, :2], varied.state.blocks[:, :2])
        np.testing.assert_array_equal(plain.state.plate, varied.state.plate)


def test_blocks_of_another_size_rest_where_they_lie() -> None:
    """Neither dropping nor pushed out: in half a second they sink into the soft contact (0.1 mm), no more."""
    world = TaskWorld("lift", cameras=(), randomization=only(typical("object_size")))
    for seed in range(3):
        world.reset(seed)
        before = world.state.blocks
        half = [world.model.geom(f"block_{c}").size[0] for c in ("red", "green", "blue", "yellow")]
        np.testing.assert_allclose(before[:, 2], half, atol=1e-12)
        for _ in range(50):
            world.advance()
        np.testing.assert_allclose(world.state.blocks, before, atol=1.5e-4)


def test_a_block_upon_another_stays_there() -> None:
    world = TaskWorld("lift", cameras=(), randomization=only(typical("object_size")))
    world.reset(0)
    assert world.randomizer is not None
    _, placement = world.task.sample(np.random.default_rng(0), world.spec)
    placement.blocks[1] = [*placement.blocks[0, :2], 3 * placement.blocks[0, 2]]
    moved = world.randomizer.placed(placement).blocks
    half = [float(world.model.geom(f"block_{c}").size[0]) for c in ("red", "green")]
    np.testing.assert_allclose(moved[:2, 2], [half[0], 2 * half[0] + half[1]], atol=1e-12)


def test_table_height_is_between_the_table_and_the_base() -> None:
    """Things stay on the table top; what the robot measures of its hand is above it by less."""
    plain = StepDriver(TaskWorld("lift", cameras=()))
    varied = StepDriver(TaskWorld("lift", cameras=(), randomization=only(Term("table_height", Choice((0.01,))))))
    plain.reset(0)
    varied.reset(0)
    np.testing.assert_array_equal(plain.world.state.blocks, varied.world.state.blocks)
    np.testing.assert_array_equal(plain.proprio(), varied.proprio())
    np.testing.assert_allclose(plain.world.state.tcp[2] - varied.world.state.tcp[2], 0.01, atol=1e-9)
    above = varied.world.points()[0, 2] - plain.world.points()[0, 2]
    np.testing.assert_allclose(above, 0.01, atol=1e-6)  # labels are in the base frame


def test_distractors_stand_clear_of_everything() -> None:
    world = TaskWorld("push", cameras=(), randomization=only(Term("distractor_count", Choice((4,)))))
    for seed in range(10):
        world.reset(seed)
        poses = np.array(world.draws["distractor_poses"])  # (4, 3)
        assert len(poses) == 4
        things = np.vstack([world.state.blocks, world.state.plate, world.state.tcp])[:, :2]
        gaps = np.linalg.norm(poses[:, None, :2] - things, axis=-1)
        assert gaps.min() > 0.08
        np.testing.assert_allclose(world.data.body("distractor_3").xpos[:2], poses[3, :2])


def test_a_full_table_is_an_error_with_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volar.sim.distractors._CLEAR_M", 0.4)
    world = TaskWorld("lift", cameras=(), randomization=only(Term("distractor_count", Choice((4,)))))
    with pytest.raises(NoLayout, match=r"seed 12: .*distractor_count"):
        world.reset(12)


def test_interval_terms_act_when_they_are_due() -> None:
    push = Term("push", Uniform(0.5, 0.6), mode="interval", interval_s=0.1, operation="add", scope=("object/plate",))
    world = TaskWorld("lift", cameras=(), randomization=only(push))
    world.reset(0)
    dof = world.model.joint("plate").dofadr[0]
    speeds = []
    for _ in range(12):
        world.advance()
        speeds.append(float(np.linalg.norm(world.data.qvel[dof : dof + 2])))
    assert max(speeds[:10]) < 1e-3
    assert speeds[10] > 0.3  # the first period that begins at 0.1 s or later
    np.testing.assert_allclose(world.draws["push@object/plate#interval"][0]["object/plate"], 0.55, atol=0.05)


def test_a_flickering_light_scales_what_the_episode_has() -> None:
    terms = (
        Term("light_intensity", Choice((0.5,)), operation="scale"),
        Term("light_intensity", Choice((0.9,)), mode="interval", interval_s=0.05, operation="scale"),
    )
    world = TaskWorld("lift", cameras=(), randomization=only(*terms))
    world.reset(0)
    base = world.model.light_diffuse.copy()
    for _ in range(20):
        world.advance()
    np.testing.assert_allclose(world.model.light_diffuse, 0.9 * base, rtol=1e-6)


def test_startup_terms_are_of_the_world_and_are_saved() -> None:
    term = Term("camera_fov", Uniform(0.9, 1.1), mode="startup", operation="scale")
    a, b = (TaskWorld("lift", cameras=(), randomization=only(term), world_seed=seed) for seed in (0, 1))
    draws = []
    for world in (a, b):
        world.reset(0)
        first = dict(world.draws)
        world.reset(1)
        assert world.draws == first
        draws.append(first)
    assert draws[0] != draws[1]
    b.reset(0, draws[0])
    a.reset(0)
    np.testing.assert_array_equal(a.model.cam_fovy, b.model.cam_fovy)


def test_a_scope_that_names_nothing_and_foreign_draws_are_refused() -> None:
    term = Term("friction", Uniform(1.0, 2.0), scope=("object/blok_red",))
    with pytest.raises(Unknown, match="did you mean object/block_red"):
        TaskWorld("lift", cameras=(), randomization=only(term))
    world = TaskWorld("lift", cameras=(), randomization="dynamics")
    with pytest.raises(VolarError, match=r"missing .*friction"):
        world.reset(0, {"hue": 3.0})
    with pytest.raises(VolarError, match="no draws"):
        TaskWorld("lift", cameras=()).reset(0, {"hue": 3.0})


@pytest.mark.parametrize(
    ("field", "operation", "bounds", "says"),
    [
        ("camera_fov", "scale", (1.0, 3.0), "camera_fov of wrist would be 74 to 222 degrees"),
        ("camera_fov", "add", (-30.0, 0.0), "camera_fov of front would be 1 to 31"),
        ("light_intensity", "scale", (1.0, 4.0), "light_intensity of sun would be 0.6 to 2.4"),
        ("light_color", "add", (-0.7, 0.0), "light_color of sun would be -0.1 to 0.6"),
    ],
)
def test_a_look_that_leaves_its_range_is_refused(field: str, operation: Any, bounds: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        TaskWorld("lift", cameras=(), randomization=only(Term(field, Uniform(*bounds), operation=operation)))


@pytest.mark.parametrize("field", ["color", "ambient"])
def test_what_is_clipped_may_leave_its_range(field: str) -> None:
    world = TaskWorld("lift", cameras=(), randomization=only(Term(field, Uniform(5.0, 6.0), operation="add")))
    world.reset(0)
    model = world.model
    written = model.vis.headlight.ambient if field == "ambient" else model.geom_rgba[model.geom("table").id, :3]
    np.testing.assert_array_equal(written, 1.0)


def test_pictures_show_it() -> None:
    """Textures and shadows darken the table, hues keep the named colours."""
    plain = TaskWorld("lift", image_size=64)
    plain.reset(0)
    before = plain.body.images()["front"].astype(int)
    for field in ("texture", "shadow", "light_position", "camera_position"):
        world = TaskWorld("lift", image_size=64, randomization=only(typical(field)))
        world.reset(0)
        assert np.abs(world.body.images()["front"] - before).mean() > 1, field
        world.close()
    plain.close()
