"""Box files: layouts, keys, faults."""

import json

import numpy as np
import pytest

from mg_llava.data.box_store import BoxStore, picture_keys
from mg_llava.data.schema import RecordError, make_box_record

GOOD = {"boxes": [[1, 2, 3, 4], [0, 0, 9.5, 9]], "scores": [0.5, 0.25], "labels": ["a", "b"]}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("layout", ["list", "dict", "jsonl"])
def test_layouts_and_keys(tmp_path, layout):
    records = [{"id": 17, **GOOD}, {"id": "x", "boxes": [], "scores": [], "labels": []}]
    path = tmp_path / ("b.jsonl" if layout == "jsonl" else "b.json")
    if layout == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        write(path, records if layout == "list" else {str(record["id"]): record for record in records})
    store = BoxStore.from_json(path)
    for key in (17, "17"):
        assert key in store
        record = store.get(key)
        assert record.boxes.tolist() == GOOD["boxes"] and record.scores.tolist() == GOOD["scores"]
        assert record.labels == ("a", "b")
    assert len(store) == 2 and len(store.get("x")) == 0


def test_own_boxes_need_neither_scores_nor_labels(tmp_path):
    record = BoxStore.from_json(write(tmp_path / "b.json", {"p": {"boxes": [[0, 0, 1, 1]]}})).get("p")
    assert record.scores.tolist() == [1] and record.labels == ("",)


def test_records_cannot_be_changed(tmp_path):
    record = BoxStore.from_json(write(tmp_path / "b.json", {"p": GOOD})).get("p")
    with pytest.raises(ValueError):
        record.boxes[0, 0] = 7


def test_missing_boxes(tmp_path):
    path = write(tmp_path / "b.json", {"p": GOOD})
    store = BoxStore.from_json(path)
    with pytest.raises(RecordError, match=r"b\.json has no boxes for id 'q'; .*missing_box='empty'"):
        store.get("q")
    with pytest.raises(RecordError, match=r"no boxes for 2 pictures, such as id 'q', 'r'"):
        store.check(["p", "q", "r"])
    store = BoxStore.from_json(path, missing="empty")
    assert len(store.get("q")) == 0 and store.check(["p", "q"]) == 1
    with pytest.raises(ValueError, match="allowed: 'error', 'empty'"):
        BoxStore.from_json(path, missing="ignore")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({**GOOD, "scores": [0.5]}, "2 boxes, 1 scores, 2 labels"),
        ({**GOOD, "labels": ["a", "b", "c"]}, "3 labels"),
        ({**GOOD, "boxes": [[1, 2, float("nan"), 4], [0, 0, 1, 1]]}, "finite"),
        ({**GOOD, "scores": [0.5, float("inf")]}, "finite"),
        ({**GOOD, "boxes": [[3, 2, 1, 4], [0, 0, 1, 1]]}, r"box 0 is \[3.0, 2.0, 1.0, 4.0\]; boxes are \[x1"),
        ({**GOOD, "boxes": [[1, 2, 3], [4, 5, 6]]}, "four numbers"),
        ({**GOOD, "boxes": [[1, 2], [3, 4]]}, "2 boxes"),
        ({**GOOD, "boxes": [["a", 2, 3, 4], [0, 0, 1, 1]]}, "numbers"),
        ({"scores": []}, "has boxes, scores and labels"),
        (7, "has boxes, scores and labels"),
    ],
)
def test_bad_records_are_named_or_left_out(tmp_path, bad, message):
    path = write(tmp_path / "b.json", {"good": GOOD, "broken": bad})
    with pytest.raises(RecordError, match=rf"b\.json: 1 bad box records: id 'broken'.*{message}"):
        BoxStore.from_json(path)
    store = BoxStore.from_json(path, bad_record="drop")
    assert "good" in store and "broken" not in store


def test_duplicate_ids(tmp_path):
    path = write(tmp_path / "b.json", [{"id": 1, **GOOD}, {"id": "1", **GOOD}])
    assert len(BoxStore.from_json(path)) == 1
    path = write(tmp_path / "b.json", [{"id": 1, **GOOD}, {"id": "1", **GOOD, "scores": [0.5, 0.9]}])
    with pytest.raises(RecordError, match="id '1': found twice, with different boxes"):
        BoxStore.from_json(path)
    assert BoxStore.from_json(path, bad_record="drop").get(1).scores.tolist() == [0.5, 0.9]


@pytest.mark.parametrize("text", ['[{"id": 1, "boxes": [[1, 2', '"x"', "[7]", ""])
def test_broken_files_are_named(tmp_path, text):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(RecordError, match=r"b\.json"):
        BoxStore.from_json(tmp_path / "b.json")
    with pytest.raises(FileNotFoundError, match=r"no\.json does not exist"):
        BoxStore.from_json(tmp_path / "no.json")


def test_inputs_are_copied_and_keys_of_several_pictures():
    boxes = np.array([[1.0, 2, 3, 4]])
    record = make_box_record(boxes)
    boxes[:] = 0
    assert record.boxes.tolist() == [[1, 2, 3, 4]]
    assert picture_keys("a", 1) == ["a"] and picture_keys("a", 2) == ["a#0", "a#1"] and picture_keys("a", 0) == []
