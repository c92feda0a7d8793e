"""The miniature's data: formats, seeds, splits, unambiguous answers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import forked

NANO = Path(__file__).resolve().parents[2] / "data" / "nano"


@pytest.mark.parametrize("file", sorted(NANO.glob("*/config.json")), ids=lambda file: file.parent.name)
def test_parts_do_not_say_where_they_were_made(file):
    content = file.read_text()
    assert "/" not in json.loads(content).get("_name_or_path", "") and "/tmp/" not in content


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(NANO))
    import language
    import scenes

    yield scenes, language
    sys.path.remove(str(NANO))


def make(out, *options):
    sizes = ["--stage1", "6", "--stage2", "90", "--heldout", "4", "--out", str(out)]
    done = forked.run(NANO / "make_data.py", *sizes, *options)
    assert done.status == 0, done.err
    return done.out


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    out = tmp_path_factory.mktemp("nano")
    assert "wrote" in make(out)
    return out


@pytest.mark.slow
def test_a_second_run_does_nothing_and_another_seed_does(generated, tmp_path):
    assert "nothing to do" in make(generated)
    make(tmp_path, "--seed", "1")
    assert (tmp_path / "stage1.json").read_text() != (generated / "stage1.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["stage1", "stage2"])
def test_records_pictures_and_boxes_belong_together(generated, part):
    records = json.loads((generated / f"{part}.json").read_text())
    boxes = {record["id"]: record for record in json.loads((generated / f"{part}_boxes.json").read_text())}
    exact = {record["id"]: record for record in json.loads((generated / f"{part}_exact_boxes.json").read_text())}
    assert {record["id"] for record in records if "image" in record} == boxes.keys() == exact.keys()
    for record in records:
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert sum(turn["value"].count("<image>") for turn in turns) == ("image" in record)
        if "image" not in record:
            continue
        width, height = Image.open(generated / "images" / record["image"]).size
        for entry in (boxes[record["id"]], exact[record["id"]]):
            assert len(entry["boxes"]) == len(entry["scores"]) == len(entry["labels"]) > 0
            for x0, y0, x1, y1 in entry["boxes"]:
                assert 0 <= x0 < x1 <= width
                assert 0 <= y0 < y1 <= height


@pytest.mark.slow
def test_stage2_has_records_without_a_picture(generated):
    records = json.loads((generated / "stage2.json").read_text())
    assert 0 < sum("image" not in record for record in records) < len(records)


@pytest.mark.slow
def test_held_out_questions(generated, modules):
    _, language = modules
    lines = [json.loads(line) for line in (generated / "heldout.jsonl").read_text().splitlines()]
    boxes = {record["id"] for record in json.loads((generated / "heldout_boxes.json").read_text())}
    assert len(lines) == 4 * len(language.KINDS)
    assert {line["kind"] for line in lines} == set(language.CHANCE)
    assert {line["id"] for line in lines} <= boxes
    assert len({line["id"] for line in lines}) == len(lines)


def test_splits_share_no_digit_and_no_background(modules):
    scenes, _ = modules
    assert not set(scenes.BACKGROUNDS["train"]) & set(scenes.BACKGROUNDS["heldout"])
    train, heldout = (sum(map(len, scenes.digit_tiles(split))) for split in ("train", "heldout"))
    assert (train, heldout) == (1797 - scenes.HELD_OUT_DIGITS, scenes.HELD_OUT_DIGITS)


def test_answers_are_unambiguous(modules):
    scenes, language = modules
    rng = np.random.default_rng(0)
    for _ in range(100):
        layout = scenes.sample_layout(rng, list(range(1, 7)), list(range(8)))
        digits, rows, columns, levels = zip(*[item for item in layout if item[0] >= 0], strict=True)
        assert 2 <= len(digits) <= 5
        assert len(set(digits)) == len(set(rows)) == len(set(columns)) == len(digits)
        assert sorted(levels)[-1] > sorted(levels)[-2]
        assert len({item[1:3] for item in layout}) == len(layout) > len(digits)
        question = language.ask(rng, layout, "choice")
        options = dict(line.split(". ") for line in question.question.splitlines()[1:])
        assert [letter for letter, digit in options.items() if int(digit) in digits] == [question.answer]
        question = language.ask(rng, layout, "presence")
        asked = int("".join(c for c in question.question if c.isdigit()))
        assert question.answer == ("Yes" if asked in digits else "No")


def test_marks_stay_inside_their_cell(modules):
    scenes, _ = modules
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = scenes.draw_dense_scene(rng, "train")
        _, boxes = scenes.to_canvas(scene)
        for mark, (x0, y0, x1, y1) in zip(scene.marks, boxes, strict=True):
            assert mark.column * scenes.CELL - 1 <= x0 < x1 <= (mark.column + 1) * scenes.CELL + 1
            assert mark.row * scenes.CELL - 1 <= y0 < y1 <= (mark.row + 1) * scenes.CELL + 1


def test_unknown_kind_is_refused(modules):
    _, language = modules
    with pytest.raises(ValueError, match="known: count"):
        language.ask(np.random.default_rng(0), [], "color")
