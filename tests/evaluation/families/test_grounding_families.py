"""Phrase grounding, descriptions of objects, and RefCOCO by the rule for boxes as text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mg_llava.data.text.coordinates import BoxText
from mg_llava.evaluation.families.flickr30k import PhraseGrounding, load_flickr30k
from mg_llava.evaluation.families.refcoco import RefCOCO
from mg_llava.evaluation.families.region_captions import RegionCaptions
from mg_llava.evaluation.gallery import write_gallery
from mg_llava.evaluation.results import RunResult
from mg_llava.evaluation.scoring import captions
from tests.data.synthesis import toys

SENTENCES = ("a red cup", "the cup at the left", "cup", "a red cup")
BOXES = ([10, 20, 30, 40], [10, 20, 30, 40], [60, 5, 30, 20], [60, 5, 30, 20])


@pytest.fixture
def refcoco(tmp_path: Path) -> Path:
    """Four sentences about two objects of one picture, two of them the same, and one about another picture."""
    record = {"img_id": "COCO_train2014_000000000007_2", "height": 80, "width": 120}
    lines = [{**record, "sents": text, "bbox": box} for text, box in zip(SENTENCES, BOXES, strict=True)]
    lines.append({**record, "img_id": "COCO_train2014_000000000008_3", "sents": "dog", "bbox": [0, 0, 60, 60]})
    (tmp_path / "images").mkdir()
    for number in (7, 8):
        toys.write_picture(tmp_path / "images" / f"COCO_train2014_{number:012d}.jpg", number, (120, 80))
    return toys.write_json(tmp_path / "refcocog_val.json", lines)


def replies(benchmark: Any, texts: list[str]) -> list[dict[str, Any]]:
    questions = benchmark.questions()
    return [benchmark.prediction(question, text) for question, text in zip(questions, texts, strict=True)]


@pytest.mark.parametrize(("style", "frame"), [("unit3", "padded"), ("bins", "original"), ("int1000", "padded")])
def test_sentences_of_one_picture_never_stand_for_each_other(refcoco: Path, style: Any, frame: Any) -> None:
    benchmark = RefCOCO(refcoco, refcoco.parent / "images", prompt="regions", text={"style": style, "frame": frame})
    questions = benchmark.questions()
    assert len({question.id for question in questions}) == 5
    assert len({question.picture_key for question in questions}) == 2
    assert questions[0].text == "Where is this in the picture: a red cup? Answer with one box."
    writer = BoxText(style, frame)
    corners = [[x, y, x + w, y + h] for x, y, w, h in [*BOXES, [0, 0, 60, 60]]]
    gold = [writer.write(np.array([box]), (120, 80)) for box in corners]
    metrics = benchmark.score(replies(benchmark, gold))["rules"]["box_text"]["metrics"]
    assert metrics["accuracy"] == metrics["ACC@0.75"] == 1.0 and metrics["n_pictures"] == 2
    swapped = benchmark.score(replies(benchmark, [gold[2], gold[3], gold[0], gold[1], gold[4]]))
    assert swapped["rules"]["box_text"]["metrics"]["accuracy"] == 0.2
    assert benchmark.headline == ("box_text", "accuracy")
    benchmark.use_box_text(BoxText("unit2", "original"))  # it was told how, so that it stays
    assert benchmark.score(replies(benchmark, gold))["rules"]["box_text"]["metrics"]["accuracy"] == 1.0


def test_boxes_are_read_as_the_model_was_trained_to_write_them(refcoco: Path) -> None:
    benchmark = RefCOCO(refcoco, prompt="regions")
    writing = BoxText("bins", "original", bins=64)
    gold = [writing.write(np.array([[x, y, x + w, y + h]]), (120, 80)) for x, y, w, h in [*BOXES, [0, 0, 60, 60]]]
    assert benchmark.score(replies(benchmark, gold))["rules"]["box_text"]["metrics"]["no_box"] == 1.0
    benchmark.use_box_text(writing)
    assert benchmark.score(replies(benchmark, gold))["rules"]["box_text"]["metrics"]["accuracy"] == 1.0


def test_fractions_of_files_are_of_the_frame_of_replies(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"id": 1, "image": "x.jpg", "text": "cup", "ans": [0.0, 0.25, 1.0, 0.75]}) + "\n")
    benchmark = RefCOCO(path, prompt="regions")
    scored = benchmark.score([{"id": 1, "pred_text": "[0.000, 0.250, 1.000, 0.750]"}])["rules"]["box_text"]
    assert scored["metrics"]["IoU"] == pytest.approx(1)
    assert scored["per_sample"][0]["frame"] == "padded"


def test_phrases_are_asked_one_by_one_and_scored_by_both_protocols(tmp_path: Path) -> None:
    folder = toys.write_flickr30k(tmp_path / "entities", tmp_path / "images")
    phrases = load_flickr30k([folder])
    assert [phrase.id for phrase in phrases] == ["1009#0#0", "1009#0#2", "1009#1#0", "1009#1#1"]
    benchmark = PhraseGrounding(folder, tmp_path / "images")
    questions = benchmark.questions()
    assert questions[3].text == (
        'In the sentence "A man stands near two children under the idea .", where is "two children"? '
        "Answer with one box."
    )
    assert questions[0].picture is not None and questions[0].picture().size == toys.SIZE
    writer = BoxText("unit3", "padded")
    first = [writer.write(np.array([phrase.boxes[0]]), phrase.size) for phrase in phrases]
    rules = benchmark.score(replies(benchmark, first))["rules"]
    assert rules["any_box"]["metrics"]["accuracy"] == 1.0
    assert rules["merged_boxes"]["metrics"]["accuracy"] == 0.75  # one phrase has two boxes
    around = np.array(phrases[3].boxes)
    union = np.concatenate([around[:, :2].min(axis=0), around[:, 2:].max(axis=0)])[None]
    rules = benchmark.score(replies(benchmark, [*first[:3], writer.write(union, phrases[3].size)]))["rules"]
    assert rules["merged_boxes"]["metrics"]["accuracy"] == 1.0 and rules["any_box"]["metrics"]["accuracy"] == 0.75
    assert len(load_flickr30k([folder, folder / "train.txt"])) == 32
    with pytest.raises(ValueError, match="the folder with Sentences and Annotations is needed"):
        load_flickr30k([folder / "test.txt"])


def test_objects_are_described_once_with_all_their_sentences(refcoco: Path, monkeypatch) -> None:
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    benchmark = RegionCaptions(refcoco, refcoco.parent / "images")
    questions = benchmark.questions()
    assert [question.id for question in questions] == ["000000000007#0", "000000000007#1", "000000000008#0"]
    assert "<box:0>" in questions[0].text and questions[0].objects == [[10.0, 20.0, 40.0, 60.0]]
    assert questions[0].picture is not None and questions[0].picture().size == (120, 80)
    found = benchmark.score(replies(benchmark, ["The cup at the left!", "a red cup", "something"]))
    metrics, samples = found["rules"]["official"]["metrics"], found["rules"]["official"]["per_sample"]
    assert samples[0]["references"] == ["a red cup", "the cup at the left"]
    assert samples[0]["score"] > 4 and samples[2]["score"] == 0
    assert metrics["CIDEr"] == pytest.approx(np.mean([sample["score"] for sample in samples]))
    assert metrics["CIDEr/low"] <= metrics["CIDEr"] <= metrics["CIDEr/high"]
    assert metrics["METEOR"] is None and found["not_computed"] == {"METEOR": 3}
    assert any("METEOR of 3 texts was not computed: there is no Java" in text for text in found["warnings"])


@pytest.mark.slow
@pytest.mark.skipif(not captions.shutil.which("java"), reason="METEOR needs Java")
def test_meteor_with_java(refcoco: Path) -> None:
    benchmark = RegionCaptions(refcoco)
    lines = [{"id": "000000000007#0", "text": "a red cup"}, {"id": "000000000007#1", "text": "unlike"}]
    found = benchmark.score(lines)
    assert found["not_computed"] == {} and found["n_missing"] == 1
    first, second, _ = found["rules"]["official"]["per_sample"]
    assert first["METEOR"] == pytest.approx(1.0) and second["METEOR"] < 0.5
    assert 0 < found["rules"]["official"]["metrics"]["METEOR"] < 1


def test_the_gallery_shows_both_boxes(refcoco: Path, tmp_path: Path) -> None:
    benchmark = RefCOCO(refcoco, tmp_path / "images", prompt="regions")
    texts = ["[0.0, 0.1, 0.2, 0.3]", "<b>", "nothing", "[0.5, 0.5, 0.9, 0.9]", "[0.0, 0.0, 0.5, 0.5]"]
    lines = replies(benchmark, texts)
    samples = [{"id": line["id"], "text": line["pred_text"]} for line in lines]
    (tmp_path / "images" / f"COCO_train2014_{8:012d}.jpg").unlink()
    score = benchmark.score(lines)
    rest: dict[str, Any] = dict(headline={}, counts={}, failures=[], boxes={}, identity={}, seconds=0.0)
    run = RunResult("refcocog_val", "regions", score, folder=tmp_path / "out", samples=samples, **rest)
    path = write_gallery(benchmark, run, 10)
    assert path is not None
    page = path.read_text()
    assert page.count("<figure>") == 5 and page.count("data:image/jpeg;base64,") == 4
    assert "the cup at the left" in page and "&lt;b&gt;" in page and "<b></b>" not in page and "does not exist" in page
    assert write_gallery(benchmark, run, 2).read_text().count("<figure>") == 2  # type: ignore[union-attr]


def test_boxes_are_drawn_where_they_are() -> None:
    from mg_llava.evaluation.gallery import draw_pair

    drawn = np.asarray(draw_pair(Image.new("RGB", (100, 50), "black"), [0.1, 0.2, 0.4, 0.8], [0.5, 0.2, 0.9, 0.8]))
    assert drawn.shape == (280, 560, 3)
    green = (drawn == (0x3C, 0xB4, 0x4B)).all(axis=2)
    assert green[150, 50:57].any() and not green[150, 60:220].any() and green[150, 224:228].any()
    red = (drawn == (0xE6, 0x19, 0x4B)).all(axis=2)
    assert red[56:224, 276:281].any() and red[56:224, 503:509].any()
