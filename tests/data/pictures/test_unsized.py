"""Files of a server that does not say how long they are."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mg_llava.data.pictures.files import PictureError, open_picture, picture_path
from mg_llava.data.pictures.places import place_of, state_of
from mg_llava.data.pictures.shard_writing import plan_picture_shards, write_picture_shards
from mg_llava.data.pictures.video import read_frames
from tests import toy
from tests.videos import write_video
from tests.work.test_tar_files import write_tar


class Unsized(http.server.SimpleHTTPRequestHandler):
    """Serves whole files alone."""

    def log_message(self, *_: object) -> None:
        pass

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Content-Length":
            super().send_header(keyword, value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, a video, and an empty one."""
    toy.write_data(tmp_path, records=4)
    write_video(tmp_path / "images" / "clip.mp4", frames=9)
    (tmp_path / "images" / "empty.mp4").touch()
    return tmp_path / "images"


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    handler = functools.partial(Unsized, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.mark.parametrize("place", ["server", "tar"])
def test_videos_are_read_and_empty_ones_are_named(place: str, folder: Path, url: str, tmp_path: Path) -> None:
    files = [(path.name, path.read_bytes()) for path in folder.glob("*.mp4")]
    given = url if place == "server" else write_tar(tmp_path / "clips.tar", files)
    assert state_of(place_of(given, "clip.mp4"))[0] == (0 if place == "server" else len(dict(files)["clip.mp4"]))
    frames, plain = (read_frames(picture_path(str(own), "clip.mp4"), 4) for own in (given, folder))
    assert [frame.tobytes() for frame in frames] == [frame.tobytes() for frame in plain]
    for name, fault in (("empty.mp4", "empty"), ("none.mp4", "missing")):
        with pytest.raises(PictureError, match=rf"{name} of record 7 ") as raised:
            read_frames(picture_path(given, name), 4, "record 7")
        assert raised.value.fault == fault


def test_pictures_are_read_and_written_into_shards(folder: Path, url: str, tmp_path: Path) -> None:
    assert open_picture(picture_path(url, "0_0.png")).size == open_picture(folder / "0_0.png").size
    written = []
    for place, out in ((url, tmp_path / "a"), (str(folder), tmp_path / "b")):
        plan = plan_picture_shards([tmp_path / "records.json"], place, out, 10**6)
        assert write_picture_shards(plan) == len(plan.parts)
        written.append({path.name: path.read_bytes() for path in out.glob("*.tar")})
    assert written[0] == written[1] != {}
    record = {"id": "v", "video": "empty.mp4", "conversations": []}
    (tmp_path / "records.json").write_text(json.dumps([record]))
    with pytest.raises(PictureError, match=r"empty\.mp4 of .* has 0 bytes; 1 to \d+ are allowed"):
        plan_picture_shards([tmp_path / "records.json"], url, tmp_path / "c", 10**6)
