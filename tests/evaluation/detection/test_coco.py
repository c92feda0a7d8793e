"""COCO's numbers: as pycocotools gives them for files, and their bootstrap against data that are drawn by hand."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mg_llava.data.records.schema import BoxRecord, make_box_record
from mg_llava.evaluation.detection.coco import NUMBERS, compare_detections, open_instances, score_detections
from mg_llava.evaluation.detection.shifts import Shift

CLASSES = {3: "dog", 7: "cat", 90: "toothbrush"}  # ids have gaps


def corners(rng: np.random.Generator, count: int) -> np.ndarray:
    start = rng.random((count, 2)) * 150
    return np.concatenate([start, start + 10 + rng.random((count, 2)) * 90], axis=1)


def write(folder: Path, truth: dict[int, BoxRecord]) -> str:
    """Annotations of pictures in COCO's format."""
    numbers = {name: number for number, name in CLASSES.items()}
    rows = [
        (picture, own, label)
        for picture, one in truth.items()
        for own, label in zip(one.boxes, one.labels, strict=True)
    ]
    annotations = [
        {
            "id": number,
            "image_id": picture,
            "category_id": numbers[label],
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
            "area": float(np.prod(box[2:] - box[:2])),
            "iscrowd": 0,
        }
        for number, (picture, box, label) in enumerate(rows, start=1)
    ]
    images = [{"id": picture, "file_name": f"{picture}.png", "width": 300, "height": 300} for picture in truth]
    categories = [{"id": number, "name": name} for number, name in CLASSES.items()]
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(file)


def draw(rng: np.random.Generator, pictures: int) -> tuple[dict[int, BoxRecord], dict[int, BoxRecord]]:
    """Annotations, and detections near them with some others."""
    truth, found = {}, {}
    names = list(CLASSES.values())
    for picture in range(1, pictures + 1):
        boxes = corners(rng, int(rng.integers(0, 6)))
        labels = [str(rng.choice(names)) for _ in boxes]
        truth[picture] = make_box_record(boxes, None, labels)
        shaken = np.sort((boxes + rng.normal(0, 4, boxes.shape)).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        every = np.concatenate([shaken, corners(rng, 3)])
        own = [label if rng.random() < 0.7 else str(rng.choice(names)) for label in labels]
        found[picture] = make_box_record(every, rng.random(len(every)), [*own, *names])
    return truth, found


def by_files(path: str, found: dict[int, BoxRecord], folder: Path) -> list[float]:
    """The official way: result files and COCOeval."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    numbers = {name: number for number, name in CLASSES.items()}
    rows = [
        {"image_id": picture, "category_id": numbers[label], "bbox": [*box[:2], *(box[2:] - box[:2])], "score": score}
        for picture, one in found.items()
        for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True)
    ]
    (folder / "results.json").write_text(json.dumps(rows, default=float))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(path)
        evaluation: Any = COCOeval(truth, truth.loadRes(str(folder / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def test_numbers_of_the_official_library_on_random_detections(tmp_path: Path) -> None:
    truth, found = draw(np.random.default_rng(0), 30)
    path = write(tmp_path, truth)
    scored = score_detections(open_instances(path), found)
    assert list(scored.numbers) == list(NUMBERS)
    assert list(scored.numbers.values()) == pytest.approx(by_files(path, found, tmp_path), abs=1e-12)
    assert 0.1 < scored.numbers["AP"] < scored.numbers["AP50"] < 0.9


def test_one_perfect_box_and_a_wrong_class(tmp_path: Path) -> None:
    one = make_box_record([[10, 20, 110, 90]], [0.4], ["cat"])
    instances = open_instances(write(tmp_path, {5: one}))
    assert score_detections(instances, {5: one}).numbers["AP"] == pytest.approx(1.0, abs=1e-9)
    for label in ("dog", "unheard of"):
        wrong = make_box_record(one.boxes, one.scores, [label])
        assert score_detections(instances, {5: wrong}).numbers["AP"] == 0.0
    assert score_detections(instances, {5: make_box_record([])}).numbers["AP"] == 0.0


def test_redrawn_pictures_are_pictures_of_their_own(tmp_path: Path) -> None:
    """The numbers of pictures drawn with repetition are those of a data set with as many copies."""
    truth, found = draw(np.random.default_rng(1), 8)
    scored = score_detections(open_instances(write(tmp_path, truth)), found)
    assert scored.redrawn(np.arange(8)) == scored.numbers
    chosen = np.array([0, 0, 3, 5, 5, 5, 7, 1])
    copies = {number: picture + 1 for number, picture in enumerate(chosen.tolist(), start=1)}
    (tmp_path / "copies").mkdir()
    path = write(tmp_path / "copies", {number: truth[picture] for number, picture in copies.items()})
    wanted = score_detections(open_instances(path), {number: found[picture] for number, picture in copies.items()})
    assert scored.redrawn(chosen) == pytest.approx(wanted.numbers)
    assert scored.redrawn(np.arange(8)) == scored.numbers  # nothing was changed


def test_difference_with_its_interval(tmp_path: Path) -> None:
    truth, found = draw(np.random.default_rng(2), 25)
    instances = open_instances(write(tmp_path, truth))
    names = {
        picture: [
            truth[picture].labels[number] if number < len(truth[picture]) else label
            for number, label in enumerate(one.labels)
        ]
        for picture, one in found.items()
    }
    better = {picture: make_box_record(one.boxes, one.scores, names[picture]) for picture, one in found.items()}
    raw, refined = (score_detections(instances, one) for one in (found, better))
    interval = compare_detections(raw, refined, "AP50", draws=60)
    assert interval.mean == refined.numbers["AP50"] - raw.numbers["AP50"] > 0
    assert 0 < interval.low < interval.mean < interval.high and interval.n == 25
    same = compare_detections(raw, raw, draws=10)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="different pictures"):
        compare_detections(raw, score_detections(instances, {1: found[1]}))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match=r"bad\.json is no file of COCO's annotations"):
        open_instances(str(tmp_path / "bad.json"))
    with pytest.raises(FileNotFoundError):
        open_instances(str(tmp_path / "none.json"))


def test_shifts() -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert Shift.parse("clean")(image) is image
    halved = np.asarray(Shift.parse("contrast:0.5")(image), dtype=float)
    assert np.abs(halved - (127.5 + (pixels - 127.5) / 2)).max() <= 0.51
    noisy = Shift.parse("noise:20")
    assert np.array_equal(noisy(image, 3), noisy(image, 3)) and not np.array_equal(noisy(image, 3), noisy(image, 4))
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    spread = np.asarray(noisy(grey), dtype=float)
    assert abs(spread.std() - 20) < 1 and (spread[..., 0] == spread[..., 2]).all()
    assert np.asarray(Shift.parse("blur:1.5")(image), dtype=float).std() < pixels.std() / 2
    assert str(Shift.parse("blur:1.5")) == "blur:1.5" and str(Shift()) == "clean"
    for wrong in ("blur", "blur:-1", "fog:2", "noise:x"):
        with pytest.raises(ValueError, match=r"write KIND:SEVERITY, such as blur:1\.5"):
            Shift.parse(wrong)
