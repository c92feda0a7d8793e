"""Conversion: a store equals the JSON it was made of, whatever the records; faults; damaged stores."""

import json
import re
import resource
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mg_llava.data.boxes._file import read_box_file
from mg_llava.data.boxes._reader import Problems
from mg_llava.data.boxes._table import BoxTable
from mg_llava.data.boxes._writer import BoxWriter
from mg_llava.data.boxes.convert import convert_boxes, verify_store, write_records
from mg_llava.data.boxes.store import open_box_store
from mg_llava.data.records.schema import BoxRecord, RecordError
from mg_llava.work.atomic import NoRoomError

GOOD = {"boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": ["a"]}
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SIDES = st.one_of(
    st.integers(-300, 3000), st.integers(-(2**31), 2**31), st.floats(-1e4, 1e4, width=32), FINITE
)  # fmt: skip


@st.composite
def box_records(draw):
    count = draw(st.integers(0, 4))
    x, y = (draw(st.lists(st.tuples(SIDES, SIDES).map(sorted), min_size=count, max_size=count)) for _ in "xy")
    record = {
        "id": draw(st.one_of(st.integers(-5, 30), st.text(max_size=4))),
        "boxes": [[left, top, right, bottom] for (left, right), (top, bottom) in zip(x, y, strict=True)],
        "scores": draw(st.lists(st.one_of(st.floats(0, 1, width=32), FINITE), min_size=count, max_size=count)),
        "labels": draw(st.lists(st.text(max_size=3), min_size=count, max_size=count)),
    }
    size = draw(st.one_of(st.none(), st.tuples(st.integers(1, 9999), st.integers(1, 9999))))
    return record if size is None else {**record, "width": size[0], "height": size[1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("convert")


@settings(max_examples=50)
@given(records=st.lists(box_records(), max_size=12), layout=st.sampled_from(["list", "dict", "lines"]))
def test_a_store_equals_its_json(folder, records, layout):
    # The last record of an id counts, in JSON objects as well.
    expected = {str(record["id"]): record for record in records}
    source, target = folder / ("b.jsonl" if layout == "lines" else "b.json"), folder / "b.safetensors"
    content = {key: {k: v for k, v in record.items() if k != "id"} for key, record in expected.items()}
    text = {"list": json.dumps(records), "dict": json.dumps(content), "lines": "\n".join(map(json.dumps, records))}
    source.write_text(text[layout])
    report = convert_boxes([source], target, bad="drop")
    assert report.written and report.records == len(expected) and verify_store(target) == []
    in_memory, mapped = open_box_store(source, bad="drop"), open_box_store(target)
    back = folder / "back.jsonl"
    write_records(BoxTable.open(target), back)
    again = {raw["id"]: raw for raw in map(json.loads, back.read_text().splitlines())}
    assert set(in_memory.keys()) == set(mapped.keys()) == set(again) == set(expected)
    for key, raw in expected.items():
        for record in (mapped.get(key), in_memory.get(key)):
            # Large integers become floats in either way.
            assert record.boxes.tolist() == [list(map(float, box)) for box in raw["boxes"]]
            assert record.scores.tolist() == raw["scores"] and list(record.labels) == raw["labels"]
        assert mapped.image_size(key) == ((raw["width"], raw["height"]) if "width" in raw else None)
        assert again[key] == {**raw, "id": key, "boxes": [list(map(float, box)) for box in raw["boxes"]]}


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([[0, 0, 640, 480]], np.int16),
        ([[0, 0, 70_000, 1]], np.int32),
        ([[0, 0, 0.5, 1]], np.float32),
        ([[0, 0, 2**24 + 1, 1], [0, 0, 0.5, 1]], np.float64),
        ([[0, 0, 0.1, 1]], np.float64),
    ],
)
def test_boxes_take_the_narrowest_type_that_is_exact(tmp_path, boxes, expected):
    # One record a block, so that a type must fit all blocks.
    (tmp_path / "b.json").write_text(json.dumps([{"id": i, "boxes": [box]} for i, box in enumerate(boxes)]))
    convert_boxes([tmp_path / "b.json"], tmp_path / "b.safetensors")
    assert BoxTable.open(tmp_path / "b.safetensors").arrays["boxes"].dtype == expected


def test_large_files_go_through_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("mg_llava.data.boxes._writer._BLOCK", 3)
    monkeypatch.setattr("mg_llava.data.boxes._table._BLOCK", 4)
    records = [{"id": i, "boxes": [[0, 0, i, 1]] * (i % 4), "labels": [f"l{i % 5}"] * (i % 4)} for i in range(15)]
    (tmp_path / "b.json").write_text(json.dumps(records[:10] + records))
    report = convert_boxes([tmp_path / "b.json"], tmp_path / "b.safetensors")
    assert report.written and report.repeated == 10 and report.records == 15
    store = open_box_store(tmp_path / "b.safetensors")
    assert list(store.keys()) == [str(number) for number in range(15)]
    for raw in records:
        found = store.get(raw["id"])
        assert found.boxes.tolist() == raw["boxes"] and list(found.labels) == raw["labels"]


def test_memory_does_not_grow_with_the_boxes(tmp_path, monkeypatch):
    """A fraction of what the arrays take, whether types are narrowed or not and ids come again or not."""
    monkeypatch.setattr("mg_llava.data.boxes._writer._BLOCK", 1 << 12)
    boxes = np.arange(1600.0).reshape(-1, 4)
    part = BoxRecord(boxes, np.linspace(0, 1, 400), ("a", "b") * 200)
    for step, rows, kind in ((0, 2000, np.int16), (0.1, 1900, np.float64)):
        writer, record = BoxWriter(tmp_path), replace(part, boxes=boxes + step)
        tracemalloc.start()
        for number in range(2000):
            writer.add(str(number % rows), record)
        arrays = writer.arrays(Problems())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2000 * boxes.nbytes / 8
        assert arrays["boxes"].shape == (rows * 400, 4) and arrays["boxes"].dtype == kind
        assert np.array_equal(arrays["boxes"][-400:], record.boxes)
        assert np.array_equal(arrays["scores"][:400], part.scores) and arrays["labels"].dtype == np.uint16
    assert list(tmp_path.iterdir()) == []


def test_faults_write_no_store_unless_dropped(tmp_path):
    other = {**GOOD, "labels": ["b"]}
    records = [{"id": 1, **GOOD}, {"id": 2, **GOOD, "scores": []}, {"id": "1", **other}, {"id": 1, **GOOD}]
    source, target = tmp_path / "b.json", tmp_path / "b.safetensors"
    source.write_text(json.dumps(records))
    report = convert_boxes([source], target)
    assert not report.written and not target.exists()
    plain = report.to_dict()
    assert plain["problems"] == {
        "with lists of unequal length": 1,
        "with an id that comes again with different boxes": 1,
    }
    assert "b.json: id '2'" in plain["messages"][0] and "id '1': found 3 times" in plain["messages"][1]
    report = convert_boxes([source], target, bad="drop")
    assert report.written and report.records == 1 and report.repeated == 1
    store = open_box_store(target)
    assert store.get(1).labels == ("a",) and store.metadata["dropped"] == 2


def test_several_sources_and_where_they_came_from(tmp_path):
    for name, records in (("a.json", {"1": GOOD}), ("b.json", {"2": GOOD})):
        (tmp_path / name).write_text(json.dumps(records))
    seen = []
    target = tmp_path / "new" / "all.safetensors"
    convert_boxes([tmp_path / "a.json", tmp_path / "b.json"], target, progress=seen.append)
    store = open_box_store(target)
    assert list(store.keys()) == ["1", "2"]
    assert sum(seen) == sum(source["bytes"] for source in store.metadata["sources"])
    assert [source["name"] for source in store.metadata["sources"]] == ["a.json", "b.json"]
    assert all(len(source["sha256"]) == 64 for source in store.metadata["sources"])


def test_unreadable_pictures_and_different_boxes_of_one_picture(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps({"a": GOOD, "b": {**GOOD, "labels": ["x"]}, "c": GOOD}))
    pictures = [("a", "a.png", "0" * 31 + "1"), ("b", "b.png", "0" * 31 + "1"), ("c", "c.png", "0" * 31 + "1")]
    report = convert_boxes([tmp_path / "b.json"], tmp_path / "s.safetensors", pictures=pictures)
    assert report.written and report.pictures == 1 and report.picture_conflicts == 1
    report = convert_boxes([tmp_path / "b.json"], tmp_path / "t.safetensors", pictures=[("a", "a.png", None)])
    assert not report.written and report.problems.counts == {"with a picture that cannot be read": 1}
    assert "id 'a': picture a.png" in report.problems.messages[0]


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path):
    target = tmp_path / "b.safetensors"
    (tmp_path / "good.json").write_text(json.dumps({"1": GOOD}))
    (tmp_path / "bad.json").write_text('[{"id": 1, "boxes": [')
    convert_boxes([tmp_path / "good.json"], target)
    before = target.read_bytes()
    with pytest.raises(RecordError, match=r"bad\.json is truncated"):
        convert_boxes([tmp_path / "bad.json"], target)
    assert target.read_bytes() == before and len(list(tmp_path.iterdir())) == 3
    for wrong, message in ((tmp_path / "x.json", "must not end in"), (tmp_path / "good.json", "must not end in")):
        with pytest.raises(ValueError, match=message):
            convert_boxes([tmp_path / "good.json"], wrong)


@pytest.fixture
def converted(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps([{"id": i, **GOOD} for i in range(50)]))
    convert_boxes([tmp_path / "b.json"], tmp_path / "b.safetensors")
    return tmp_path / "b.safetensors"


def without_checksum(data):
    """A store as programs wrote it that kept no checksum of the header."""
    length = int.from_bytes(data[:8], "little")
    text = re.sub(rb', "header": "[0-9a-f]{8}"', b"", data[8 : 8 + length])
    return data[:8] + text.ljust(length) + data[8 + length :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "is truncated or was changed"),
        (lambda data: data + b"x", "is truncated or was changed"),
        (lambda data: data[:100], "is truncated"),
        (lambda data: data[:3], "is truncated"),
        (lambda data: b"", "is truncated"),
        (lambda data: bytes(1000) + data[1000:], "was not written to its end"),
        (lambda data: b"not a store, but some text", "is no box store"),
        (lambda data: data[:8] + b"[" + data[9:], "header cannot be read"),
        (lambda data: data.replace(b"mg_llava.boxes", b"somebody.else!"), "no box store"),
        (lambda data: data.replace(b'"version": "1"', b'"version": "9"'), "version 9, this program knows 1"),
        (lambda data: data.replace(b'"scores": {', b'"scared": {'), "is damaged: its header does not fit"),
        (lambda data: data.replace(b"detector", b"detecter"), "is damaged: its header does not fit"),
        (lambda data: data.replace(b'"shape": [50, 4]', b'"shape": [4, 50]'), "is damaged: its header does not fit"),
        (lambda data: without_checksum(data).replace(b'"scores": {', b'"scared": {'), "is damaged: scared do"),
        (
            lambda data: without_checksum(data).replace(b'"shape": [50, 4]', b'"shape": [4, 50]'),
            r"boxes has shape \(4, 50\)",
        ),
    ],
)
def test_damaged_stores_are_refused(converted, damage, message):
    changed = damage(converted.read_bytes())
    assert changed != converted.read_bytes()
    converted.write_bytes(changed)
    with pytest.raises(RecordError, match=rf"b\.safetensors .*{message}"):
        open_box_store(converted)


def test_a_folder_or_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder"):
        open_box_store(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_box_store(tmp_path / "b.safetensors")


def test_every_array_has_a_checksum(converted):
    assert verify_store(converted) == []
    whole = converted.read_bytes()
    arrays, _ = read_box_file(converted)
    start = 8 + int.from_bytes(whole[:8], "little")
    filled = {name: array for name, array in arrays.items() if array.nbytes}
    places = {name: whole.index(array.tobytes(), start) + array.nbytes // 2 for name, array in filled.items()}
    assert {"boxes", "scores", "labels", "label_text", "key_text", "key_hashes", "box_ends"} <= places.keys()
    for place in places.values():
        data = bytearray(whole)
        data[place] ^= 1
        converted.write_bytes(data)
        for use in (open_box_store, verify_store, read_box_file):
            with pytest.raises(RecordError, match=r"is damaged: .* do not fit their checksums"):
                use(converted)
    converted.write_bytes(without_checksum(whole))
    assert len(open_box_store(converted)) == 50


@given(st.integers(0, 10**6), st.integers(0, 7))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_passes(converted, place, bit):
    whole = converted.read_bytes()
    data = bytearray(whole)
    data[place % len(data)] ^= 1 << bit
    try:
        converted.write_bytes(data)
        with pytest.raises(RecordError, match=r"b\.safetensors"):
            open_box_store(converted)
    finally:
        converted.write_bytes(whole)


@pytest.mark.parametrize("limit", [0, 500, 3000, 2_200_000])
def test_a_full_disk_is_an_error_and_keeps_the_old_store(converted, tmp_path, limit):
    (tmp_path / "more.json").write_text(json.dumps([{"id": i, **GOOD} for i in range(60_000)]))
    before = converted.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(NoRoomError, match="while writing"):
            convert_boxes([tmp_path / "more.json"], converted)
        if limit < 4000:
            with pytest.raises(NoRoomError, match=r"back\.json"):
                write_records(BoxTable.open(converted), tmp_path / "back.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert converted.read_bytes() == before and not (tmp_path / "back.json").exists()


def test_any_reader_of_safetensors_opens_a_store(converted):
    from safetensors import safe_open

    with safe_open(converted, "np") as file:
        assert file.metadata()["format"] == "mg_llava.boxes"
        assert file.get_tensor("boxes").tolist() == GOOD["boxes"] * 50
        assert set(file.keys()) == set(BoxTable.open(converted).arrays)


def test_back_to_the_layout_of_the_reference(converted, tmp_path):
    write_records(BoxTable.open(converted), tmp_path / "back.json")
    assert (tmp_path / "back.json").read_text().startswith('[{"id": "0", "boxes": [[1, 2, 3, 4]], "scores": [0.5]')
    assert json.loads((tmp_path / "back.json").read_text()) == [{"id": str(i), **GOOD} for i in range(50)]
    (tmp_path / "none.json").write_text("{}")
    convert_boxes([tmp_path / "none.json"], tmp_path / "none.safetensors")
    write_records(BoxTable.open(tmp_path / "none.safetensors"), tmp_path / "none_back.json")
    assert json.loads((tmp_path / "none_back.json").read_text()) == []
