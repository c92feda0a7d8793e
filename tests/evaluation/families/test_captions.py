"""Captions in COCO's format: questions, scores and faults."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mg_llava.evaluation.families.captions import Captions, load_captioned
from mg_llava.evaluation.scoring import captions


@pytest.fixture
def file(tmp_path: Path) -> Path:
    texts = {3: ["A dog runs.", "the dog is running"], 5: ["two red cats"], 9: ["a very old tree"]}
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in texts],
        "annotations": [{"image_id": n, "caption": text} for n, own in texts.items() for text in own],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    for number in texts:
        Image.new("RGB", (20, 10)).save(tmp_path / f"{number}.png")
    return tmp_path / "captions.json"


def test_pictures_are_asked_once_and_scored_by_all_their_captions(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    benchmark = Captions(file)
    questions = benchmark.questions()
    assert [question.id for question in questions] == [3, 5, 9]
    assert questions[0].picture is not None and questions[0].picture().size == (20, 10)
    lines = [
        benchmark.prediction(question, text)
        for question, text in zip(questions[:2], ("the dog is running", "no"), strict=True)
    ]
    found = benchmark.score(lines)
    metrics, samples = found["rules"]["official"]["metrics"], found["rules"]["official"]["per_sample"]
    assert samples[0]["score"] > 2 and samples[1]["score"] == samples[2]["score"] == 0
    assert samples[0]["references"] == ["A dog runs.", "the dog is running"]
    assert metrics["CIDEr"] == pytest.approx(np.mean([sample["score"] for sample in samples]))
    assert found["n_missing"] == 1 and found["not_computed"] == {"METEOR": 3}


def test_files_of_another_form_are_named(file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"images": [{"id": 1}], "annotations": []}))
    with pytest.raises(ValueError, match=r"bad.json is no caption file of COCO \(KeyError: 'file_name'\)"):
        load_captioned([bad])
    bad.write_text(json.dumps({"images": [{"id": 1, "file_name": "a"}], "annotations": []}))
    with pytest.raises(ValueError, match=r"bad.json: 1 pictures have no caption, such as 1"):
        load_captioned([bad])
