"""The tool that makes records about objects: sources, test pictures of any kind, a plan, and exit status."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mg_llava.evaluation.families.refcoco import RefCOCO
from tests.data.synthesis import toys
from tests.evaluation.judging.endpoints import endpoints, error, reply
from tests.run import run_tool


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("synthesize")
    toys.write_refcoco(made / "refcoco", made / "images" / "train2014")
    toys.write_coco(made / "instances_train2017.json", made / "images" / "train2017")
    return made


def test_test_pictures_of_all_kinds_are_left_out(folder: Path) -> None:
    refer = {"img_id": "COCO_train2014_000000000501_2", "sents": "cup", "bbox": [0, 0, 9, 9], "height": 9, "width": 9}
    toys.write_json(folder / "refcoco_val.json", [refer])
    toys.write_json(folder / "instances_val.json", toys.instances([502], "{:012d}.jpg"))
    (folder / "bench").mkdir()
    Image.open(folder / "images" / "train2017" / f"{503:012d}.jpg").save(folder / "bench" / "question.png")
    images = folder / "images"
    arguments = ["--refcoco", folder / "refcoco", images / "train2014"]
    arguments += ["--coco", folder / "instances_train2017.json", images / "train2017", "--out", folder / "out"]
    for path in ("refcoco_val.json", "instances_val.json", "bench"):
        arguments += ["--reserve", folder / path]
    arguments += ["--mixture", "text_to_box=40,box_to_image=20", "--workers", 2]
    status, out, err = run_tool("synthesize_regions", *arguments, "--dry-run")
    assert status == 0, err
    assert json.loads((folder / "out" / "plan.json").read_text())["planned"] == 60
    status, out, err = run_tool("synthesize_regions", *arguments)
    assert status == 0 and "instances_train2017: 5 of 8 pictures" in out, err
    report = json.loads((folder / "out" / "report.json").read_text())
    refused = report["sources"]["instances_train2017"]["pictures"]["dropped"]
    assert refused == {"a test picture, by its name": 2, "a test picture, by its pixels": 1}
    shown = {json.loads(line)["image"] for line in (folder / "out" / "regions.jsonl").read_text().splitlines()}
    assert f"train2017/{504:012d}.jpg" in shown
    assert not shown & {f"train2017/{number:012d}.jpg" for number in (501, 502, 503)}


def test_test_splits_become_files_of_the_benchmark(folder: Path) -> None:
    arguments = ["--refcoco", folder / "refcoco", folder / "images" / "train2014", "--out", folder / "splits"]
    done = run_tool("synthesize_regions", *arguments, "--dry-run", "--eval-files", folder / "eval")
    assert done.status == 0, done.err
    assert sorted(path.name for path in (folder / "eval").iterdir()) == [
        f"refcoco_{split}.json" for split in ("testA", "testB", "val")
    ]
    benchmark = RefCOCO(folder / "eval" / "refcoco_val.json", folder / "images" / "train2014")
    first, second, third = benchmark.questions()
    assert "left café" in first.text and first.picture_key == second.picture_key == third.picture_key
    assert first.picture is not None and first.picture().size == toys.SIZE
    lines = [{"id": question.id, "pred_text": "[0.025, 0.050, 0.275, 0.383]"} for question in (first, second)]
    found = benchmark.score(lines)["rules"]["box_text"]["metrics"]
    assert found["accuracy"] == pytest.approx(2 / 3) and found["no_box"] == pytest.approx(1 / 3)


def test_texts_are_rewritten_by_an_endpoint(folder: Path) -> None:
    source = ["--refcoco", folder / "refcoco", folder / "images" / "train2014", "--mixture", "text_to_box=100"]

    def answer(body: dict) -> tuple[int, dict]:
        text = body["messages"][-1]["content"].rsplit("\n", 1)[1]
        return error("flagged by moderation") if text.startswith("the ") else reply(f"that is {text}")

    with endpoints() as start:
        url, seen = start(answer)
        more = ["--endpoint", url, "--model", "toy", "--rewrite-share", 1, "--out", folder / "rewritten"]
        done = run_tool("synthesize_regions", *source, *more)
    assert done.status == 0, done.err
    assert "left café" in {body["messages"][-1]["content"].rsplit("\n", 1)[1] for body in seen}
    found = json.loads((folder / "rewritten" / "report.json").read_text())["rewriting"]
    assert found == {"model": "toy", "texts": 6, "refused": 4, "rewritten": 2}
    text = (folder / "rewritten" / "regions.jsonl").read_text()
    assert text.count("that is left café") == text.count("left café") == 9


def test_wrong_arguments_and_files(folder: Path) -> None:
    coco = ["--coco", folder / "instances_train2017.json", folder / "images" / "train2017"]
    assert run_tool("synthesize_regions", "--out", folder / "no").status == 2
    done = run_tool("synthesize_regions", *coco, "--out", folder / "no")
    assert done.status == 2 and "--reserve PATH, or --reserve none" in done.err
    none = [*coco, "--reserve", "none", "--out", folder / "no"]
    for more, said in (
        (["--mixture", "text_to_box"], "TASK=NUMBER is needed"),
        (["--mixture", "text_to_boxes=3"], "unknown tasks: text_to_boxes"),
        (["--coco", folder / "absent.json", folder], "absent.json does not exist"),
        (["--reserve", folder / "absent"], "does not exist"),
        (["--root", folder / "refcoco"], "outside of the root"),
        (["--endpoint", "http://h", "--model", "m", "--rewrite-share", 2], "must lie in 0..1"),
    ):
        done = run_tool("synthesize_regions", *none, *more)
        assert done.status == 1 and said in done.err, done.err
    assert not (folder / "no" / "regions.jsonl").exists()
    (folder / "half").mkdir()
    (folder / "half" / "report.json").write_text('{"settings"')
    done = run_tool("synthesize_regions", *none, "--out", folder / "half")
    assert done.status == 1 and "report.json is damaged" in done.err, done.err
