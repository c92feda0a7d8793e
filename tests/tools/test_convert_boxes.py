"""The tool around box stores: reports, exit status, and the way back to JSON."""

import json

import pytest
from PIL import Image

from tests.run import TOOLS, run_python, run_tool

GOOD = {"boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": ["a"]}


def call(*arguments):
    return run_tool("convert_boxes", *arguments)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps([{"id": number, **GOOD, "width": 9, "height": 8} for number in range(5)]))
    return path


def test_there_and_back(source, tmp_path):
    store = tmp_path / "boxes.safetensors"
    settings = {"threshold": 0.2}
    status, out, _ = call(
        source, "--out", store, "--detector", "owlv2", "--settings", json.dumps(settings), "--image-size", 960, 640
    )
    assert status == 0 and "5 records, 5 boxes" in out
    report = json.loads((tmp_path / "boxes.safetensors.report.json").read_text())
    assert report["written"] and report["records"] == 5 and report["problems"] == {}
    status, out, _ = call(store, "--info")
    about = json.loads(out)
    assert status == 0 and about["detector"] == "owlv2" and about["settings"] == settings
    assert about["image_size"] == [960, 640]
    assert about["image_sizes"] == {"known": 5, "smallest": [9, 8], "largest": [9, 8]}
    assert call(store, "--verify")[:2] == (0, f"{store}: no fault found\n")
    assert call(store, "--to-json", tmp_path / "back.jsonl")[0] == 0
    back = [json.loads(line) for line in (tmp_path / "back.jsonl").read_text().splitlines()]
    assert back == [{**raw, "id": str(raw["id"])} for raw in json.loads(source.read_text())]


def test_faults_give_status_1_unless_dropped(tmp_path):
    source, store = tmp_path / "boxes.json", tmp_path / "boxes.safetensors"
    source.write_text(json.dumps({"good": GOOD, "broken": {**GOOD, "boxes": [[3, 2, 1, 4]]}}))
    status, out, _ = call(source, "--out", store, "--report", tmp_path / "report.json")
    assert status == 1 and not store.exists() and "no store written" in out
    assert "1 records with inverted boxes" in out and "id 'broken': box 0" in out
    assert json.loads((tmp_path / "report.json").read_text())["problems"] == {"with inverted boxes": 1}
    status, out, _ = call(source, "--out", store, "--drop-bad")
    assert status == 0 and store.exists() and "1 records with inverted boxes" in out


def test_damage_and_wrong_files_give_status_1(source, tmp_path):
    store = tmp_path / "boxes.safetensors"
    call(source, "--out", store)
    data = bytearray(store.read_bytes())
    data[-1] ^= 1
    store.write_bytes(data)
    status, _, err = call(store, "--verify")
    assert status == 1 and "do not fit their checksums" in err
    for arguments in ((source, "--info"), (tmp_path / "no.json", "--out", store), (source, "--out", source)):
        status, _, err = call(*arguments)
        assert status == 1 and "error: " in err


def test_pictures_are_hashed_for_lookup_by_content(source, tmp_path):
    Image.new("RGB", (9, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "records.json").write_text(json.dumps([{"id": 2, "image": "a.png"}]))
    store = tmp_path / "boxes.safetensors"
    status, out, _ = call(
        source, "--out", store, "--images", tmp_path, "--records", tmp_path / "records.json", "--workers", 1
    )
    assert status == 0 and "1 pictures can be found" in out
    assert not (tmp_path / "boxes.safetensors.pictures").exists()


def test_wrong_arguments_give_status_2(source, tmp_path):
    for arguments in ((source,), (source, "--out", "x", "--images", tmp_path), (source, source, "--info")):
        assert call(*arguments).status == 2
    for arguments in (("--settings", "[1]"), ("--image-size", 0, 9)):
        assert call(source, "--out", tmp_path / "x.safetensors", *arguments).status == 2
    assert not (tmp_path / "x.safetensors").exists()
    done = run_python(TOOLS / "convert_boxes.py", "--help")
    assert done.returncode == 0 and "Examples:" in done.stdout and "Exit status:" in done.stdout
