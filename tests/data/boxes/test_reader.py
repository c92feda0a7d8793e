"""Streaming of JSON, and the faults of box records."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_llava.data.boxes._reader import Problems, read_box_records
from mg_llava.data.records import json_stream
from mg_llava.data.records.json_stream import stream_json
from mg_llava.data.records.schema import RecordError

GOOD = {"boxes": [[1, 2, 3, 4], [0, 0, 9.5, 9]], "scores": [0.5, 0.25], "labels": ["a", "b"]}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("stream") / "values.json"


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 7)


@given(
    values=st.lists(VALUES, max_size=6),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_streams_what_json_reads(path, values, indent, ascii_only, chunk):
    before, json_stream._CHUNK = json_stream._CHUNK, chunk
    try:
        text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
        path.write_bytes(text.encode("utf-8", "replace"))
        expected = json.loads(path.read_text(encoding="utf-8"))
        assert [entry.value for entry in stream_json(path)] == expected
        pairs = {f'k"{number}': value for number, value in enumerate(values)}
        path.write_bytes(json.dumps(pairs, indent=indent).encode())
        assert {entry.key: entry.value for entry in stream_json(path)} == pairs
        lines = path.with_suffix(".jsonl")
        lines.write_bytes(b"\n".join(json.dumps(value).encode() for value in values) + b"\n\n")
        assert [entry.value for entry in stream_json(lines)] == values
    finally:
        json_stream._CHUNK = before


@given(values=st.lists(VALUES, min_size=1, max_size=4), data=st.data())
def test_cut_files_are_refused(path, values, data):
    text = json.dumps(values)
    path.write_text(text[: data.draw(st.integers(0, len(text) - 1))])
    with pytest.raises(RecordError, match=r"values\.json is truncated or not JSON"):
        list(stream_json(path))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "", "empty file"),
        ("a.json", '"x"', "starts with '\"'"),
        ("a.json", '[{"id": 1},\n\n {"id": 2 "boxes": 3}, {"id": 3}]', "line 3, record 1: Expecting ',' delimiter"),
        ("a.json", '[{"id": 1} {"id": 2}]', "record 1: found '{', ',' or ']' is needed"),
        ("a.json", '[{"id": 1},]', "record 1: Expecting value"),
        ("a.json", '{"a" 1}', "':' is needed after key 'a'"),
        ("a.json", "{1: 2}", "an object's key is needed"),
        ("a.json", '{"id": 1}\n{"id": 2}', r"JSON Lines files must end in \.jsonl"),
        ("a.jsonl", '{"id": 1}\n{"id": 2', "line 2, record 1"),
        ("a.json", b'[{"id": "\xff"}]', "not UTF-8"),
        ("a.json", "[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_files_name_line_and_record(tmp_path, small_chunks, name, text, message):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecordError, match=rf"{name} is truncated or not JSON: .*{message}"):
        list(stream_json(file))


def test_a_fault_in_the_middle_is_found_without_reading_on(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('[{"id": 1 2}, ' + ", ".join(["0"] * 3_000_000) + "]")
    read = []
    with pytest.raises(RecordError, match="record 0"):
        list(stream_json(file, read.append))
    assert sum(map(len, read)) < 2 << 20


def test_missing_quote_is_found_before_memory_runs_out(tmp_path, monkeypatch, small_chunks):
    monkeypatch.setattr(json_stream, "_LONGEST", 1000)
    file = tmp_path / "a.json"
    file.write_text('[{"id": "' + "x" * 10_000)
    with pytest.raises(RecordError, match="a quote or bracket is missing"):
        list(stream_json(file))


def test_bytes_are_given_as_read_and_keys_may_come_twice(tmp_path, small_chunks):
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1, "a": 2}')
    chunks = []
    assert [(entry.key, entry.value) for entry in stream_json(file, chunks.append)] == [("a", 1), ("a", 2)]
    assert b"".join(chunks) == file.read_bytes() and len(chunks) > 1


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        ({**GOOD, "scores": [0.5]}, "with lists of unequal length", "2 boxes, 1 scores, 2 labels"),
        ({**GOOD, "labels": ["a", "b", "c"]}, "with lists of unequal length", "3 labels"),
        ({**GOOD, "boxes": [[1, 2, float("nan"), 4], [0, 0, 1, 1]]}, "with values that are not finite", "finite"),
        ({**GOOD, "scores": [0.5, float("inf")]}, "with values that are not finite", "finite"),
        ({**GOOD, "boxes": [[3, 2, 1, 4], [0, 0, 1, 1]]}, "with inverted boxes", r"box 0 is \[3.0, 2.0, 1.0, 4.0\]"),
        ({**GOOD, "boxes": [[1, 2, 3], [4, 5, 6]]}, "malformed", "four numbers"),
        ({**GOOD, "boxes": [[1, 2], [3, 4]]}, "malformed", "2 boxes"),
        ({**GOOD, "boxes": [["a", 2, 3, 4], [0, 0, 1, 1]]}, "malformed", "numbers"),
        ({**GOOD, "boxes": [[10**400, 2, 3, 4], [0, 0, 1, 1]]}, "malformed", "numbers"),
        ({**GOOD, "labels": "ab"}, "malformed", "labels is a str"),
        ({**GOOD, "scores": 2}, "malformed", "scores is a int"),
        ({"scores": []}, "malformed", "has boxes, scores and labels"),
        (7, "malformed", "has boxes, scores and labels"),
    ],
)
def test_faults_are_named_and_counted_by_kind(tmp_path, bad, kind, message):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"good": GOOD, "broken": bad, "also": GOOD}))
    problems = Problems()
    assert [found.key for found in read_box_records(file, problems)] == ["good", "also"]
    assert dict(problems.counts) == {kind: 1} and len(problems) == 1
    assert re.search(f"1 bad box records.*id 'broken'.*{message}", str(problems))


@pytest.mark.parametrize("item", [7, {"boxes": []}, {"id": None, "boxes": []}, {"id": True, "boxes": []}, [1]])
def test_records_of_a_list_need_an_id(tmp_path, item):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"id": 1, **GOOD}, item]))
    problems = Problems()
    assert len(list(read_box_records(file, problems))) == 1
    assert problems.counts == {"without an id": 1} and problems.messages[0].startswith("record 1: found")


def test_frames_of_a_video_are_pictures_of_their_own(tmp_path):
    file = tmp_path / "a.json"
    none = {"boxes": [], "scores": [], "labels": []}
    file.write_text(json.dumps([{"id": 5, "video": "a.mp4", "frames": [GOOD, none, 7, GOOD]}, {"id": 1, **GOOD}]))
    problems = Problems()
    found = list(read_box_records(file, problems))
    assert [(one.key, len(one.record.boxes)) for one in found] == [("5#0", 2), ("5#1", 0), ("5#3", 2), ("1", 2)]
    assert len(problems) == 1 and "id '5#2'" in str(problems)


def test_picture_sizes_are_kept(tmp_path):
    file = tmp_path / "a.json"
    sizes = [{"width": 640, "height": 480}, {"image_size": [3, 4]}, {}, {"width": 5}, {"image_size": ["a", 2]}]
    file.write_text(json.dumps([{"id": number, **GOOD, **size} for number, size in enumerate(sizes)]))
    found = [record.size for record in read_box_records(file, Problems())]
    assert found == [(640, 480), (3, 4), None, None, None]
