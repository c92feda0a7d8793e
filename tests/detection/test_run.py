"""Runs over many pictures: one result whatever the processes, kills and faults."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mg_llava.data.boxes.store import open_box_store, picture_keys
from mg_llava.data.records.schema import BoxRecord
from mg_llava.detection.detector import Detector
from mg_llava.detection.run import (
    BoxJob,
    Incomplete,
    JobSettings,
    Results,
    format_report,
    merge,
    visualize,
    write_reference,
)
from mg_llava.detection.run.engines import PoolEngine
from mg_llava.registry import DETECTORS
from mg_llava.work.atomic import NoRoomError
from mg_llava.work.journal import read_journals
from tests import forked
from tests.work.test_tar_files import write_tar

NANO = Path(__file__).resolve().parents[2] / "data" / "nano"


@DETECTORS.register_module()
class LoggingDetector(Detector):
    """A box with the mean color of a picture; notes what it looks at, slowly, and fails on red pictures."""

    needs_tags = False

    def __init__(self, log, pause=0.0, always_fails=False):
        self.log, self.pause, self.always_fails = log, pause, always_fails

    def prepare(self, image):
        return np.asarray(image).mean(axis=(0, 1)).tolist()

    def shape(self, size):
        return size[0] > size[1]

    def detect(self, prepared, sizes, tags, names):
        time.sleep(self.pause)
        if self.always_fails or any(color[0] > 250 and color[1] < 5 for color in prepared):
            raise ArithmeticError("a red picture")
        assert len({size[0] > size[1] for size in sizes}) <= 2
        with open(self.log, "a") as file:
            file.write("".join(f"{color}\n" for color in prepared))
        boxes = [np.array([[0, 0, 1 + color[0] / 20, 1 + color[1] / 20]]) for color in prepared]
        return [
            BoxRecord(box, np.array([0.1 + c[2] / 300]), (f"x{int(c[0]) % 3}",))
            for box, c in zip(boxes, prepared, strict=True)
        ]


def write_pictures(folder, count=40):
    """Pictures of different colors and sizes; each fourth once more in another format."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        size = (20 + number % 3, 24 - number % 5)
        image = Image.new("RGB", size, (number * 5 % 250, number, 7 * number % 256))
        names = [f"{number}.png", f"again/{number}.bmp"] if number % 4 == 0 else [f"{number}.png"]
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            image.save(folder / name)
        rows.append({"id": number, "image": names[0] if len(names) == 1 else names, "conversations": []})
        if number % 10 == 0:
            rows.append({"id": f"more-{number}", "image": names[0], "conversations": []})
    rows.append({"id": "text", "conversations": []})
    (folder / "records.json").write_text(json.dumps(rows))
    return folder / "records.json"


def settings_for(tmp_path, records, name="out", pause=0.0, **changes):
    detector = {"type": "LoggingDetector", "log": str(tmp_path / "log"), "pause": pause}
    kwargs = dict(batch_size=3, task_batches=2, workers=2, **changes)
    return JobSettings([str(records)], str(tmp_path / name), {"detector": detector}, **kwargs)


def content(settings, name="boxes.safetensors"):
    return (Path(settings.out) / name).read_bytes()


@pytest.fixture
def records(tmp_path):
    return write_pictures(tmp_path / "pictures")


def in_child(work):
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_every_picture_once(tmp_path, records):
    settings = settings_for(tmp_path, records)
    bars = []
    BoxJob(settings, lambda *call: bars.append(call)).run()
    report = merge(settings)
    looked_at = (tmp_path / "log").read_text().splitlines()
    assert len(looked_at) == len(set(looked_at)) == 40 == report["different_pictures"]
    assert report["keys"] == report["records"] == 40 + 10 + 4 and report["failed"] == 0
    assert sum(report["histogram"].values()) == 40 and report["histogram"]["1-10"] == 40
    assert bars[-1] == ("detect", 40, 40) and ("read", 50, 50) in bars
    store = open_box_store(Path(settings.out) / "boxes.safetensors")
    assert store.metadata["detector"] == "LoggingDetector"
    first = store.get("4#0")
    assert (
        first.boxes.tolist()
        == store.get("4#1").boxes.tolist()
        == store.get(None, Image.open(records.parent / "again" / "4.bmp")).boxes.tolist()
        and len(first) == 1
    )
    assert store.image_size("4#0") == (21, 20) and store.get("more-10").labels == store.get("10").labels
    # A second run finds nothing to do.
    BoxJob(settings).run()
    assert (tmp_path / "log").read_text().splitlines() == looked_at
    drawn = list(visualize(settings, 3))
    assert len(drawn) == 3 and all(max(Image.open(path).size) >= 640 for path in drawn)
    write_reference(Results(settings), tmp_path / "reference.json")
    rows = json.loads((tmp_path / "reference.json").read_text())
    assert len(rows) == 54 and all(isinstance(side, int) for row in rows for box in row["boxes"] for side in box)


def test_pictures_in_tar_files_get_the_boxes_that_they_get_in_a_folder(tmp_path, records):
    names = sorted(path.relative_to(records.parent).as_posix() for path in records.parent.rglob("*.[pb][nm][gp]"))
    files = [(name, (records.parent / name).read_bytes()) for name in names]
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", files[number::2])
    tables = []
    for name, images in (("plain", str(records.parent)), ("tar", f"{tmp_path}/{{0..1}}.tar")):
        settings = settings_for(tmp_path, f"file://{records}", name, images=images)
        BoxJob(settings).run()
        assert merge(settings)["failed"] == 0
        tables.append(open_box_store(Path(settings.out) / "boxes.safetensors"))
    plain, tar = (json.dumps([store.get(key).boxes.tolist() for key in keys_of(records)]) for store in tables)
    assert plain == tar


def keys_of(records):
    for row in json.loads(records.read_text()):
        images = row.get("image", [])
        yield from picture_keys(str(row["id"]), 1 if isinstance(images, str) else len(images))


def test_two_processes_give_the_file_of_one(tmp_path, records):
    alone, shared = (settings_for(tmp_path, records, name, pause=0.02) for name in ("alone", "shared"))
    BoxJob(alone).run()
    merge(alone)
    (tmp_path / "log").unlink()
    with PoolEngine(shared, 2) as engine:
        bars = []
        BoxJob(shared, lambda *call: bars.append(call), engine).run()
    report = merge(shared)
    assert len((tmp_path / "log").read_text().splitlines()) == 40
    assert bars[-1] == ("detect", 40, 40)
    assert content(alone) == content(shared)
    assert report == json.loads(content(alone, "report.json"))


def run_to_fourth_batch(settings):
    """Run until a process is killed at the end of the fourth batch, which it does not leave."""
    detect = LoggingDetector.detect

    def detect_and_wait(self, *batch):
        found = detect(self, *batch)
        if len(Path(self.log).read_text().splitlines()) > 9:
            time.sleep(600)
        return found

    LoggingDetector.detect = detect_and_wait
    BoxJob(settings).run()


def test_kill_and_go_on(tmp_path, records):
    whole, killed = (settings_for(tmp_path, records, name) for name in ("whole", "killed"))
    BoxJob(whole).run()
    merge(whole)
    log = tmp_path / "log"
    log.unlink()
    child = in_child(lambda: run_to_fourth_batch(killed))
    while child.is_alive() and not (log.exists() and len(log.read_text().splitlines()) == 12):
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    shards = killed.work / "detect"
    assert len(list(read_journals(shards))) == 3
    with pytest.raises(Incomplete, match="have no result yet"):
        merge(killed)
    # What a kill may leave of a line.
    next(shards.iterdir()).open("ab").write(b'{"line": 9, "results": [{"boxes": [[0, 0')
    BoxJob(killed).run()
    merge(killed)
    lines = [line.value["line"] for line in read_journals(shards)]
    assert sorted(lines) == list(range(14))
    assert content(killed) == content(whole) and content(killed, "report.json") == content(whole, "report.json")
    assert len(set(log.read_text().splitlines())) == 40
    assert len(log.read_text().splitlines()) == 40 + 3  # the batch under way again


def test_a_full_disk_ends_a_run_and_it_goes_on_when_there_is_room(tmp_path, records):
    whole, full = (settings_for(tmp_path, records, name) for name in ("whole", "full"))
    BoxJob(whole).run()
    merge(whole)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(step, done, count):
        if step == "detect" and done >= 9:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))

    try:
        with pytest.raises(NoRoomError, match=r"full while writing .*\.journal"):
            BoxJob(full, fill_disk).run()
        with pytest.raises(Incomplete):
            merge(full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    looked_at = len((tmp_path / "log").read_text().splitlines())
    BoxJob(full).run()
    merge(full)
    assert content(full) == content(whole)
    again = len((tmp_path / "log").read_text().splitlines()) - looked_at
    assert again == 40 - 9


@pytest.mark.parametrize("gone", ["", "work", "work/detect"])
def test_a_folder_that_is_gone_is_no_success(tmp_path, records, gone):
    def remove(step, done, count):
        if step == "detect" and done >= 9:
            shutil.rmtree(tmp_path / "out" / gone, ignore_errors=True)

    settings = settings_for(tmp_path, records)
    with pytest.raises(FileNotFoundError, match="was removed while it was written"):
        BoxJob(settings, remove).run()


def test_damaged_results_are_made_again(tmp_path, records):
    whole, damaged = (settings_for(tmp_path, records, name) for name in ("whole", "damaged"))
    for settings in (whole, damaged):
        BoxJob(settings).run()
    merge(whole)
    for number, path in enumerate(sorted((damaged.work).glob("*/*.journal"))):
        data = bytearray(path.read_bytes())
        for place in range(50 + number, len(data), 700):
            data[place] ^= 8
        path.write_bytes(data)
    with pytest.raises(Incomplete, match="not all pictures were read yet"):
        merge(damaged)
    BoxJob(damaged).run()
    merge(damaged)
    assert content(damaged) == content(whole) and content(damaged, "report.json") == content(whole, "report.json")
    plan = bytearray((damaged.work / "plan.npz").read_bytes())
    plan[len(plan) // 2] ^= 1
    (damaged.work / "plan.npz").write_bytes(plan)
    with pytest.raises(ValueError, match=r"plan\.npz is damaged; remove it and start the run again"):
        merge(damaged)
    (damaged.work / "plan.npz").unlink()
    BoxJob(damaged).run()
    merge(damaged)
    assert content(damaged) == content(whole)


def test_faults_become_lines_of_the_ledger(tmp_path):
    records = write_pictures(tmp_path / "pictures", 6)
    folder = records.parent
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "1.png").read_bytes()[:60])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (20_000, 100), "navy").save(folder / "long.png")
    Image.new("RGB", (9, 9), (255, 0, 0)).save(folder / "red.png")
    names = ["empty", "text", "cut", "gone", "dot", "long", "red", "1"]
    (folder / "list.txt").write_text("# mine\n" + "".join(f"{name}.png\n" for name in names))
    settings = settings_for(tmp_path, folder / "list.txt")
    BoxJob(settings).run()
    report = merge(settings)
    ledger = [json.loads(line) for line in (Path(settings.out) / "failures.jsonl").read_text().splitlines()]
    faults = {line["id"]: line["fault"] for line in ledger}
    assert faults.pop("cut.png") in ("truncated", "undecodable")
    assert faults == {
        "empty.png": "empty",
        "text.png": "not a picture",
        "gone.png": "missing",
        "red.png": "ArithmeticError",
    }
    assert "a red picture" in next(line["reason"] for line in ledger if line["id"] == "red.png")
    assert report["failed"] == 5 and report["records"] == 3
    assert set(open_box_store(Path(settings.out) / "boxes.safetensors").keys()) == {"dot.png", "long.png", "1.png"}


@pytest.mark.parametrize("kind", ["absolute", "above", "link"])
@pytest.mark.parametrize("given", ["records.json", "table.tsv"])
def test_pictures_outside_of_the_folder_are_refused(tmp_path, kind, given):
    """Whatever a file from elsewhere names, nothing beyond the folder of pictures is read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for place in (tmp_path / "secret.png", folder / "good.png"):
        Image.new("RGB", (20, 24), "teal").save(place)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    name = {"absolute": str(tmp_path / "secret.png"), "above": "../secret.png", "link": "link.png"}[kind]
    rows = [{"id": "bad", "image": name}, {"id": "good", "image": "good.png"}]
    (folder / "records.json").write_text(json.dumps(rows))
    (folder / "table.tsv").write_text(f"index\timage_path\nbad\t{name}\ngood\tgood.png\n")
    settings = settings_for(tmp_path, folder / given)
    BoxJob(settings).run()
    assert merge(settings)["failures"] == {"outside": 1}
    (line,) = map(json.loads, (Path(settings.out) / "failures.jsonl").read_text().splitlines())
    assert line["id"] == "bad" and line["fault"] == "outside"
    assert "lies outside" in line["reason"] and "--outside-pictures allow" in line["reason"]
    assert set(open_box_store(Path(settings.out) / "boxes.safetensors").keys()) == {"good"}
    allowed = settings_for(tmp_path, folder / given, "allowed", outside_pictures="allow")
    BoxJob(allowed).run()
    assert merge(allowed)["failures"] == {}


def test_colors_are_those_of_the_picture_processor(tmp_path):
    """Deep and transparent pictures are looked at as the model sees them, and a run keeps to one way."""
    Image.fromarray(np.full((20, 24), 100 * 257, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (20, 24), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    (tmp_path / "list.txt").write_text("deep.png\nclear.png\n")
    for mode, colors in (("reference", {(255, 255), (10, 20)}), ("exact", {(100, 100), (255, 255)})):
        settings = settings_for(tmp_path, tmp_path / "list.txt", mode, mode=mode)
        BoxJob(settings).run()
        assert merge(settings)["failures"] == {}
        store = open_box_store(Path(settings.out) / "boxes.safetensors")
        assert {tuple(np.round(20 * (store.get(key).boxes[0, 2:] - 1))) for key in store.keys()} == colors
    with pytest.raises(ValueError, match="mode"):
        BoxJob(settings_for(tmp_path, tmp_path / "list.txt", "exact")).run()
    with pytest.raises(ValueError, match="reference"):
        settings_for(tmp_path, tmp_path / "list.txt", mode="other")


def test_a_detector_that_always_fails_stops_the_run(tmp_path, monkeypatch):
    records = write_pictures(tmp_path / "pictures", 60)
    settings = settings_for(tmp_path, records)
    settings.pipeline["detector"]["always_fails"] = True
    with pytest.raises(RuntimeError, match="failed on 50 pictures in a row"):
        BoxJob(settings).run()
    with pytest.raises(Incomplete):
        merge(settings)


def test_no_picture_can_be_read(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "list.txt").write_text("a.png\n")
    settings = settings_for(tmp_path, tmp_path / "list.txt")
    BoxJob(settings).run()
    report = merge(settings)
    assert report["failed"] == report["keys"] == 1 and report["records"] == 0
    assert list(visualize(settings, 3)) == []


def test_other_settings_and_wrong_inputs_are_refused(tmp_path, records):
    BoxJob(settings_for(tmp_path, records))
    with pytest.raises(ValueError, match=r"batch_size|task|frames was 8, is 4"):
        BoxJob(settings_for(tmp_path, records, frames=4))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        BoxJob(settings_for(tmp_path, tmp_path / "none.json", "other"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no picture"):
        BoxJob(settings_for(tmp_path, tmp_path / "empty", "other")).run()
    (tmp_path / "x.json").write_text('[{"image": "a.png"}]')
    for _ in range(2):  # a failed attempt leaves nothing behind
        with pytest.raises(ValueError, match="id is None"):
            BoxJob(settings_for(tmp_path, tmp_path / "x.json", "third")).run()


def test_names_matter_for_boxes_of_a_file(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    rows = [{"id": name, "image": "a.png"} for name in ("one", "two")]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    boxes = [
        {"id": row["id"], "boxes": [[0, 0, n, n]], "scores": [1], "labels": ["x"]} for n, row in enumerate(rows, 3)
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    detector = {"type": "BoxFile", "path": str(tmp_path / "boxes.json")}
    settings = JobSettings([str(tmp_path / "records.jsonl")], str(tmp_path / "out"), {"detector": detector})
    BoxJob(settings).run()
    merge(settings)
    store = open_box_store(tmp_path / "out" / "boxes.safetensors")
    assert store.get("one").boxes[0, 2] == 3 and store.get("two").boxes[0, 2] == 4


def test_pictures_that_a_file_lacks_or_cannot_tell_apart_are_named(tmp_path):
    """Neither reads as a picture without objects."""
    for name in ("train/a", "val/a", "train/b"):
        path = tmp_path / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "labels" / "empty.txt").touch()
    (tmp_path / "labels" / "classes.txt").write_text("thing\n")
    (tmp_path / "images").mkdir()
    for number, name in enumerate(("a", "b", "gone", "empty")):
        Image.new("RGB", (20, 20 + number)).save(tmp_path / "images" / f"{name}.png")
    detector = {"type": "YoloBoxes", "folder": str(tmp_path / "labels")}
    settings = JobSettings([str(tmp_path / "images")], str(tmp_path / "out"), {"detector": detector}, workers=1)
    BoxJob(settings).run()
    report = merge(settings)
    assert report["failures"] == {"RecordError": 1} and report["boxes"] == 1
    assert "2 entries that may be 'a'" in report["failure_examples"]["RecordError"][0]
    assert report["not_in_file"] == 1 and report["not_in_file_examples"] == ["gone.png"]
    assert "warning: 1 pictures are not in the file of boxes and have none, such as 'gone" in format_report(report)
    assert set(open_box_store(Path(settings.out) / "boxes.safetensors").keys()) == {"b.png", "gone.png", "empty.png"}


def test_tables(tmp_path):
    import base64
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), "teal").save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    rows = [("1", text), ("2", text), ("3", "1"), ("4", text[:-9])]
    table = "index\tquestion\timage\n" + "".join(f"{index}\twhat?\t{image}\n" for index, image in rows)
    (tmp_path / "bench.tsv").write_text(table)
    settings = settings_for(tmp_path, tmp_path / "bench.tsv")
    BoxJob(settings).run()
    report = merge(settings)
    assert report["records"] == 3 and report["different_pictures"] == 1 and report["failed"] == 1
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_boxes_of_the_miniature_find_its_digits(tmp_path):
    """At least 95 % of the digits at IoU 0.5 on held-out pictures, through the whole job."""
    from torch import from_numpy
    from torchvision.ops import box_iou

    made = tmp_path / "made"
    done = forked.run(NANO / "make_data.py", "--stage1", 1, "--stage2", 1, "--heldout", 40, "--out", made)
    assert done.status == 0, done.err
    pictures = made / "images" / "heldout"
    rows = [{"id": f"heldout-{path.stem}", "image": path.name} for path in sorted(pictures.iterdir())]
    (tmp_path / "records.json").write_text(json.dumps(rows))
    settings = JobSettings(
        [str(tmp_path / "records.json")],
        str(tmp_path / "out"),
        {"detector": {"type": "ProposalDetector"}},
        images=str(pictures),
    )
    BoxJob(settings).run()
    merge(settings)
    store = open_box_store(tmp_path / "out" / "boxes.safetensors")
    exact = made / "heldout_exact_boxes.json"
    truth = {record["id"]: record for record in json.loads(exact.read_text())}
    hits = []
    for row in rows:
        record = truth[row["id"]]
        digits = [box for box, label in zip(record["boxes"], record["labels"], strict=True) if label.isdigit()]
        found = store.get(row["id"]).boxes
        overlap = box_iou(from_numpy(np.array(digits)), from_numpy(found.copy()))
        hits += (overlap.amax(dim=1) >= 0.5).tolist() if len(found) else [False] * len(digits)
    assert len(hits) > 100 and np.mean(hits) >= 0.95
