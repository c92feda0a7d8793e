"""Frames of video files, sampled uniformly: the video's way of being pictures."""

import io
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from PIL import Image

from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.places import StoredPath
from mg_llava.data.records.turns import VIDEO_SUFFIXES
from mg_llava.work.urls import TransferError

_STEPS_BACK = 8
"""Where seeking fails, decoding begins so many parts of the video earlier."""


class _OtherTimesError(Exception):
    """Times of a video are not those at which its frames are shown."""


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
        ImportError: PyAV is not installed, or too old.
        PictureError: The file is missing, empty, no video or damaged; the message names file and owner.
    """
    av = _import_av()
    name = f"video {path}" + (f" of {owner}" if owner else "")
    try:
        content = path.read() if isinstance(path, StoredPath) else None  # whole: servers need not say its size
        if content is None and not os.path.isfile(path):
            raise FileNotFoundError(os.fspath(path))
        if os.path.getsize(path) if content is None else content:
            return _sample(lambda: av.open(str(path) if content is None else io.BytesIO(content)), frames)
    except TransferError as error:  # the video may be there, so that leaving it out would change the data
        raise TransferError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise PictureError(f"{name} does not exist; check the folder and the record", fault="missing") from error
    except Exception as error:  # FFmpeg's errors are of many classes, and decoders add their own
        raise PictureError(
            f"{name} cannot be read ({type(error).__name__}: {error}); replace the file or remove the record"
        ) from error
    raise PictureError(f"{name} is empty; replace the file or remove the record", fault="empty")


def _sample(open_container: Callable[[], Any], frames: int) -> list[Image.Image]:
    with open_container() as container:
        stream = _video_of(container)
        # those before the start that an MP4 file's edit list gives are decoded for later ones alone, and never shown
        shown = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
        packets = [(packet.pts, packet.dts) for packet in shown]
        if not packets:
            raise ValueError("there are no frames")
        if _are_shown_by(packets, stream.codec_context.has_b_frames):
            with suppress(_OtherTimesError):
                return _at_times(container, stream, packets, frames)
    return _in_order(open_container, len(packets), frames)


def _video_of(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("it has no pictures, only sound or data")
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:  # PyAV would end the process
        raise ValueError("nothing here decodes its pictures; write it again with another codec, such as H.264")
    # threads of FFmpeg that decode frames never end where decoding stops early and torchvision is imported
    stream.codec_context.thread_count = 1
    return stream


def _are_shown_by(packets: Sequence[tuple[int | None, int | None]], is_reordered: bool) -> bool:
    """Whether the times of packets may be those at which their frames are shown: each has one of its own.

    Formats such as AVI have times of decoding alone: there they rise, although the codec takes frames out of order.
    """
    times = [time for time, _ in packets if time is not None]
    rise = all(first < second for first, second in itertools.pairwise(times))
    return len(times) == len(packets) and (not is_reordered if rise else len(set(times)) == len(times))


def _at_times(
    container: Any, stream: Any, packets: Sequence[tuple[int, int | None]], frames: int
) -> list[Image.Image]:
    """Frames by their times, of which few are decoded.

    Raises:
        _OtherTimesError: Frames have other times than those at which they are shown.
    """
    times, first = sorted(time for time, _ in packets), min(time if dts is None else dts for time, dts in packets)
    wanted = [times[position] for position in sample_positions(len(times), frames).tolist()]
    found: dict[int, Image.Image] = {}
    for time in dict.fromkeys(wanted):
        before = max(first, time - (times[-1] - first) // _STEPS_BACK)
        found[time] = _upright(_frame_at(container, stream, time, (time, before, first)))
    return [found[time] for time in wanted]


def _in_order(open_container: Callable[[], Any], count: int, frames: int) -> list[Image.Image]:
    """Frames by their order: a decoder gives all of them, in the order in which they are shown.

    ``count`` is their number as far as it is known: it is that of packets, some of which may give no frame.
    """
    while True:
        wanted = sample_positions(count, frames).tolist()
        with open_container() as container:
            number, found = 0, dict[int, Image.Image]()
            for number, frame in enumerate(container.decode(_video_of(container)), 1):
                if number - 1 in wanted:
                    found[number - 1] = _upright(frame)
        if number in (0, count):
            break
        count = number
    if not number:
        raise ValueError("a frame cannot be decoded")
    return [found[position] for position in wanted]


def _frame_at(container: Any, stream: Any, time: int, starts: Sequence[int]) -> Any:
    """The first frame that is not before ``time``, or the last one.

    Formats without an index, such as MPEG-TS, may seek beyond ``time``: then the next one of ``starts`` is tried.

    Raises:
        _OtherTimesError: Times of frames that follow one another do not rise.
    """
    last = None
    for start in starts:
        container.seek(start, stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts is None or (last is not None and frame.pts <= last.pts):
                raise _OtherTimesError
            if last is None and frame.pts > time and start != starts[-1]:
                break
            last = frame
            if frame.pts >= time:
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
    if not hasattr(av.VideoFrame, "rotation"):
        raise ImportError(
            f"reading videos needs PyAV 14.1 or newer, which says how frames are turned; found {av.__version__}: pip "
            "install 'mg_llava[video]'"
        )
    return av
