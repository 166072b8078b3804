"""Where images come late, points are labelled where these show them, or not at all."""

import numpy as np

from volar.sim.distributions import Choice
from volar.sim.randomization import Randomization, Term
from volar.sim.world import TaskWorld


def disturbed(field: str, value: float, image_size: int = 16) -> TaskWorld:
    terms = (Term(field, Choice((value,))),)
    world = TaskWorld("lift", image_size=image_size, randomization=Randomization("test", terms))
    world.reset(0)
    return world


def test_a_hand_that_is_seen_late_has_no_label() -> None:
    for field, late in (("observation_delay", True), ("frame_drop", True), ("joint_offset", False)):
        world = disturbed(field, 0.02)
        assert np.isfinite(world.points()[0]).all()
        assert np.isnan(world.points()[2]).all() == late, field
        world.close()


def test_labels_are_of_what_a_late_image_shows() -> None:
    world = disturbed("observation_delay", 0.05)
    world.data.joint(f"block_{world.goal.color}").qvel[2] = 1.0  # it flies for 0.2 s
    places, labels = [], []
    for _ in range(40):
        world.advance()
        places.append(world.view().label(world.task.target(world.state, world.goal)[None])[0])
        labels.append(world.points()[0])
    assert np.linalg.norm(np.diff(places, axis=0)[:, :3], axis=1).max() > 0.009  # in a period
    np.testing.assert_allclose(np.array(labels)[10:], np.array(places)[5:-5], atol=0.004)
    world.close()


def test_what_moved_since_an_image_that_is_repeated_has_no_label() -> None:
    world = disturbed("frame_drop", 0.5, 96)
    world.data.joint(f"block_{world.goal.color}").qvel[2] = 1.0  # it flies for 0.2 s
    last, hidden = world.body.images()["front"], 0
    for _ in range(8):  # while it rises
        world.advance()
        image = world.body.images()["front"]
        repeated = np.array_equal(image, last)
        assert np.isnan(world.points()[0]).all() == repeated
        last, hidden = image, hidden + repeated
    assert 0 < hidden < 8
    for _ in range(60):
        world.advance()
        world.body.images()
    for _ in range(10):  # at rest, an old image is as good as a new one
        world.advance()
        assert np.isfinite(world.points()[0]).all()
    world.close()
