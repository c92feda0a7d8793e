"""Where boxes come from: specs, missing records, and changes that depend on the seed and the picture alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mg_llava.data.records.schema import NO_BOXES, RecordError, make_box_record
from mg_llava.evaluation.benchmark import Question
from mg_llava.evaluation.box_source import build_box_source, parse_box_spec

SIZE = (100, 80)
RECORDS = {
    f"q{number}": {
        "boxes": [[number, 5, number + 20, 30], [40, 10 + number, 60, 50], [70, 20, 90, 70 + number]],
        "scores": [0.3, 0.9, 0.5],
        "labels": ["a", "b", "c"],
    }
    for number in range(5)
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps([{"id": key, **record} for key, record in RECORDS.items()]))
    return file


@pytest.fixture
def image() -> Image.Image:
    return Image.new("RGB", SIZE)


def question(name: str = "q1", **settings: object) -> Question:
    return Question(name, "what?", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", ["none", "detected", "oracle", "shuffled", "jitter=0.1", "top=10"])
def test_spec_survives_being_written(spec: str) -> None:
    assert str(parse_box_spec(spec)) == spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shufled", "is 'shuffled' meant"),
        ("", "Known: none, detected"),
        ("jitter", "takes a number, as in 'jitter=0.1'"),
        ("jitter=much", "takes a number"),
        ("jitter=0.5", "below 0.5"),
        ("jitter=nan", "below 0.5"),
        ("top=0", "use 'none'"),
        ("top=1.5", "takes a number"),
        ("detected=3", "takes no value"),
    ],
)
def test_wrong_specs_say_what_is_right(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_box_spec(spec)


@pytest.mark.parametrize(("spec", "needs"), [("oracle", "annotations"), ("shuffled", "box file")])
def test_a_spec_without_its_file_is_refused(spec: str, needs: str) -> None:
    with pytest.raises(ValueError, match=needs):
        build_box_source(spec)


def test_boxes_of_a_file_with_counts(store: Path, image: Image.Image) -> None:
    source = build_box_source(str(store))
    (found,), counts = source.look_up(question("anything", box_key="q1"), [image])
    assert found.boxes.tolist() == RECORDS["q1"]["boxes"] and counts == {"with": 1}
    assert source.look_up(question("unknown"), [image]) == ((NO_BOXES,), {"without": 1})
    described = source.describe()
    assert described["spec"] == "detected" and described["file"] == str(store) and len(described["file_hash"]) == 32


def test_no_boxes_at_all(store: Path, image: Image.Image) -> None:
    source = build_box_source("none", store, lambda _: pytest.fail("must not be asked"))
    assert source.look_up(question(), [image]) == ((NO_BOXES,), {"without": 1})


def test_missing_boxes_are_generated_once_a_picture(store: Path) -> None:
    seen = []

    def detect(image: Image.Image) -> dict:
        seen.append(image.mode)
        return {"boxes": [[1, 2, 3, 4]], "scores": [0.7]}

    source = build_box_source("detected", store, detect)
    gray = Image.new("L", SIZE)
    counts = [
        source.look_up(question(name, picture_key="p" if name != "q2" else None), [gray]).counts
        for name in ("x", "y", "q2")
    ]
    assert seen == ["RGB"]
    assert counts == [{"generated": 1}, {"generated": 1}, {"with": 1}]


def test_oracle_never_falls_back_on_the_detector(store: Path, tmp_path: Path, image: Image.Image) -> None:
    exact = tmp_path / "exact.json"
    exact.write_text(json.dumps([{"id": "q1", "boxes": [], "scores": [], "labels": []}]))
    source = build_box_source("oracle", store, lambda _: pytest.fail("must not be asked"), oracle=exact)
    assert source.look_up(question("q2"), [image]).counts == {"without": 1}
    assert source.look_up(question("q1"), [image]).counts == {"with": 1, "empty": 1}


def test_top_keeps_the_best_in_their_order(store: Path) -> None:
    found = build_box_source("top=2", store).look_up(question()).boxes[0]
    assert found.labels == ("b", "c") and found.scores.tolist() == [0.9, 0.5]


def test_jitter_moves_a_little_and_stays_in_the_picture(store: Path, image: Image.Image) -> None:
    boxes = np.array(RECORDS["q4"]["boxes"], dtype=float)
    found = build_box_source("jitter=0.1", store).look_up(question("q4"), [image]).boxes[0]
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    assert (np.abs(found.boxes - boxes) <= 0.1 * sides + 1e-9).all() and (found.boxes != boxes).any()
    assert (found.boxes >= 0).all() and (found.boxes <= [*SIZE, *SIZE]).all()
    still = build_box_source("jitter=0", store).look_up(question("q4"), [image]).boxes[0]
    assert still.boxes.tolist() == boxes.tolist()


@given(seed=st.integers(0, 99), spec=st.sampled_from(["shuffled", "jitter=0.3"]))
def test_draws_depend_on_seed_and_picture_alone(
    seed: int, spec: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "drawn.json"
    file.write_text(json.dumps(RECORDS))
    image = Image.new("RGB", SIZE)
    names = list(RECORDS)
    first, second = (build_box_source(spec, file, seed=seed) for _ in range(2))
    forward = {name: first.look_up(question(name), [image]).boxes[0].boxes.tolist() for name in names}
    assert {
        name: second.look_up(question(name), [image]).boxes[0].boxes.tolist() for name in reversed(names)
    } == forward
    shared = [
        first.look_up(question(name, box_key="q1", picture_key="p"), [image]).boxes[0].boxes.tolist()
        for name in ("m", "n")
    ]
    assert shared[0] == shared[1]


def test_shuffled_boxes_are_of_another_picture_and_fit(tmp_path: Path) -> None:
    small = {"boxes": [[0, 0, 10, 10]], "scores": [0.5], "labels": ["a"], "width": 20, "height": 20}
    other = {"boxes": [[50, 0, 100, 100]], "scores": [0.5], "labels": ["b"], "width": 100, "height": 100}
    file = tmp_path / "sized.json"
    file.write_text(json.dumps({"small": small, "same picture": small, "other": other}))
    source = build_box_source("shuffled", file)
    found = source.look_up(question("small"), [Image.new("RGB", (20, 20))]).boxes[0]
    assert found.labels == ("b",)
    assert found.boxes.tolist() == [[10, 0, 20, 20]]
    assert source.look_up(question("unknown"), [Image.new("RGB", (20, 20))]).counts == {"without": 1}


def test_shuffling_equal_boxes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "equal.json"
    file.write_text(json.dumps({name: RECORDS["q0"] for name in ("q0", "q1")}))
    with pytest.raises(ValueError, match="no other boxes"):
        build_box_source("shuffled", file).look_up(question("q0"))
    file.write_text(json.dumps({"q0": RECORDS["q0"]}))
    with pytest.raises(ValueError, match="at least two"):
        build_box_source("shuffled", file)


def test_frames_of_a_video_have_boxes_each(image: Image.Image) -> None:
    source = build_box_source("detected", None, lambda frame: make_box_record([[0, 0, frame.width, 9]]))
    video = question("v", frames=3, picture_key="v.mp4")
    found, counts = source.look_up(video, [image, image.resize((50, 40)), image])
    assert [record.boxes[0, 2] for record in found] == [100, 50, 100] and counts == {"generated": 3}
    assert build_box_source("none").look_up(video) == ((NO_BOXES,) * 3, {"without": 3})


def test_boxes_of_other_frames_are_refused_with_both_numbers(tmp_path: Path) -> None:
    file = tmp_path / "frames.json"
    file.write_text(json.dumps({f"v#{n}": RECORDS["q0"] for n in range(4)}))
    source = build_box_source("detected", file)
    assert source.look_up(question("v", frames=4, picture_key="v.mp4")).counts == {"with": 4}
    assert source.look_up(question("w", frames=3, picture_key="w.mp4")).counts == {"without": 3}
    for frames in (3, 8):
        with pytest.raises(RecordError, match=f"boxes for 4 frames of video 'v', and {frames} frames are taken"):
            source.look_up(question("v", frames=frames, picture_key="v.mp4"))
