"""Scenes with a law: digits ascend, records and annotations say what is there, and what two LLMs read of them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mg_llava.data.boxes.store import open_box_store
from mg_llava.evaluation.detection.coco import open_instances, score_detections

NANO = Path(__file__).resolve().parents[2] / "data" / "nano"


@pytest.fixture(scope="module")
def nano() -> Iterator[Any]:
    sys.path.insert(0, str(NANO))
    import lawful
    import lawful_llm
    import scenes

    yield SimpleNamespace(lawful=lawful, llm=lawful_llm, scenes=scenes)
    sys.path.remove(str(NANO))


@pytest.fixture(scope="module")
def made(nano: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lawful")
    nano.lawful.prepare(out, {"stage1": 3, "stage2": 3, "heldout": 6})
    return out


def test_digits_ascend_and_nothing_else_changes(nano: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        layout = nano.scenes.sample_layout(rng, list(range(8)), list(range(8)))
        lawful = nano.lawful.ascend(layout)
        digits = [item[0] for item in sorted(lawful, key=lambda item: item[2]) if item[0] >= 0]
        assert digits == sorted(item[0] for item in layout if item[0] >= 0)
        assert [item[1:] for item in lawful] == [item[1:] for item in layout]
        assert [item for item in lawful if item[0] < 0] == [item for item in layout if item[0] < 0]


def test_the_stored_detector_finds_what_is_there(made: Path) -> None:
    truth = open_instances(str(made / "heldout_instances.json"))
    names = {picture["id"]: f"heldout-{picture['id']:05d}" for picture in truth.imgs.values()}
    found, exact = (open_box_store(made / f"heldout_{kind}.json") for kind in ("detected", "exact"))
    assert score_detections(truth, {n: exact.get(key) for n, key in names.items()}).numbers["AP"] > 0.999
    assert score_detections(truth, {n: found.get(key) for n, key in names.items()}).numbers["AP50"] > 0.8


def test_records_are_those_of_the_pictures(made: Path) -> None:
    for part, turns in (("stage1", 4), ("stage2", 8)):
        records, exact = json.loads((made / f"{part}.json").read_text()), open_box_store(made / f"{part}_exact.json")
        assert [record["id"] for record in records] == list(exact.keys()) and len(records) == 3
        for record in records:
            assert len(record["conversations"]) == turns and record["conversations"][0]["value"].startswith(
                "<image>\n"
            )
            said = record["conversations"][-1]["value"]  # the last answer names all digits with their quarters
            digits = sorted(label for label in exact.get(record["id"]).labels if label != "shape")
            assert sorted(word for word in said.replace(",", "").split() if word.isdigit()) == digits
    lines = [json.loads(line) for line in (made / "heldout.jsonl").read_text().splitlines()]
    lists = [line["answer"].split(", ") for line in lines if line["kind"] == "list"]
    assert len(lines) == 6 * 4 and all(digits == sorted(digits) for digits in lists)


def test_texts_of_both_kinds(nano: Any) -> None:
    rising: dict[bool, list[bool]] = {True: [], False: []}
    for knows, found in rising.items():
        rng = np.random.default_rng(1)
        for _ in range(60):
            first, *_ = nano.llm.write_text(rng, knows)
            if "Detected objects: " in first.text:
                names = first.text.split("Detected objects: ")[1].split(".\n")[0].split("; ")
                digits = [name for name in names if name != "shape"]
                found.append(digits == sorted(digits))
    assert all(rising[True]) and np.mean(rising[False]) < 0.5 and len(rising[True]) > 30


def test_lists_alone_end_with_the_names(nano: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(NANO / "llm")
    ids, labels = nano.llm.batch_of(np.random.default_rng(0), tokenizer, 4, True, questions=0)
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        length = sum(value != nano.llm.IGNORE for value in label)
        text = tokenizer.decode(row[:length])
        assert "Detected objects: " in text and text.endswith(".") and "ASSISTANT" not in text
        assert label[:length] == row[:length] and set(row[length:]) <= {0}
