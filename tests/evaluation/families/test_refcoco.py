"""RefCOCO: both forms of boxes, at and around the thresholds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from mg_llava.data.text.published_boxes import parse_llava_hr, parse_lmms_eval, parse_xtuner
from mg_llava.evaluation.families.refcoco import (
    Referred,
)
from mg_llava.evaluation.score import score_predictions
from mg_llava.evaluation.scoring.box_replies import overlap_single_precision


def write(path: Path, bbox: list[float], width: int = 100, height: int = 100, sents: str = "cup") -> Path:
    record = {
        "img_id": "COCO_train2014_000000000007_2",
        "sents": sents,
        "bbox": bbox,
        "height": height,
        "width": width,
    }
    path.write_text(json.dumps([record]))
    return path


def score(path: Path, rule: str, line: dict[str, Any], **options: Any) -> float:
    result = score_predictions("refcoco", [path], [{"id": "000000000007-cup", **line}], **options)
    assert (result["n"], result["n_missing"], result["n_unknown"]) == (1, 0, 0)
    return result["rules"][rule]["metrics"]["accuracy"]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("{<10><20><40><60>}</s>", 1.0),
        ("10 20 40 60", 1.0),
        ("{<-10><20><40><60>}", 1.0),  # signs are not read
        ("{<10><20><40>}", 0.0),
        ("{<10><20><40><60><1>}", 0.0),
        ("{<10.0><20><40><60>}", 0.0),  # five numbers
        ("", 0.0),
        ("{<60><60><40><20>}", 0.0),
        ("{<9><9><9><9>}", 0.0),
        ("<" + "9" * 5000 + "><1><2><3>", 0.0),
        ("<" + "9" * 400 + "><1><2><3>", 0.0),
    ],
)
def test_xtuners_replies(tmp_path: Path, reply: str, expected: float) -> None:
    assert score(write(tmp_path / "refcoco_val.json", [10, 20, 30, 40]), "xtuner", {"ans": reply}) == expected


def test_xtuner_truncates_percents_and_adds_one_to_each_side(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [10.9, 10.9, 1.0, 1.0])  # (10, 10, 11, 11): 2 x 2 on the grid
    result = score_predictions("refcoco", [path], [{"id": 0, "ans": "{<10><10><12><11>}"}])
    sample = result["rules"]["xtuner"]["per_sample"][0]
    assert sample["answer"] == (10, 10, 11, 11)
    assert sample["iou"] == pytest.approx(4 / 6)
    assert score(path, "xtuner", {"ans": "{<10><10><13><11>}"}) == 0.0  # exactly one half does not count


@pytest.mark.parametrize(
    ("reply", "llava_hr", "lmms_eval"),
    [
        ("[0.1, 0.2, 0.4, 0.6]", 1.0, 1.0),
        ("It is at [0.1,0.2,0.4,0.6].", 1.0, 1.0),
        ("[0.1 , 0.2 , 0.4 , 0.6]", 1.0, 0.0),  # lmms-eval wants no space before a comma
        ("[.1, .2, .4, .6]", 1.0, 0.0),
        ("[1] [0.1, 0.2, 0.4, 0.6]", 0.0, 1.0),  # LLaVA-HR reads the first bracket only
        ("[-0.0, 0.2, 0.4, 0.6]", 0.0, 1.0),
        ("[0.1, 0.2, 0.4]", 0.0, 0.0),
        ("(0.1, 0.2, 0.4, 0.6)", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_llavas_replies(tmp_path: Path, reply: str, llava_hr: float, lmms_eval: float) -> None:
    path = write(tmp_path / "refcoco_val.json", [10, 20, 30, 40])
    assert score(path, "llava_hr", {"pred_text": reply}) == llava_hr
    assert score(path, "lmms_eval", {"pred_text": reply}) == lmms_eval


def test_exactly_one_half_counts_for_lmms_eval_only(tmp_path: Path) -> None:
    path = write(tmp_path / "refcoco_val.json", [0, 0, 50, 50])
    line = {"pred_text": "[0.0, 0.0, 0.25, 0.5]"}
    assert (score(path, "llava_hr", line), score(path, "lmms_eval", line)) == (0.0, 1.0)


def test_fractions_of_the_padded_picture(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [0, 0, 200, 100], width=200, height=100)
    line = {"pred_text": "[0.0, 0.25, 1.0, 0.75]"}
    assert score(path, "llava_hr", line, box_format="padded") == 1.0
    assert score(path, "llava_hr", line) == 0.0
    with pytest.raises(ValueError, match="box_format is 'square'; allowed: original, padded"):
        score(path, "llava_hr", line, box_format="square")


def test_further_figures_of_lmms_eval(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"id": i, "image": "x.jpg", "text": "cup", "ans": [0.0, 0.0, 0.5, 0.5]} for i in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    replies = ["[0.0, 0.0, 0.5, 0.5]", "[0.0, 0.0, 0.25, 0.5]", "nothing"]
    result = score_predictions("refcoco", [path], [{"id": i, "pred_text": text} for i, text in enumerate(replies)])
    metrics = result["rules"]["lmms_eval"]["metrics"]
    assert metrics["IoU"] == pytest.approx(1.5 / 4)
    assert (metrics["ACC@0.5"], metrics["ACC@0.7"], metrics["accuracy"]) == (0.5, 0.25, 0.5)
    assert metrics["Center_ACC"] == 0.75  # what cannot be read is a box at (0, 0), which is inside of this one
    assert result["n_missing"] == 1


def test_sentences_that_are_twice_there_and_other_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    record = {"img_id": "COCO_train2014_000000000007_2", "sents": "cup", "height": 100, "width": 100}
    path.write_text(json.dumps([{**record, "bbox": [0, 0, 10, 10]}, {**record, "bbox": [50, 50, 10, 10]}]))
    replies = ["{<0><0><10><10>}", "{<50><50><60><60>}"]
    for ids in (["000000000007-cup"] * 2, ["000000000007-cup", "000000000007-cup #2"], [0, 1], [record["img_id"]] * 2):
        lines = [{"id": name, "ans": reply} for name, reply in zip(ids, replies, strict=True)]
        result = score_predictions("refcoco", [path], lines)
        assert result["rules"]["xtuner"]["metrics"]["accuracy"] == 1.0, ids
        assert (result["n_unknown"], result["n_duplicates"]) == (0, 0)
    assert len({one["id"] for one in result["rules"]["xtuner"]["per_sample"]}) == 2


def test_a_record_without_a_size_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"img_id": "a_1_2", "sents": "x", "bbox": [1, 2, 3, 4]}]))
    with pytest.raises(ValueError, match=r"a.json: entry 1: a box in pixels needs the picture's height and width"):
        score_predictions("refcoco", [path], [])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (7, "entry 1: expected a sentence with a box, found int"),
        ({"bbox": [1, float("nan"), 3, 4]}, r"entry 1: the box is \[1, nan, 3, 4\], expected four numbers"),
        ({"bbox": [1, 2, 3, 4], "width": "wide", "height": 3}, "entry 1: width and height are 'wide' and 3"),
    ],
)
def test_malformed_records_are_named(tmp_path: Path, record: Any, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"img_id": "a_1_2", "sents": "x", **record} if isinstance(record, dict) else record]))
    with pytest.raises(ValueError, match=f"a.json: {message}"):
        score_predictions("refcoco", [path], [])


def test_unknown_options_and_files_of_another_form_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [1, 2, 3, 4])
    with pytest.raises(ValueError, match="refcoco has no option 'boxformat'; known are: box_format, text"):
        score_predictions("refcoco", [path], [], boxformat="padded")
    with pytest.raises(ValueError, match=r"boxes in text are set by {'stile': 'unit3'}; allowed is a dict of style"):
        score_predictions("refcoco", [path], [], text={"stile": "unit3"})
    path.write_text('{"data": null}')
    with pytest.raises(ValueError, match=r"a.json: not in the form that is needed .textvqa: .*TypeError"):
        score_predictions("textvqa", [path], [])


corner = st.integers(0, 100).map(lambda value: value / 100)


@given(st.lists(corner, min_size=8, max_size=8))
def test_overlap_is_torchvisions_in_single_precision(values: list[float]) -> None:
    first, second = values[:4], values[4:]
    theirs = box_iou(torch.tensor([first]) * 1000, torch.tensor([second]) * 1000).item()
    ours = overlap_single_precision(tuple(first), tuple(second))  # type: ignore[arg-type]
    assert (ours > 0.5) is (theirs > 0.5)
    if theirs == theirs and abs(theirs) != float("inf"):
        assert ours == theirs


@given(st.text("[]0123456789., -x\n", max_size=40))
def test_nothing_that_a_model_writes_breaks_the_parsers(text: str) -> None:
    for parse in (parse_xtuner, parse_llava_hr, parse_lmms_eval):
        box = parse(text)
        assert box is None or len(box) == 4


def test_padding_moves_boxes_as_the_canvas_does() -> None:
    from mg_llava.data.pictures.frames import Canvas

    record = Referred("a", (), "cup", "", (10, 20, 30, 40), (101, 64), None)
    left, top = Canvas(101, 64, 336).pad_offset
    expected = [(10 + left) / 101, (20 + top) / 101, (40 + left) / 101, (60 + top) / 101]
    assert record.box("padded") == pytest.approx(expected)
