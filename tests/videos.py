"""Videos made by code, whose frames are known by their brightness."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

STEP = 4
"""By how much each frame is brighter than the one before."""


def write_video(
    path: Path,
    frames: int = 50,
    size: tuple[int, int] = (64, 48),
    times: Sequence[int] | None = None,
    gray: Sequence[int] | None = None,
    codec: str = "mpeg4",
    between: int = 0,
) -> Path:
    """A video of gray frames.

    Args:
        path: The file.
        frames: Their number.
        size: Width and height as stored.
        times: For each frame its time in thousandths of a second; None for 25 frames a second.
        gray: Gray of each frame; by default each is brighter than the one before.
        codec: Name of FFmpeg's encoder.
        between: Most frames that are stored after a later one which they refer to.
    """
    av = pytest.importorskip("av", reason="reading videos needs PyAV")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = 12, 20_000_000
        stream.codec_context.max_b_frames = between
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number in range(frames):
            value = number * STEP if gray is None else gray[number]
            frame = av.VideoFrame.from_image(Image.new("RGB", size, (value,) * 3))
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut_start(path: Path, target: Path, frames: int) -> Path:
    """A copy of a video without its first frames: those of an MP4 file are still in it, before its edit list's start.

    Args:
        path: The video.
        target: The copy.
        frames: Number of frames that players shall not show.
    """
    av = pytest.importorskip("av", reason="reading videos needs PyAV")
    with av.open(str(path)) as whole, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        for packet in [packet for packet in whole.demux(video=0) if packet.size]:
            before = frames * packet.duration
            packet.pts, packet.dts = packet.pts - before, packet.dts - before
            packet.stream = stream
            container.mux(packet)
    return target


def turn_clockwise(path: Path) -> Path:
    """Write into an MP4 file that players shall turn its frames by 90 degrees clockwise, as phones do."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # in version 0 of the track's header
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def write_sound(path: Path) -> Path:
    """An MP4 file with sound alone."""
    av = pytest.importorskip("av", reason="reading videos needs PyAV")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
