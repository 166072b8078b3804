"""Cameras of a LeRobotDataset v3 as H.264 in MP4, one file a camera and shard."""

from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from volar.datasets.lerobot_layout import DatasetError, decode_image
from volar.robots.contract import CameraSpec
from volar.robots.errors import VolarError

VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CODEC, PIXELS = "libx264", "yuv420p"
# A key frame every other frame, as LeRobot's own encoder: any frame is two decodings away. Quality 18 is the one
# that x264's authors call visually lossless. A resumed conversion must end with the same bytes: one thread, and no
# look-ahead (`zerolatency`), with which 5 of 3382 encodings of the same three frames differed; without it none did.
OPTIONS = {"g": "2", "crf": "18", "preset": "veryfast", "tune": "zerolatency"}


def video_feature(camera: CameraSpec, fps: int) -> dict[str, Any]:
    """`info.json`'s description of a camera. Raises `VolarError` for a size that 4:2:0 cannot hold."""
    if camera.width % 2 or camera.height % 2:
        raise VolarError(
            f"camera {camera.name} is {camera.width} x {camera.height}: video needs even sizes; use images=images, "
            "or another image_size"
        )
    about = {"height": camera.height, "width": camera.width, "codec": "h264", "pix_fmt": PIXELS, "fps": fps}
    info: dict[str, Any] = {f"video.{key}": value for key, value in about.items()}
    info |= {"video.channels": 3, "video.is_depth_map": False, "has_audio": False}
    shape = [camera.height, camera.width, 3]
    return {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"], "info": info}


class VideoEncoder:
    """PNG images -> MP4 in `file`, which can be read and sought; the same bytes for the same images."""

    def __init__(self, file: IO[bytes], camera: CameraSpec, fps: int) -> None:
        import av

        self._container: Any = av.open(file, "w", format="mp4")
        stream: Any = self._container.add_stream(CODEC, rate=fps, options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = camera.width, camera.height, PIXELS
        stream.thread_count = 1
        self._stream = stream

    def add(self, image: bytes) -> None:
        import av

        frame = av.VideoFrame.from_ndarray(decode_image(image), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


def decode_frames(path: Path, wanted: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """The frames with those numbers (ascending), uint8 (H, W, 3). Raises `DatasetError` when there are fewer."""
    import av

    found, numbers = [], set(wanted.tolist())
    container: Any = av.open(str(path))
    with container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in numbers:
                found.append(frame.to_ndarray(format="rgb24"))
    if len(found) != len(numbers):
        raise DatasetError(f"{path} has {len(found)} of {len(numbers)} wanted frames")
    return found
