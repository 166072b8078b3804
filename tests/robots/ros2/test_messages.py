"""Images as drivers send them: every encoding, padding between rows, sizes that fit and that do not."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from volar.robots.ros2.messages import ImageMisfit, decode_compressed, decode_image, fit, set_stamp, stamp_ns

Image = NDArray[np.uint8]
CHANNELS = {"rgb8": [0, 1, 2], "bgr8": [2, 1, 0], "rgba8": [0, 1, 2, 0], "bgra8": [2, 1, 0, 0]}


def picture(height: int = 5, width: int = 7) -> Image:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def message(image: Image, encoding: str, padding: int = 0) -> SimpleNamespace:
    height, width, channels = image.shape
    rows = np.pad(image.reshape(height, width * channels), ((0, 0), (0, padding)), constant_values=77)
    step = width * channels + padding
    return SimpleNamespace(height=height, width=width, encoding=encoding, step=step, data=rows.tobytes())


@pytest.mark.parametrize("encoding", CHANNELS)
@given(padding=st.integers(0, 9), height=st.integers(1, 6), width=st.integers(1, 6))
def test_every_encoding_gives_the_same_picture(encoding: str, padding: int, height: int, width: int) -> None:
    seen = picture(height, width)
    assert np.array_equal(decode_image(message(seen[:, :, CHANNELS[encoding]], encoding, padding)), seen)


def test_the_order_of_bytes_means_nothing_where_a_channel_is_one() -> None:
    image = message(picture(), "bgr8", 1)
    assert np.array_equal(decode_image(SimpleNamespace(**vars(image), is_bigendian=1)), picture()[:, :, ::-1])


def test_grey_is_grey() -> None:
    grey = picture()[:, :, :1]
    assert np.array_equal(decode_image(message(grey, "mono8", 3)), grey.repeat(3, axis=2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoding": "16UC1"}, "16UC1.*known: rgb8"),
        ({"data": b"\0" * 10}, "cannot have 10 bytes"),
        ({"step": 3}, "step 3"),
        ({"width": 0, "step": 0}, "0x5"),
    ],
)
def test_a_broken_image_is_named(change: dict[str, object], said: str) -> None:
    broken = SimpleNamespace(**vars(message(picture(), "rgb8")) | change)
    with pytest.raises(ImageMisfit, match=said):
        decode_image(broken)


def test_compressed_images_keep_their_colours() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[:, :, 0] = 200
    for suffix, tolerance in ((".png", 0), (".jpg", 4)):
        _, code = cv2.imencode(suffix, red[:, :, ::-1])
        seen = decode_compressed(SimpleNamespace(data=code.tobytes(), format=suffix))
        assert np.abs(seen.astype(int) - red).max() <= tolerance
    with pytest.raises(ImageMisfit, match="neither JPEG nor PNG"):
        decode_compressed(SimpleNamespace(data=b"nothing", format="jpeg"))
    with pytest.raises(ImageMisfit, match="neither JPEG nor PNG"):
        decode_compressed(SimpleNamespace(data=b"", format="jpeg"))


def test_sizes() -> None:
    large = picture(96, 128)
    assert fit(large, 128, 96, "front") is large
    assert fit(large, 64, 48, "front").shape == (48, 64, 3)
    with pytest.raises(ImageMisfit, match=r"front gives 128x96, the policy wants the shape of 96x96: .*crop"):
        fit(large, 96, 96, "front")
    with pytest.raises(ImageMisfit, match="wants 256x192"):
        fit(large, 256, 192, "front")


@given(st.integers(0, 2**62))
def test_stamps_round_trip(time_ns: int) -> None:
    stamp = SimpleNamespace(sec=0, nanosec=0)
    set_stamp(stamp, time_ns)
    assert stamp_ns(stamp) == time_ns
    assert 0 <= stamp.nanosec < 10**9
