"""A user's own MJCF arm in the suite: `robot=fr3 asset=menagerie:PATH`."""

from pathlib import Path

import mujoco
import numpy as np
import pytest

from volar.robots.errors import UsageError, VolarError
from volar.robots.spec import load_robot, robot_name
from volar.sim.table import table_of
from volar.sim.world import StepDriver, TaskWorld


def written(path: Path, robot: str) -> Path:
    """The primitive arm as a file, in another colour."""
    spec = mujoco.MjSpec()
    load_robot(robot).add_to(spec)
    for geom in spec.geoms:
        geom.rgba = [0.9, 0.4, 0.1, 1.0]
    spec.compile()
    path.write_text(str(spec.to_xml()))
    return path


def test_the_expert_lifts_with_a_users_arm(tmp_path: Path) -> None:
    name = robot_name("fr3", f"menagerie:{written(tmp_path / 'arm.xml', 'fr3')}")
    driver = StepDriver(TaskWorld("lift", name, image_size=48))
    assert driver.world.spec.name == "fr3"
    assert table_of(driver.world.spec) == table_of(load_robot("fr3"))
    driver.reset(0)
    seen = driver.world.body.images()["front"]
    while not driver.world.success():
        assert driver.world.data.time < driver.world.task.max_steps / 10
        driver.step(driver.world.expert().astype(np.float32))
    own = TaskWorld("lift", "fr3", image_size=48)
    own.reset(0)
    assert np.abs(own.body.images()["front"].astype(int) - seen).max() > 50  # it is theirs that is drawn


def test_what_is_no_arm_of_that_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolarError, match="7 hinge joints expected, 6 found"):
        TaskWorld("lift", robot_name("fr3", f"menagerie:{written(tmp_path / 'arm.xml', 'ur5e')}"))
    with pytest.raises(UsageError, match="menagerie:PATH"):
        TaskWorld("lift", "fr3+arm.xml")


def test_the_table_height_is_relative_to_a_users_base(tmp_path: Path) -> None:
    """A model whose root stands on a foot keeps it."""
    spec = mujoco.MjSpec()
    load_robot("fr3").add_to(spec)
    base = spec.body("fr3_link0")
    base.pos, spec.body("fr3_link1").pos = [0, 0, 0.1], [0, 0, 0.233]
    spec.compile()
    path = tmp_path / "foot.xml"
    path.write_text(str(spec.to_xml()))
    plain, foot = (TaskWorld("lift", robot, (), randomization="dynamics") for robot in ("fr3", f"fr3+menagerie:{path}"))
    for seed in range(2):
        plain.reset(seed)
        foot.reset(seed)
        np.testing.assert_allclose(foot.state.tcp, plain.state.tcp, atol=1e-4)
        np.testing.assert_allclose(foot.points(), plain.points(), atol=1e-4)
