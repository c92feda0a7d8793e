"""The tool that makes boxes for a data set: small detectors from disk, torchrun, reports and exit status."""

import json

import numpy as np
import pytest
from PIL import Image

from mg_llava.data.boxes.store import open_box_store
from tests import forked
from tests.detection import toys
from tests.run import run_tool


def call(*arguments):
    return run_tool("generate_boxes", *arguments)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small models, and records of twelve pictures of three shapes, one of them twice and one that is broken."""
    root = tmp_path_factory.mktemp("generate")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        size = [(40, 64, 3), (64, 40, 3), (50, 50, 3)][number % 3]
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(root / "images" / f"{number}.png")
        rows.append({"id": number, "image": f"{number}.png"})
    (root / "images" / "broken.png").write_text("no picture")
    rows += [{"id": "again", "image": "3.png"}, {"id": "broken", "image": "broken.png"}]
    (root / "records.json").write_text(json.dumps(rows))
    models = {"owlv2": toys.write_owlv2(root / "owlv2"), "clip": toys.write_open_clip(root / "clip")}
    return {"root": root, **models, "dino": toys.write_grounding_dino(root / "dino")}


def arguments_for(files, out, detector, tagger, threshold=0.1):
    where = (files["root"] / "records.json", "--images", files["root"] / "images", "--out", out)
    options = ("--detector", detector, "--tagger", tagger, "--threshold", threshold)
    return [str(part) for part in (*where, *options, "--batch-size", 4, "--task-batches", 1, "--workers", 2)]


@pytest.mark.parametrize(
    ("detector", "tagger", "threshold"),
    [("owlv2", "clip:{clip}", 0.1), ("grounding-dino", "cat, dog", 0.1)],
)
def test_whole_tool(files, tmp_path, detector, tagger, threshold):
    path = files["owlv2"] if detector == "owlv2" else files["dino"]
    arguments = arguments_for(files, tmp_path, f"{detector}:{path}", tagger.format(**files), threshold)
    status, out, err = call(*arguments, "--json", tmp_path / "boxes.json", "--visualize", 2)
    assert status == 0 and "different pictures" in out and "pictures/s" in err
    store = open_box_store(tmp_path / "boxes.safetensors")
    assert len(store) == 13 and sum(len(store.get(key)) for key in store.keys()) > 10
    assert store.get("again").boxes.tolist() == store.get("3").boxes.tolist()
    assert store.metadata["settings"]["detector"]["threshold"] == threshold
    ledger = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [line["id"] for line in ledger] == ["broken"] and ledger[0]["fault"] == "not a picture"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["different_pictures"] == 12 and sum(report["histogram"].values()) == 12
    assert len(json.loads((tmp_path / "boxes.json").read_text())) == 13
    assert len(list((tmp_path / "visualize").iterdir())) == 2
    # A second call finds all done; --merge sees it too, and what is missing.
    assert call(*arguments)[0] == call(*arguments, "--merge")[0] == 0
    next((tmp_path / "work" / "detect").iterdir()).unlink()
    status, _, err = call(*arguments, "--merge")
    assert status == 1 and "12 of 12 pictures have no result yet" in err


def test_errors_give_status_1(files, tmp_path):
    for detector, tagger, message in (
        ("owlv3:x", "coco80", "is 'owlv2' meant"),
        (f"owlv2:{files['owlv2']}", "list:none.txt", "does not exist"),
        ("owlv2:/nowhere/at/all", "coco80", "/nowhere/at/all"),
    ):
        status, _, err = call(*arguments_for(files, tmp_path / detector[:5], detector, tagger))
        assert status == 1 and "error: " in err and message in err
    plain = [files["root"] / "records.json", "--images", files["root"] / "images", "--detector", "proposals", "--out"]
    status, _, err = call(*plain, tmp_path, "--merge")
    assert status == 1 and "not all pictures were read yet" in err
    owlv2 = [*plain[:-2], f"owlv2:{files['owlv2']}", "--tagger", "coco80", "--out"]
    for given, options, message in (
        (plain, ("--threshold", 0.5), "threshold was given, but detector 'proposals' has none"),
        (owlv2, ("--threshold", "nan"), "threshold is nan, must lie in 0..1"),
        (owlv2, ("--nms-iou", 3), "nms_iou is 3.0, must lie in 0..1"),
    ):
        status, _, err = call(*given, tmp_path / "wrong", *options)
        assert status == 1 and message in err, err
    assert call("--out", tmp_path).status == 2


@pytest.mark.parametrize("name", ["run.json", "keys.jsonl", "sources.jsonl"])
def test_files_of_a_run_that_were_cut_off_are_named(files, tmp_path, name):
    arguments = [files["root"] / "records.json", "--images", files["root"] / "images", "--detector", "proposals"]
    assert call(*arguments, "--out", tmp_path).status == 0
    path = tmp_path / "work" / name
    path.write_text("" if name == "run.json" else path.read_text().partition("\n")[0] + "\n")
    status, _, err = call(*arguments, "--out", tmp_path)
    assert status == 1 and name in err and "remove" in err, err


@pytest.mark.slow
def test_two_processes_give_the_file_of_one(files, tmp_path):
    detector = f"owlv2:{files['owlv2']}"
    assert call(*arguments_for(files, tmp_path / "one", detector, "coco80")).status == 0
    done = forked.run_tool("generate_boxes", *arguments_for(files, tmp_path / "two", detector, "coco80"), processes=2)
    assert done.status == 0, done.err[-2000:]
    assert done.out.count("different pictures") == 1
    one, two = ((tmp_path / name / "boxes.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
