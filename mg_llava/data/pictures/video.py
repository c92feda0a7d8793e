"""Frames of video files, sampled uniformly: the video's way of being pictures."""

import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from PIL import Image

from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.places import StoredPath, is_there, state_of
from mg_llava.data.records.turns import VIDEO_SUFFIXES
from mg_llava.work.urls import TransferError

_STEPS_BACK = 8
"""Where seeking fails, decoding begins so many parts of the video earlier."""


@dataclass(frozen=True)
class FrameUse:
    """How a video becomes pictures.

    Args:
        frames: Number of frames, sampled uniformly.
        pad_to_square: Pad frames, or crop their centers as the reference does; None for what pictures get.
        max_boxes: Limit of boxes of a frame; None for that of pictures.

    Raises:
        ValueError: A number is below one.
    """

    frames: int = 8
    pad_to_square: bool | None = None
    max_boxes: int | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "max_boxes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} of videos is {getattr(self, name)}, must be at least 1")


def is_video(path: str | os.PathLike) -> bool:
    """Whether a path names a video, by its ending."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def sample_positions(count: int, frames: int) -> np.ndarray:
    """Which of ``count`` frames to take: (frames,) int64 from the first to the last, evenly, rounded down.

    Positions repeat where there are fewer frames than asked for.

    Raises:
        ValueError: There is no frame, or none is asked for.
    """
    if count < 1 or frames < 1:
        raise ValueError(f"{frames} of {count} frames: both must be at least 1")
    return np.linspace(0, count - 1, frames).astype(np.int64)


def read_frames(path: str | os.PathLike, frames: int, owner: str = "") -> list[Image.Image]:
    """Decode uniformly sampled frames of a video file.

    Args:
        path: The file, in any format that FFmpeg knows.
        frames: Number of frames.
        owner: Whose video it is, for messages.

    Returns:
        RGB pictures in the order of time.

    Raises:
        ImportError: PyAV is not installed.
        PictureError: The file is missing, empty, no video or damaged; the message names file and owner.
    """
    av = _import_av()
    name = f"video {path}" + (f" of {owner}" if owner else "")
    if not is_there(path):
        raise PictureError(f"{name} does not exist; check the folder and the record", fault="missing")
    if state_of(path)[0] == 0:
        raise PictureError(f"{name} is empty; replace the file or remove the record", fault="empty")
    try:
        with av.open(io.BytesIO(path.read()) if isinstance(path, StoredPath) else str(path)) as container:
            return _sample(container, frames)
    except TransferError as error:  # the video may be there, so that leaving it out would change the data
        raise TransferError(f"{name}: {error}") from error
    except Exception as error:  # FFmpeg's errors are of many classes, and decoders add their own
        raise PictureError(
            f"{name} cannot be read ({type(error).__name__}: {error}); replace the file or remove the record"
        ) from error


def _sample(container: Any, frames: int) -> list[Image.Image]:
    if not container.streams.video:
        raise ValueError("it has no pictures, only sound or data")
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:  # PyAV would end the process
        raise ValueError("nothing here decodes its pictures; write it again with another codec, such as H.264")
    stream.thread_type = "AUTO"
    packets = ((packet.pts, packet.dts) for packet in container.demux(stream) if packet.size)
    shown = [(time, time if decoded is None else decoded) for time, decoded in packets if time is not None]
    if not shown:
        raise ValueError("there are no frames with a time")
    times, first = sorted(time for time, _ in shown), min(decoded for _, decoded in shown)
    wanted = [times[position] for position in sample_positions(len(times), frames).tolist()]
    found: dict[int, Image.Image] = {}
    for time in dict.fromkeys(wanted):
        before = max(first, time - (times[-1] - first) // _STEPS_BACK)
        found[time] = _upright(_frame_at(container, stream, time, (time, before, first)))
    return [found[time] for time in wanted]


def _frame_at(container: Any, stream: Any, time: int, starts: Sequence[int]) -> Any:
    """The first frame that is not before ``time``, or the last one.

    Formats without an index, such as MPEG-TS, may seek beyond ``time``: then the next one of ``starts`` is tried.
    """
    last = None
    for start in starts:
        container.seek(start, stream=stream, backward=True)
        for frame in container.decode(stream):
            is_beyond = last is None and frame.pts is not None and frame.pts > time
            if is_beyond and start != starts[-1]:
                break
            last = frame
            if frame.pts is not None and frame.pts >= time:
                return frame
        if last is not None:
            break
    if last is None:
        raise ValueError("a frame cannot be decoded")
    print_log(f"{container.name}: no frame at {time}, the last one is taken", logger="current", level=logging.WARNING)
    return last


def _upright(frame: Any) -> Image.Image:
    """A frame as players show it: turned as the file says; its boxes are in this frame."""
    return frame.to_image().rotate(frame.rotation, expand=True) if frame.rotation else frame.to_image()


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("reading videos needs PyAV: pip install 'mg_llava[video]'") from error
    return av
