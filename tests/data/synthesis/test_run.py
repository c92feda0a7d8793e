"""The whole run: what it writes, that its report adds up, that no test picture gets in, and what a kill leaves."""

import json
import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from mg_llava.data.records.schema import parse_record
from mg_llava.data.synthesis import run, screening
from mg_llava.data.synthesis.refer import CocoReader
from mg_llava.data.synthesis.run import OtherSynthesisError, Synthesis
from mg_llava.data.synthesis.screening import BY_NAME, BY_PIXELS
from mg_llava.data.synthesis.shares import WANTED, spread
from mg_llava.data.synthesis.tasks import TASKS
from mg_llava.data.text.coordinates import Style
from mg_llava.data.text.regions import RegionUse
from mg_llava.work.lock import FolderInUseError, folder_lock
from tests.data.synthesis import toys

Build = Callable[..., Synthesis]
MARK = re.compile(r"<(box|object):(\d+)>")


@pytest.fixture(scope="module")
def made(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that all sources have."""
    out = tmp_path_factory.mktemp("made")
    build(out).run()
    return out


@pytest.fixture(scope="module")
def records(made: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made / run.RECORDS_FILE).read_text().splitlines()]


@pytest.fixture(scope="module")
def report(made: Path) -> dict[str, Any]:
    return json.loads((made / run.REPORT_FILE).read_text())


def task_of(record: Mapping[str, Any]) -> str:
    return record["id"].split("/")[-2]


def test_every_record_is_whole(records: list[dict[str, Any]], sources: Path) -> None:
    assert len({record["id"] for record in records}) == len(records) > 1000
    assert {task_of(record) for record in records} == set(TASKS)
    for record in records:
        parsed = parse_record(record)
        assert (sources / "images" / parsed.images[0]).is_file()
        text = " ".join(turn.text for turn in parsed.turns)
        used = {int(number) for _, number in MARK.findall(text)}
        assert used == set(range(len(record.get("objects", ())))), record
        assert not re.search(r"[{}]", text)
        for one in record.get("objects", ()):
            x1, y1, x2, y2 = one["box"]
            assert 0 <= x1 < x2 <= toys.SIZE[0] and 0 <= y1 < y2 <= toys.SIZE[1]


def test_the_six_pairs_and_the_rest_say_what_is_there(records: list[dict[str, Any]]) -> None:
    by_task: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_task.setdefault(task_of(record), []).append(record)
    asked = {name: [one["conversations"][0]["value"] for one in some] for name, some in by_task.items()}
    answers = {name: [one["conversations"][1]["value"] for one in some] for name, some in by_task.items()}
    for name in ("text_to_box", "image_to_box", "text_image_to_box"):
        assert set(answers[name]) == {"<box:0>"}
    assert any("left café" in text for text in asked["text_to_box"])
    assert all("<object:0>" in text and "<box:0>" in text for text in asked["box_image_to_text"])
    for record in by_task["text_to_image"] + by_task["box_to_image"]:
        question, answer = (turn["value"] for turn in record["conversations"])
        place = int(re.search(rf"{answer} <object:(\d)>", question)[1])
        named = re.search(r"<box:(\d)>", question)
        assert "ABCD"[place] == answer and (named is None or int(named[1]) == place)
    assert {"A", "B", "C"} <= set(answers["text_to_image"]) <= set("ABCD")
    assert set(answers["box_is_image"]) == set(answers["presence"]) == {"Yes", "No"}
    assert any(re.match(r"2: <box:0>; <box:1>", text) for text in answers["list"])
    assert any("horse" in text and "riding" in text for text in answers["relation"])
    assert any("wearing" in text for text in asked["relation_to_box"])
    assert "A tall man <box:0> with brown hair holds a red bag <box:1> ." in answers["caption"]
    assert "There is a bench <box:0> below a large tree <box:1> in the park." in answers["caption"]
    absent = [text for text, answer in zip(asked["presence"], answers["presence"], strict=True) if answer == "No"]
    crowded = f"{501:012d}"
    assert not any(
        "toothbrush" in text
        for text, one in zip(asked["presence"], by_task["presence"], strict=True)
        if crowded in one["image"]
    )
    assert any("toothbrush" in text for text in absent)


@pytest.mark.parametrize("style", get_args(Style))
def test_every_way_to_write_boxes_serves_the_same_records(records: list[dict[str, Any]], style: Style) -> None:
    use = RegionUse({"style": style})
    for record in records[::7]:
        turns, crops = use.resolve_record(parse_record(record), [], [toys.SIZE])
        for turn, raw in zip(turns, record["conversations"], strict=True):
            marks = MARK.findall(raw["value"])
            boxes = [record["objects"][int(number)]["box"] for kind, number in marks if kind == "box"]
            read = use.box_text.read(turn.text, toys.SIZE)
            assert len(read.boxes) == len(boxes) and read.failures == 0
            moved = np.abs(read.boxes - np.array(boxes).reshape(-1, 4))
            assert (moved <= np.tile(use.box_text.bound(toys.SIZE), 2) + 1e-6).all()
        shown = [
            int(number)
            for turn in record["conversations"]
            for kind, number in MARK.findall(turn["value"])
            if kind == "object"
        ]
        assert [list(crop.box) for crop in crops] == [record["objects"][number]["box"] for number in shown]


def test_a_text_that_fits_two_objects_asks_for_none(records: list[dict[str, Any]]) -> None:
    questions = [
        one["conversations"][0]["value"] for one in records if task_of(one) in ("text_to_box", "text_to_image")
    ]
    assert not any("a red kite" in text or "two children" in text for text in questions)
    assert any("tall green tree" in text for text in questions)


def test_the_report_adds_up(report: dict[str, Any], records: list[dict[str, Any]]) -> None:
    for source, parts in report["sources"].items():
        for name, tally in parts.items():
            assert tally["read"] == tally["kept"] + sum(tally["dropped"].values()), (source, name)
            assert tally["read"] > 0 or name in ("phrases", "captions")
    counts = Counter(map(task_of, records))
    for name, task in report["tasks"].items():
        assert task["there are"] == task["drawn"] + task["not drawn"]
        assert task["drawn"] == task["written"] == counts[name] == sum(task["by source"].values())
        assert task["drawn"] == min(task["wanted"], task["there are"])
    assert report["records"] == report["planned"] == len(records)
    assert report["settings"]["wanted"] == dict(WANTED)
    captions = report["sources"]["boxes"]["captions"]
    assert captions == {
        "read": 7,
        "kept": 5,
        "dropped": {"in a picture that was refused": 1, "without words for an object": 1},
    }
    regions = report["sources"]["visual_genome"]["objects"]["dropped"]
    assert regions["a box outside of the picture"] == 7 and regions["a box that is empty or not finite"] == 7


def test_no_test_picture_gets_in(report: dict[str, Any], records: list[dict[str, Any]]) -> None:
    refused = {name: parts["pictures"]["dropped"] for name, parts in report["sources"].items()}
    assert refused["refcoco"] == {BY_NAME: 1}  # picture 5, a test picture of RefCOCOg
    assert refused["visual_genome"] == {BY_NAME: 2}  # picture 2 is COCO's 8; regions and relations
    assert refused["boxes"] == {BY_PIXELS: 1}  # planted under another name
    assert report["reserved"] == {"names": 6, "pictures": 6, "files not there": 0}
    shown = {record["image"] for record in records}
    assert "own/holiday_4.png" in shown and "own/holiday_5.png" not in shown
    tests = {f"train2014/COCO_train2014_{number:012d}.jpg" for number in (4, 8, 12, 5)}
    assert not shown & {*tests, "vg/VG_100K_2/2.jpg", "flickr30k/1008.jpg", "flickr30k/1009.jpg"}


def test_the_same_bytes_for_any_number_of_processes(build: Build, made: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "_BATCH", 7)
    monkeypatch.setattr(screening, "_BATCH", 5)
    whole = (made / run.RECORDS_FILE).read_bytes()
    for workers in (2, 4):
        out = tmp_path / str(workers)
        found = build(out, workers=workers).run()
        assert (out / run.RECORDS_FILE).read_bytes() == whole
        assert found == json.loads((made / run.REPORT_FILE).read_text())
        assert sorted(path.name for path in out.iterdir()) == [run.RECORDS_FILE, run.REPORT_FILE]
    other = build(tmp_path / "other", seed=1)
    other.run()
    assert (tmp_path / "other" / run.RECORDS_FILE).read_bytes() != whole


def die_at(build: Build, out: Path, stage: str, workers: int) -> None:
    def progress(name: str, done: int, count: int) -> None:
        if name == stage and done > 5:
            os.kill(os.getpid(), signal.SIGKILL)

    build(out, workers=workers, progress=progress).run()


def wait_for_workers(out: Path) -> None:
    """Workers of a killed process hold its folder until they see that it is gone."""
    while True:
        try:
            with folder_lock(out, "test"):
                return
        except FolderInUseError:
            time.sleep(0.1)


def test_a_killed_run_goes_on_to_the_same_bytes(build: Build, made: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "_BATCH", 7)
    monkeypatch.setattr(screening, "_BATCH", 5)
    stages = ("reading flickr30k", "looking at pictures", "counting samples", "writing records")
    for number, stage in enumerate(stages):
        child = multiprocessing.get_context("fork").Process(
            target=die_at, args=(build, tmp_path, stage, 1 + number % 2)
        )
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL, stage
        wait_for_workers(tmp_path)
        assert not (tmp_path / run.RECORDS_FILE).exists()
    build(tmp_path, workers=2).run()
    assert (tmp_path / run.RECORDS_FILE).read_bytes() == (made / run.RECORDS_FILE).read_bytes()


def test_a_folder_is_for_one_run(build: Build, made: Path) -> None:
    before = (made / run.RECORDS_FILE).stat().st_mtime_ns
    assert build(made).run()["records"] > 0  # all is done
    assert (made / run.RECORDS_FILE).stat().st_mtime_ns == before
    with pytest.raises(OtherSynthesisError, match="with other seed; use another folder"):
        build(made, seed=3).run()


def test_fewer_than_there_are_come_from_all_sources_alike(build: Build, tmp_path: Path) -> None:
    report = build(tmp_path, wanted={"text_to_box": 60, "caption": 10}).plan()
    assert report["tasks"]["text_to_box"]["drawn"] == 60 and report["planned"] == 70
    parts = report["tasks"]["text_to_box"]["by source"]
    assert len(parts) == 6 and min(parts.values()) >= 6
    assert spread(10, [100, 1, 100]) == [5, 1, 4] and spread(9, [1, 0, 2]) == [1, 0, 2]
    with pytest.raises(ValueError, match="unknown tasks: text_to_boxes"):
        build(tmp_path, wanted={"text_to_boxes": 1})


@pytest.mark.slow
def test_a_dry_run_plans_300000_samples(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(12)]
    boxes = [[x, y, 40, 30] for x in (0, 50, 100) for y in (0, 40, 80)]
    content = toys.instances([1], "{}.jpg")
    content["categories"] = [{"id": i, "name": name, "supercategory": "s"} for i, name in enumerate(names)]
    content["images"] = [{"id": i, "file_name": f"{i}.jpg", "width": 160, "height": 120} for i in range(7000)]
    content["annotations"] = [
        {"id": 9 * image + number, "image_id": image, "category_id": (image + number) % 12, "bbox": box}
        for image in range(7000)
        for number, box in enumerate(boxes)
    ]
    file = toys.write_json(tmp_path / "instances.json", content)
    report = Synthesis([CocoReader(file, tmp_path)], tmp_path / "out", tmp_path, workers=2).plan()
    assert sum(WANTED.values()) >= report["planned"] >= 300_000 and report["records"] == 0
    assert not (tmp_path / "out" / run.RECORDS_FILE).exists()
