"""Augmented samples depend on seed and place, their labels move with the pixels, and 0 changes nothing."""

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volar.datasets.action_chunks import Batch
from volar.datasets.augmentation import Augmentation, uniform

ALL = Augmentation(crop=0.6, brightness=0.3, contrast=0.3, saturation=0.4, hue=0.2)


def batch(count: int, size: tuple[int, int] = (40, 60)) -> Batch:
    rng = np.random.default_rng(count)
    return Batch(
        images={name: rng.integers(0, 256, (count, *size, 3), np.uint8) for name in ("front", "wrist")},
        state=np.zeros((count, 2), np.float32),
        actions=np.zeros((count, 3, 2), np.float32),
        action_mask=np.ones((count, 3), bool),
        points=np.full((count, 3, 5), np.nan, np.float32),
        instruction_id=np.zeros(count, np.int32),
        instructions=("go",) * count,
        source=np.zeros(count, np.int64),
    )


@given(st.integers(0, 2**40), st.integers(1, 6), st.integers(0, 5))
def test_a_sample_does_not_depend_on_its_batch(start: int, count: int, seed: int) -> None:
    whole, places = batch(6), start + np.arange(6)
    changed = ALL.apply(whole, places, seed)
    part = Batch(**{
        name: {k: v[:count] for k, v in value.items()} if isinstance(value, dict) else value[:count]
        for name, value in vars(whole).items()
        if value is not None
    })  # fmt: skip
    again = ALL.apply(part, places[:count], seed)
    for camera in whole.images:
        np.testing.assert_array_equal(again.images[camera], changed.images[camera][:count])
    assert not np.array_equal(changed.images["front"], ALL.apply(whole, places, seed + 1).images["front"])
    assert not np.array_equal(changed.images["front"], ALL.apply(whole, places + 6, seed).images["front"])


def test_nothing_asked_nothing_changed() -> None:
    whole = batch(3)
    assert Augmentation().apply(whole, np.arange(3), 0) is whole
    before = whole.images["front"].copy()
    ALL.apply(whole, np.arange(3), 0)
    np.testing.assert_array_equal(whole.images["front"], before)  # a copy was changed


def test_points_stay_on_what_they_name() -> None:
    count = 200
    whole = batch(count)
    rng = np.random.default_rng(0)
    images = np.zeros((count, 40, 60, 3), np.uint8)
    u, v = rng.uniform(0.35, 0.65, count), rng.uniform(0.35, 0.65, count)
    for k in range(count):  # a white square, and its centre as the label
        x, y = int(u[k] * 60), int(v[k] * 40)
        images[k, y - 2 : y + 3, x - 2 : x + 3] = 255
        whole.points[k, 0] = (0.1, 0.2, 0.3, (x + 0.5) / 60, (y + 0.5) / 40)
    whole.images["front"][...] = images  # type: ignore[index]
    moved = Augmentation(crop=0.6).apply(whole, np.arange(count), 7)
    inside = ((moved.points[:, 0, 3:] > 0.1) & (moved.points[:, 0, 3:] < 0.9)).all(axis=1)
    assert inside.sum() > count / 2
    for k in np.flatnonzero(inside):  # of the others a part was cut off
        ys, xs = np.nonzero(moved.images["front"][k, :, :, 0] > 127)
        seen = ((xs.mean() + 0.5) / 60, (ys.mean() + 0.5) / 40)
        np.testing.assert_allclose(moved.points[k, 0, 3:], seen, atol=0.03)
    np.testing.assert_array_equal(moved.points[:, 0, :3], whole.points[:, 0, :3])
    assert np.isnan(moved.points[:, 1]).all()
    assert np.abs(moved.points[:, 0, 3:] - whole.points[:, 0, 3:]).max() > 0.1


def test_colours_mean_what_they_say() -> None:
    grey, red = np.full((300, 8, 8, 3), 100, np.uint8), np.tile(np.array([140, 90, 90], np.uint8), (300, 8, 8, 1))

    def changed(images: np.ndarray, **amounts: float) -> np.ndarray:
        whole = batch(300, (8, 8))
        whole.images["front"] = images  # type: ignore[index]
        return Augmentation(**amounts).apply(whole, np.arange(300), 1).images["front"][:, 0, 0].astype(float)

    brighter = changed(grey, brightness=0.3)
    assert 70 <= brighter.min() < 75
    assert 125 < brighter.max() <= 130
    for amounts in ({"hue": 0.5}, {"saturation": 1.0}, {"contrast": 1.0}):  # grey, and one tone, stay what they are
        np.testing.assert_allclose(changed(grey, **amounts), 100, atol=1)
    luma = changed(red, hue=0.1, saturation=0.5) @ (0.299, 0.587, 0.114)
    np.testing.assert_allclose(luma, np.dot((140, 90, 90), (0.299, 0.587, 0.114)), atol=1.5)
    hues = np.array([colorsys.rgb_to_hsv(*(pixel / 255))[0] for pixel in changed(red, hue=0.1)])
    turned = (hues + 0.5) % 1 - 0.5
    assert turned.min() < -0.06
    assert turned.max() > 0.06
    assert np.abs(turned).max() < 0.14


def test_draws_are_even_and_independent() -> None:
    places = np.arange(100_000)
    draws = np.stack([uniform(s, places, camera, k) for s in (0, 1) for camera in (0, 1) for k in (0, 1)])
    for draw in draws:
        assert np.abs(np.histogram(draw, 10, (0, 1))[0] / 1e5 - 0.1).max() < 0.004
    off = np.corrcoef(draws) - np.eye(8)
    assert np.abs(off).max() < 0.015
    first = uniform(1, places, 1)
    for seed in (0, 2, -1):  # nor is one seed's stream another's, a few places later
        for lag in range(-3, 4):
            assert np.abs(np.corrcoef(first, uniform(seed, places + lag, 1))[0, 1]) < 0.015


@pytest.mark.parametrize("amounts", [{"crop": 0.0}, {"crop": 1.2}, {"hue": 0.6}, {"brightness": -0.1}])
def test_amounts_out_of_range_are_refused(amounts: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(amounts))):
        Augmentation(**amounts)
