"""Between ROS 2 messages and arrays. Works on any object with a message's fields; nothing here needs rclpy."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import VolarError

Image = NDArray[np.uint8]

# Encoding -> channels, and OpenCV's name of the way to RGB: twenty times as fast as NumPy's, and other threads run.
_ENCODINGS: Final[dict[str, tuple[int, str]]] = {
    "rgb8": (3, ""),
    "bgr8": (3, "COLOR_BGR2RGB"),
    "rgba8": (4, "COLOR_RGBA2RGB"),
    "bgra8": (4, "COLOR_BGRA2RGB"),
    "mono8": (1, "COLOR_GRAY2RGB"),
}
ASPECT_TOLERANCE: Final = 0.01


class ImageMisfit(VolarError):
    """An image that cannot be what the policy wants."""


def stamp_ns(stamp: Any) -> int:
    """`builtin_interfaces/Time` -> nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def set_stamp(stamp: Any, time_ns: int) -> None:
    """Nanoseconds -> `builtin_interfaces/Time`, or `Duration`."""
    stamp.sec, stamp.nanosec = divmod(time_ns, 1_000_000_000)


def decode_image(message: Any) -> Image:
    """`sensor_msgs/Image` -> RGB (H, W, 3). Raises `ImageMisfit` naming an encoding or a size that is wrong."""
    if message.encoding not in _ENCODINGS:
        known = ", ".join(_ENCODINGS)
        raise ImageMisfit(f"image encoding {message.encoding!r} (known: {known}); have the driver publish rgb8")
    channels, conversion = _ENCODINGS[message.encoding]
    height, width, step = int(message.height), int(message.width), int(message.step)
    data = np.frombuffer(message.data, np.uint8)
    if step < width * channels or len(data) < height * step or not height * width:
        raise ImageMisfit(
            f"an image of {width}x{height} {message.encoding} with step {step} cannot have {len(data)} bytes"
        )
    rows = data[: height * step].reshape(height, step)[:, : width * channels]  # what lies between rows is padding
    pixels = rows.reshape(height, width, channels)
    return _converted(pixels, conversion) if conversion else np.ascontiguousarray(pixels)


def decode_compressed(message: Any) -> Image:
    """`sensor_msgs/CompressedImage`, JPEG or PNG -> RGB (H, W, 3). Raises `ImageMisfit`."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR) if len(message.data) else None
    if pixels is None:
        raise ImageMisfit(f"a compressed image of format {message.format!r} that is neither JPEG nor PNG")
    return _converted(np.asarray(pixels, np.uint8), "COLOR_BGR2RGB")  # OpenCV's order, whatever was encoded


def _converted(pixels: Image, conversion: str) -> Image:
    import cv2

    return np.asarray(cv2.cvtColor(pixels, getattr(cv2, conversion)), np.uint8)


def fit(image: Image, width: int, height: int, camera: str) -> Image:
    """The image in the size the policy was trained with, made smaller where it is larger.

    Raises `ImageMisfit` where that would crop, stretch or invent pixels.
    """
    import cv2

    found_height, found_width = image.shape[:2]
    if (found_width, found_height) == (width, height):
        return image
    if found_width < width or found_height < height:
        raise ImageMisfit(f"camera {camera} gives {found_width}x{found_height}, the policy wants {width}x{height}")
    if abs(found_width * height / (found_height * width) - 1.0) > ASPECT_TOLERANCE:
        raise ImageMisfit(
            f"camera {camera} gives {found_width}x{found_height}, the policy wants the shape of {width}x{height}: "
            "crop it as the training images were (image_proc's CropDecimateNode)"
        )
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
