"""Frames of videos."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.video import is_video, read_frames, sample_positions


@given(st.integers(1, 5000), st.integers(1, 64))
def test_positions(count, frames):
    positions = sample_positions(count, frames)
    assert len(positions) == frames and positions[0] == 0 and (np.diff(positions) >= 0).all()
    assert positions[-1] == (count - 1 if frames > 1 else 0)
    assert positions.tolist() == np.linspace(0, count - 1, frames).astype(int).tolist()


def test_names():
    assert is_video("a/b.MP4") and not is_video("a.jpg")
    with pytest.raises(ValueError, match="at least 1"):
        sample_positions(0, 8)


def write_video(path, frames=50, size=(64, 48)):
    """A video whose frames get brighter from the first to the last."""
    av = pytest.importorskip("av", reason="reading videos needs PyAV")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = 12, 20_000_000
        for number in range(frames):
            image = Image.new("RGB", size, (number * 4,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


def brightness(frames):
    return [float(np.asarray(frame).mean()) for frame in frames]


def test_frames_are_those_of_the_positions(tmp_path):
    write_video(tmp_path / "a.mp4")
    frames = read_frames(tmp_path / "a.mp4", 8)
    assert [frame.size for frame in frames] == [(64, 48)] * 8
    np.testing.assert_allclose(brightness(frames), 4.0 * sample_positions(50, 8), atol=1.9)  # less than half a step
    write_video(tmp_path / "short.mp4", frames=3)
    np.testing.assert_allclose(
        brightness(read_frames(tmp_path / "short.mp4", 5)), [0, 0, 4, 4, 8], atol=1.9
    )  # less than half a step


def test_broken_videos(tmp_path):
    pytest.importorskip("av", reason="reading videos needs PyAV")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    for name, fault in (("none.mp4", "missing"), ("empty.mp4", "empty"), ("text.mp4", "undecodable")):
        with pytest.raises(PictureError, match=f"{name} of id 1 ") as caught:
            read_frames(tmp_path / name, 8, "id 1")
        assert caught.value.fault == fault


def test_boxes_of_videos(tmp_path):
    import json

    from mg_llava.data.boxes.store import open_box_store
    from mg_llava.detection.run import BoxJob, JobSettings, Results, merge, write_reference

    write_video(tmp_path / "a.mp4")
    (tmp_path / "broken.mp4").write_text("no video")
    (tmp_path / "records.json").write_text(json.dumps([{"id": 5, "video": "a.mp4"}, {"id": 6, "video": "broken.mp4"}]))
    detector = {"type": "ProposalDetector"}
    settings = JobSettings([str(tmp_path / "records.json")], str(tmp_path / "out"), {"detector": detector}, frames=4)
    BoxJob(settings).run()
    report = merge(settings)
    assert report["keys"] == 8 and report["records"] == 4 and report["failed"] == 4
    assert list(open_box_store(tmp_path / "out" / "boxes.safetensors").keys()) == [f"5#{i}" for i in range(4)]
    ledger = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert len(ledger) == 1 and json.loads(ledger[0])["id"] == "6"
    write_reference(Results(settings), tmp_path / "reference.json")
    (row,) = json.loads((tmp_path / "reference.json").read_text())
    assert row["id"] == "5" and row["video"] == "a.mp4" and len(row["frames"]) == 4
