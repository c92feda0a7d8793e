"""Content hashes of the pictures of a record file."""

import json
import os

import pytest
from PIL import Image

from mg_llava.data.boxes import hashing as box_pictures
from mg_llava.data.boxes.convert import convert_boxes
from mg_llava.data.boxes.hashing import hash_pictures
from mg_llava.data.boxes.store import open_box_store
from mg_llava.data.pictures.files import content_hash, open_picture
from mg_llava.data.records.schema import RecordError


@pytest.fixture
def files(tmp_path):
    """Pictures a to d; c has the content of a, d is no picture; and records that name them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, color in {"a.png": "red", "b.png": "blue", "c.png": "red"}.items():
        Image.new("RGB", (8, 6), color).save(folder / name)
    (folder / "d.png").write_bytes(b"not a picture")
    records = [
        {"id": 1, "image": "a.png"},
        {"id": "text", "conversations": []},
        {"id": "two", "image": ["b.png", "a.png"]},
        {"id": "3", "image": "c.png"},
        {"id": "gone", "image": "gone.png"},
        {"id": "d", "image": "d.png"},
    ]
    (tmp_path / "records.json").write_text(json.dumps(records))
    return tmp_path


def hashed(files, **kwargs):
    found = hash_pictures(files / "records.json", files / "images", files / "journal", workers=2, **kwargs)
    return {picture.key: picture.content for picture in found}


def test_every_picture_of_every_record(files, monkeypatch):
    monkeypatch.setattr(box_pictures, "_BATCH", 2)
    seen = []
    found = hashed(files, progress=lambda done, total: seen.append((done, total)))
    red, blue = (content_hash(open_picture(files / "images" / name)) for name in ("a.png", "b.png"))
    assert found == {"1": red, "two#0": blue, "two#1": red, "3": red, "gone": None, "d": None}
    # Five different files; a.png is read once.
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_the_work_goes_on_where_it_was_stopped(files, monkeypatch):
    monkeypatch.setattr(box_pictures, "_BATCH", 2)
    first = hashed(files)
    journal = files / "journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    # Stopped while it wrote the third and fourth of five hashes.
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    Image.new("RGB", (8, 6), "green").save(files / "images" / "a.png")
    (files / "images" / "gone.png").write_bytes((files / "images" / "b.png").read_bytes())
    again = hashed(files)
    assert again["1"] == again["3"] == first["1"] and again["gone"] == first["two#0"]
    # Another record file begins anew.
    os.utime(files / "records.json", ns=(1, 1))
    assert hashed(files)["1"] != first["1"]


def test_a_damaged_hash_is_made_again(files, monkeypatch):
    monkeypatch.setattr(box_pictures, "_BATCH", 2)
    first = hashed(files)
    journal = files / "journal"
    for place in range(0, journal.stat().st_size, 11):
        data = bytearray(journal.read_bytes())
        data[place % len(data)] ^= 1
        journal.write_bytes(data)
        assert hashed(files) == first


def test_faults_are_named(files):
    with pytest.raises(FileNotFoundError, match="no-folder does not exist"):
        next(hash_pictures(files / "records.json", files / "no-folder", files / "journal"))
    for wrong, message in (({"image": "a.png"}, "record 1: id is None"), ({"id": 1, "image": [3]}, "record 1: image")):
        (files / "records.json").write_text(json.dumps([{"id": 0}, wrong]))
        with pytest.raises(RecordError, match=rf"records\.json, {message}"):
            hashed(files)


def test_one_box_run_serves_records_of_other_names(files):
    boxes = {"boxes": [[0, 0, 5, 5]], "scores": [0.5], "labels": ["x"]}
    (files / "boxes.json").write_text(json.dumps({"1": boxes, "two#0": {**boxes, "labels": ["y"]}, "3": boxes}))
    pictures = hash_pictures(files / "records.json", files / "images", files / "journal", 1)
    report = convert_boxes([files / "boxes.json"], files / "boxes.safetensors", pictures=pictures, bad="drop")
    assert report.pictures == 2 and report.picture_conflicts == 0
    assert report.problems.counts == {"with a picture that cannot be read": 2}
    assert "gone.png" in report.problems.messages[0]
    store = open_box_store(files / "boxes.safetensors")
    Image.open(files / "images" / "b.png").save(files / "copy.bmp")
    assert store.get("mmbench_7", lambda: open_picture(files / "copy.bmp")).labels == ("y",)
