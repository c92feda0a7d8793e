"""Frames of videos."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageStat

from mg_llava.data.pictures.files import PictureError
from mg_llava.data.pictures.video import FrameUse, is_video, read_frames, sample_positions
from tests.videos import STEP, cut_start, turn_clockwise, write_sound, write_video


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


@pytest.mark.parametrize("suffix", [".ts", ".mpg", ".avi", ".mkv", ".flv", ".wmv", ".mov"])
def test_formats_without_an_index_give_the_same_frames(suffix, tmp_path):
    codec = {".mpg": "mpeg2video", ".flv": "flv", ".wmv": "wmv2"}.get(suffix, "mpeg4")
    write_video(tmp_path / f"a{suffix}", codec=codec)
    np.testing.assert_allclose(
        brightness(read_frames(tmp_path / f"a{suffix}", 8)), 4.0 * sample_positions(50, 8), atol=1.9
    )


@pytest.mark.parametrize("frames", [1, 8, 50])
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("decoding.avi", "libx264"),  # times of decoding alone
        ("decoding.wmv", "mpeg2video"),
        ("untimed.mpg", "libx264"),  # one frame has a time
        ("shown.avi", "mpeg4"),
        ("shown.mp4", "libx264"),
        ("shown.mkv", "mpeg4"),
        ("shown.ts", "libx264"),
    ],
)
def test_frames_that_are_stored_out_of_order_are_taken_in_order(name, codec, frames, tmp_path):
    write_video(tmp_path / name, codec=codec, between=3)
    np.testing.assert_allclose(
        brightness(read_frames(tmp_path / name, frames)), 4.0 * sample_positions(50, frames), atol=1.9
    )


def test_frames_are_counted_where_packets_hold_none(tmp_path):
    av = pytest.importorskip("av", reason="reading videos needs PyAV")
    write_video(tmp_path / "whole.wmv", codec="mpeg2video", between=3)
    with av.open(str(tmp_path / "whole.wmv")) as whole, av.open(str(tmp_path / "a.wmv"), "w") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        packets = [packet for packet in whole.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            if number in (3, 4):  # two frames that no other one refers to
                empty = av.Packet(bytes(16))
                empty.pts, empty.dts, empty.time_base = packet.pts, packet.dts, packet.time_base
                packet = empty
            packet.stream = stream
            container.mux(packet)
    shown = [round(value / STEP) for value in brightness(read_frames(tmp_path / "a.wmv", 48))]
    lost = sorted(set(range(50)) - set(shown))
    assert len(lost) == 2 and shown == [number for number in range(50) if number not in lost]


@pytest.mark.parametrize(("codec", "between"), [("mpeg4", 0), ("libx264", 3)])
def test_frames_before_the_start_of_an_edit_list_are_not_there(codec, between, tmp_path):
    write_video(tmp_path / "whole.mp4", codec=codec, between=between)
    cut = cut_start(tmp_path / "whole.mp4", tmp_path / "cut.mp4", 20)
    shown = [round(value / STEP) for value in brightness(read_frames(cut, 5))]
    assert shown == [20, 27, 34, 41, 49]
    assert [round(value / STEP) for value in brightness(read_frames(cut, 30))] == list(range(20, 50))


def test_an_old_pyav_is_named(tmp_path, monkeypatch):
    av = pytest.importorskip("av", reason="reading videos needs PyAV")
    monkeypatch.setattr(av, "VideoFrame", type("VideoFrame", (), {}))
    with pytest.raises(ImportError, match=r"needs PyAV 14\.1 or newer.*mg_llava\[video\]"):
        read_frames(tmp_path / "a.mp4", 2)


def test_broken_videos(tmp_path):
    pytest.importorskip("av", reason="reading videos needs PyAV")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    for name, fault in (("none.mp4", "missing"), ("empty.mp4", "empty"), ("text.mp4", "undecodable")):
        with pytest.raises(PictureError, match=f"{name} of id 1 ") as caught:
            read_frames(tmp_path / name, 8, "id 1")
        assert caught.value.fault == fault


def test_a_codec_without_a_decoder_is_named(tmp_path):
    path = write_video(tmp_path / "a.avi")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(PictureError, match=r"a\.avi .*nothing here decodes its pictures"):
        read_frames(path, 2)


def test_frames_of_a_variable_rate_are_found_by_their_times(tmp_path):
    times = [0, 40, 50, 700, 710, 2000, 2010, 5000, 5040, 9000]
    write_video(tmp_path / "variable.mkv", frames=10, times=times)
    frames = read_frames(tmp_path / "variable.mkv", 4)
    np.testing.assert_allclose(brightness(frames), STEP * sample_positions(10, 4), atol=1.9)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_frames_than_asked(count, tmp_path):
    write_video(tmp_path / "short.mp4", frames=count)
    frames = read_frames(tmp_path / "short.mp4", 8)
    np.testing.assert_allclose(brightness(frames), STEP * sample_positions(count, 8), atol=1.9)


def test_turned_frames_stand_upright(tmp_path):
    write_video(tmp_path / "turned.mp4", frames=3)
    (plain,) = read_frames(tmp_path / "turned.mp4", 1)
    (turned,) = read_frames(turn_clockwise(tmp_path / "turned.mp4"), 1)
    assert plain.size == (64, 48) and turned.size == (48, 64)


def test_turned_frames_are_turned_clockwise(tmp_path):
    av = pytest.importorskip("av", reason="reading videos needs PyAV")
    picture = np.zeros((48, 64, 3), dtype=np.uint8)
    picture[:, 32:] = 255  # the right half
    with av.open(str(tmp_path / "half.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    (turned,) = read_frames(turn_clockwise(tmp_path / "half.mp4"), 1)
    top, bottom = (ImageStat.Stat(turned.crop((0, y, 48, y + 20)).convert("L")).mean[0] for y in (0, 44))
    assert top < 30 and bottom > 220


def test_sound_alone_is_named(tmp_path):
    with pytest.raises(PictureError, match=r"sound.mp4 of id 1 cannot be read .*no pictures, only sound"):
        read_frames(write_sound(tmp_path / "sound.mp4"), 8, "id 1")


def test_truncated_videos(tmp_path):
    write_video(tmp_path / "whole.mp4", frames=50)
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])  # the table of frames stands at the end
    with pytest.raises(PictureError, match=r"cut.mp4 of id 1 cannot be read"):
        read_frames(tmp_path / "cut.mp4", 8, "id 1")
    write_video(tmp_path / "whole.mkv", frames=50)
    content = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    frames = brightness(read_frames(tmp_path / "cut.mkv", 4))
    assert len(frames) == 4 and frames == sorted(frames) and frames[-1] < STEP * 40, "of what is there"


def test_a_long_video_takes_no_more_memory_than_its_frames(tmp_path):
    import tracemalloc

    write_video(tmp_path / "long.mp4", frames=10_000, size=(32, 32), gray=[n % 200 for n in range(10_000)])
    tracemalloc.start()
    frames = read_frames(tmp_path / "long.mp4", 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = [int(position) % 200 for position in sample_positions(10_000, 8)]
    np.testing.assert_allclose(brightness(frames), expected, atol=3)
    assert peak < 3_000_000  # times of 10,000 frames, not the 30 MB of their pixels


def test_settings_of_frames():
    with pytest.raises(ValueError, match="frames of videos is 0, must be at least 1"):
        FrameUse(frames=0)


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
    assert list(open_box_store(tmp_path / "reference.json").keys()) == [f"5#{i}" for i in range(4)]
