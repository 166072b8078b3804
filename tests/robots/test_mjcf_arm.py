"""A user's MJCF in place of the primitives. The models are the primitive ones under other names, written as files."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.kinematics import Arm
from volar.robots.mjcf_arm import with_asset, with_mjcf
from volar.robots.spec import RobotSpec, load_robot
from volar.sim import scene

Edit = Callable[[Any], None]
CLUTTER = """<light name="sun"/><geom name="table" type="plane" size="1 1 1"/><camera name="front"/>"""


def written(folder: Path, name: str, edit: Edit = lambda model: None, rename: bool = True) -> Path:
    """The primitive robot as a file of its own, edited, its names changed, in a scene with a home of its own."""
    model = mujoco.MjSpec()
    load_robot(name).add_to(model)
    edit(model)
    model.compile()
    text = str(model.to_xml())
    if rename:
        text = text.replace(f"{name}_", "my_").replace('"shoulder_', '"my_shoulder_').replace('"tcp"', '"tip"')
    text = text.replace("<worldbody>", f"<worldbody>{CLUTTER}")
    file = folder / f"{name}.xml"
    file.write_text(text)
    return file


def standalone(robot: RobotSpec) -> tuple[Any, Any]:
    """Model and data at home."""
    spec = mujoco.MjSpec()
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    robot.add_to(spec)
    model = spec.compile()
    data = mujoco.MjData(model)
    for joint, value in zip(robot.joint_names, robot.home, strict=True):
        data.joint(joint).qpos[0] = data.actuator(joint).ctrl[0] = value
    mujoco.mj_forward(model, data)
    return model, data


def without_hand(model: Any) -> None:
    hand = next(body for body in model.bodies if body.name.endswith("_hand"))
    for element in (*model.actuators, *model.tendons, *model.equalities):
        model.delete(element)
    model.delete(hand)
    model.site("flange").name = "attachment_site"


def assert_same_robot(robot: RobotSpec, asset: RobotSpec) -> None:
    """Names, ranges, poses, masses and what may touch what."""
    (ours, our_data), (theirs, their_data) = standalone(robot), standalone(asset)
    for joint in (*robot.joint_names, *robot.gripper_joint_names):
        np.testing.assert_allclose(ours.joint(joint).range, theirs.joint(joint).range, atol=1e-6)
    assert [theirs.actuator(i).name for i in range(theirs.nu)] == [*robot.joint_names, "gripper"]
    for kind in ("gainprm", "biasprm", "forcerange"):
        np.testing.assert_allclose(getattr(ours, f"actuator_{kind}"), getattr(theirs, f"actuator_{kind}"))
    seen = [(data.site("tcp"), data.site("flange"), data.camera("wrist")) for data in (our_data, their_data)]
    for wanted, found in zip(*seen, strict=True):
        np.testing.assert_allclose(found.xpos, wanted.xpos, atol=1e-5)
        np.testing.assert_allclose(found.xmat, wanted.xmat, atol=1e-5)
    assert theirs.body_mass.sum() == pytest.approx(ours.body_mass.sum(), rel=1e-5)
    for field in ("geom_contype", "geom_conaffinity", "geom_condim", "geom_priority"):
        assert sorted(getattr(ours, field)) == sorted(getattr(theirs, field))
    assert (theirs.body_gravcomp[theirs.body_mass > 0][1:] == 1).all()


@pytest.mark.parametrize("name", ["fr3", "ur5e"])
def test_a_copy_under_other_names_moves_as_the_robot_does(name: str, tmp_path: Path) -> None:
    """Matched in the order of the chain; with its own sliding fingers."""
    robot = load_robot(name)
    asset = with_mjcf(robot, written(tmp_path, name))
    assert_same_robot(robot, asset)
    (ours, our_data), (theirs, their_data) = standalone(robot), standalone(asset)
    rng = np.random.default_rng(0)
    moved = np.zeros(ours.nq)
    for _ in range(20):
        ctrl = np.array([*(np.array(robot.home) + rng.normal(0, 0.1, robot.joints)), rng.uniform(0, 0.08)])
        for model, data in ((ours, our_data), (theirs, their_data)):
            data.ctrl[:] = ctrl
            mujoco.mj_step(model, data, 20)
        np.testing.assert_allclose(our_data.qpos, their_data.qpos, atol=1e-5)
        moved = np.maximum(moved, np.abs(our_data.qpos - np.array([*robot.home, 0.0, 0.0])))
    assert moved.min() > 0.01


@pytest.mark.parametrize("name", ["fr3", "so101", "ur5e"])
def test_an_arm_without_a_hand_gets_the_robots(name: str, tmp_path: Path) -> None:
    robot = load_robot(name)
    assert_same_robot(robot, with_asset(robot, f"menagerie:{written(tmp_path, name, without_hand)}"))


def test_joints_are_matched_by_name_before_order(tmp_path: Path) -> None:
    robot = load_robot("fr3")
    assert_same_robot(robot, with_mjcf(robot, written(tmp_path, "fr3", rename=False)))


def test_a_file_in_degrees(tmp_path: Path) -> None:
    robot, file = load_robot("so101"), written(tmp_path, "so101", without_hand)
    tree = ET.parse(file)
    tree.getroot().find("compiler").set("angle", "degree")  # type: ignore[union-attr]
    for joint in tree.iter("joint"):
        limits = np.rad2deg([float(value) for value in joint.get("range", "").split()])
        joint.set("range", f"{limits[0]:.6f} {limits[1]:.6f}")
    tree.write(file)
    assert_same_robot(robot, with_mjcf(robot, file))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_base_turned_by_quarters_is_turned_back(tmp_path: Path, quarters: int) -> None:
    robot = load_robot("fr3")

    def turn(model: Any) -> None:
        half = quarters * np.pi / 4
        next(iter(model.worldbody.bodies)).quat = [np.cos(half), 0, 0, np.sin(half)]

    assert_same_robot(robot, with_mjcf(robot, written(tmp_path, "fr3", turn)))


def test_it_fits_into_the_scene_and_into_kinematics(tmp_path: Path) -> None:
    """Though the user's file has a table, a light and a camera of the scene's names."""
    robot = load_robot("fr3")
    asset = with_mjcf(robot, written(tmp_path, "fr3"))
    model = scene.build(asset).compile()
    assert model.nlight == scene.build(robot).compile().nlight
    assert model.nu == robot.joints + 1
    assert model.nkey == 0
    home = np.array(robot.home)
    np.testing.assert_allclose(Arm(asset).forward(home).position, Arm(robot).forward(home).position, atol=1e-5)


def narrow_and_bend(model: Any) -> None:
    model.joint("fr3_joint2").range = [-1.7628, 1.7628]
    model.body("fr3_link5").pos = model.body("fr3_link5").pos + np.array([0.0, 0.005, 0.0])


def test_every_mismatch_is_listed_by_name(tmp_path: Path) -> None:
    file = written(tmp_path, "fr3", narrow_and_bend)
    with pytest.raises(VolarError) as error:
        with_mjcf(load_robot("fr3"), file)
    lines = str(error.value).splitlines()
    assert lines[0] == f"asset: {file} is not a fr3:"
    assert "fr3_joint2 (my_joint2 in the file)" in lines[1]
    assert "-1.7837 to 1.7837 expected, -1.7628 to 1.7628 found" in lines[1]
    # The links beyond the bent one, and none before it. Joint 5 is moved along its own axis, which changes nothing.
    assert [line.split(":")[0].split()[0] for line in lines[2:]] == ["axis", "axis", "flange"]
    assert "fr3_joint6" in lines[2]
    assert "5.0 mm" in lines[2]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: setattr(m.joint("fr3_joint3"), "axis", [0, 0, -1]), "axis of joint fr3_joint3 .* 180.0 deg found"),
        (lambda m: setattr(m.site("flange"), "pos", [0, 0, 0.1]), "flange .* 7.0 mm and 0.0 deg found"),
        (lambda m: setattr(m.joint("fr3_finger_joint2"), "axis", [0, 1, 0]), "fr3_finger_joint2 .* 180.0 deg found"),
        (lambda m: setattr(m.joint("fr3_finger_joint1"), "range", [0, 0.02]), "0.0000 to 0.0400 expected"),
        (lambda m: setattr(m.body("fr3_link0"), "quat", [1, 0, 0, 0.1]), "axis of joint fr3_joint2"),
        (lambda m: m.body("fr3_link7").add_joint(name="eighth", axis=[1, 0, 0]), "7 hinge joints expected, 8 found"),
        (lambda m: m.body("fr3_link4").add_joint(name="rail", type=mujoco.mjtJoint.mjJNT_SLIDE), "found: rail"),
    ],
)
def test_what_is_not_the_robot_is_refused(tmp_path: Path, edit: Edit, message: str) -> None:
    with pytest.raises(VolarError, match=message):
        with_mjcf(load_robot("fr3"), written(tmp_path, "fr3", edit))


def test_another_robot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolarError, match=r"is not a ur5e: 6 hinge joints expected, 7 found \(my_joint1, "):
        with_mjcf(load_robot("ur5e"), written(tmp_path, "fr3"))
    with pytest.raises(VolarError, match=r"gripper\); a gripper whose fingers turn cannot be used"):
        with_mjcf(load_robot("so101"), written(tmp_path, "so101", rename=False))


def test_files_that_are_no_arm(tmp_path: Path) -> None:
    robot = load_robot("fr3")
    with pytest.raises(VolarError, match="there is no file or folder"):
        with_mjcf(robot, tmp_path / "missing.xml")
    for text, message in (
        ("not xml", "is not an MJCF model"),
        ("<mujoco><worldbody/></mujoco>", "has no hinge joint"),
        ('<mujoco><asset><mesh name="m" file="none.stl"/></asset></mujoco>', "does not compile: .*none.stl"),
    ):
        (tmp_path / "bad.xml").write_text(text)
        with pytest.raises(VolarError, match=message):
            with_mjcf(robot, tmp_path / "bad.xml")


def test_a_folder_names_its_model(tmp_path: Path) -> None:
    robot = load_robot("fr3")
    with pytest.raises(VolarError, match="holds no MJCF file"):
        with_mjcf(robot, tmp_path)
    (tmp_path / "scene.xml").write_text("<mujoco/>")
    written(tmp_path, "fr3").rename(tmp_path / "only.xml")
    assert_same_robot(robot, with_mjcf(robot, tmp_path))
    (tmp_path / "other.xml").write_text("<mujoco/>")
    with pytest.raises(Unknown, match=r"choices: only\.xml, other\.xml"):
        with_mjcf(robot, tmp_path)
    (tmp_path / "only.xml").rename(tmp_path / "fr3.xml")
    assert_same_robot(robot, with_mjcf(robot, tmp_path))


@pytest.mark.parametrize("asset", ["menagerie:", "fr3.xml", "urdf:fr3.urdf"])
def test_an_asset_names_its_kind(asset: str) -> None:
    with pytest.raises(UsageError, match="menagerie:PATH"):
        with_asset(load_robot("fr3"), asset)
