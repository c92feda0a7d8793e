"""Records of other projects: what they become, what is refused and in which words, and the same training samples."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mg_llava.batch import TokenCount
from mg_llava.data.boxes.hashing import hash_pictures
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.records.formats import detect_format, to_llava
from mg_llava.data.records.schema import RecordError, parse_record
from mg_llava.detection.run.sources import list_entries
from tests.data.conftest import turns_of
from tests.settings import grouped
from tests.toy import CANVAS, write_tokenizer

LLAVA = {"id": "a", "image": "a.png", "conversations": turns_of("<image>\nWhat?", "A dog.")}
TALK = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A dog."}]
SWIFT = {"messages": TALK, "images": ["a.png"]}
GROUNDED = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>Find the <ref-object> and the <ref-object>."},
        {"role": "assistant", "content": "<bbox> and <bbox>"},
    ],
    "images": ["a.png"],
    "objects": {"ref": ["dog", "cat"], "bbox": [[10, 20, 30, 40], [50, 10, 60, 30]]},
}
SHAREGPT = [
    {
        "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A dog."}],
        "images": ["a.png"],
    },
    {"conversation": [{"human": "<image>What?", "assistant": "A dog."}], "images": "a.png"},
    {"messages": [{"from": "user", "value": "<image>What?"}, {"from": "bot", "value": "A dog."}], "image": ["a.png"]},
]


def with_objects(**changes: Any) -> dict[str, Any]:
    return {**GROUNDED, "objects": {**GROUNDED["objects"], **changes}}


@pytest.mark.parametrize(("raw", "form"), [(SWIFT, "ms-swift"), *((raw, "sharegpt") for raw in SHAREGPT)])
def test_the_same_talk_in_every_format(raw: dict, form: Any) -> None:
    assert detect_format(raw) == form
    record = parse_record(to_llava(raw, form, "f", 7), "f", 7)
    assert (record.id, record.images) == ("7", ("a.png",))
    assert [(turn.role, turn.text) for turn in record.turns] == [("human", "<image>What?"), ("gpt", "A dog.")]
    assert parse_record(to_llava({**raw, "id": "own"}, form), "f", 7).id == "own"


def test_llava_records_are_as_they_were() -> None:
    assert detect_format(LLAVA) == "llava" and to_llava(LLAVA, "llava") is LLAVA
    assert parse_record(to_llava(LLAVA, "sharegpt")) == parse_record(LLAVA)


def test_objects_words_and_a_system_text() -> None:
    assert detect_format(GROUNDED) == "ms-swift"
    record = parse_record(to_llava(GROUNDED, "ms-swift"))
    assert record.turns[0].text == "Be brief.\n<image>Find the dog and the cat."
    assert record.turns[1].text == "<box:0> and <box:1>"
    assert [(region.box, region.label, region.of) for region in record.regions] == [
        ((10, 20, 30, 40), "dog", 0),
        ((50, 10, 60, 30), "cat", 0),
    ]
    system = to_llava({**SWIFT, "system": "Be kind."}, "ms-swift")
    assert system["conversations"][0]["value"] == "Be kind.\n<image>What?"
    several = with_objects(bbox=[[1, 2, 3, 4]] * 2, image_id=[1, 0])
    asked = GROUNDED["messages"][1] | {"content": "<image><image>Find the <ref-object> and the <ref-object>."}
    several |= {"images": ["a.png", "b.png"], "messages": [asked, GROUNDED["messages"][2]]}
    assert [region.picture for region in parse_record(to_llava(several, "ms-swift")).regions] == [1, 0]
    video = {"messages": [{"role": "user", "content": "<video>What?"}, TALK[1]], "videos": ["a.mp4"]}
    assert parse_record(to_llava(video, "ms-swift")).video == "a.mp4"


@pytest.mark.parametrize(
    ("raw", "form", "message"),
    [
        ({"messages": [{"role": ["user"], "content": "a"}]}, "ms-swift", r"turn 0 is \{'content'.*a turn is text of"),
        ({**GROUNDED, "objects": {"bbox": 5}}, "ms-swift", "ref, bbox and image_id are lists"),
        ({**GROUNDED, "objects": {"bbox": [], "bbox_type": []}}, "ms-swift", "more <ref-object> in the text"),
        (
            {**GROUNDED, "objects": {"bbox": [], "bbox_type": [1]}},
            "ms-swift",
            "bbox_type one of real, norm1, norm1000",
        ),
        (SHAREGPT[1] | {"messages": TALK}, "ms-swift", "found messages, conversation"),
        ({"text": "hello"}, "sharegpt", "one list of turns is needed"),
        (LLAVA | {"conversations": "hello"}, "sharegpt", "one list of turns"),
        (
            {"messages": [*TALK, {"role": "tool", "content": "x"}]},
            "ms-swift",
            "turn 2 is .*; a turn is text of one of",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "ms-swift", "turn 0"),
        ({"messages": [{}]}, "ms-swift", "neither role nor from"),
        ({"messages": [*TALK, {"role": "system", "content": "x"}]}, "ms-swift", "turn 2 is of the system"),
        ({"messages": [TALK[0], {**TALK[1], "loss": False}]}, "ms-swift", "without loss"),
        (SWIFT | {"rejected_response": "A cat."}, "ms-swift", "'rejected_response', 'A cat.', would be lost"),
        (SWIFT | {"tools": "[{}]"}, "ms-swift", "'tools'"),
        (SWIFT | {"audios": ["a.wav"]}, "ms-swift", "'audios'"),
        (SWIFT | {"image": "b.png"}, "ms-swift", "'image' and 'images'"),
        (SWIFT | {"videos": ["a", "b"]}, "ms-swift", "2 videos"),
        (GROUNDED, "sharegpt", "which ms-swift's records have.*looks like format='ms-swift'"),
        ({**GROUNDED, "objects": None}, "ms-swift", "there are no objects"),
        ({**GROUNDED, "objects": []}, "ms-swift", "there are no objects"),
        (with_objects(bbox=[[1, 2, 3, 4]]), "ms-swift", "more <bbox> in the text than in objects"),
        (with_objects(bbox=[[1, 2, 3, 4]] * 3), "ms-swift", "fewer <bbox> in the text than in objects, 1 are left"),
        (with_objects(ref=["dog"]), "ms-swift", "more <ref-object>"),
        (with_objects(bbox=[[615, 226], [1, 2, 3, 4]]), "ms-swift", "is a point"),
        (with_objects(bbox_type="norm100"), "ms-swift", "bbox_type one of real, norm1, norm1000; found 'norm100'"),
        (with_objects(angle=[1]), "ms-swift", "objects has .'angle'"),
        (with_objects(image_id=[0]), "ms-swift", "2 bbox, 1 image_id"),
        (with_objects(image_id=[0, 1]), "ms-swift", "object 1 is in picture '1'; there are 1"),
        (with_objects(bbox=[[1, 2, 3], [1, 2, 3, 4]]), "ms-swift", "object 0 has box"),
        (with_objects(bbox=[[1, 2, 10**400, 4], [1, 2, 3, 4]]), "ms-swift", "object 0 has box"),
        # mixed-up conventions
        (with_objects(bbox=[[0.1, 0.2, 0.3, 0.4]] * 2), "ms-swift", "said to be pixels; they look like shares of 1"),
        (with_objects(bbox=[[0.1, 0.2, 0.3, 0.4]] * 2, bbox_type="norm1000"), "ms-swift", "said to be shares of 1000"),
        (with_objects(bbox_type="norm1"), "ms-swift", "said to be shares of 1; it looks like pixels or other shares"),
        (with_objects(bbox=[[1, 2, 3, 1500]] * 2, bbox_type="norm1000"), "ms-swift", "shares of 1000; it looks like"),
    ],
)
def test_what_would_be_lost_or_is_mixed_up_is_refused(raw: dict, form: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message) as error:
        parse_record(to_llava(raw, form, "train.jsonl", 12), "train.jsonl", 12)
    assert "train.jsonl, record 12" in str(error.value)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(RecordError, match="format is 'swift'; allowed: llava, ms-swift, sharegpt"):
        to_llava(SWIFT, "swift")  # type: ignore[arg-type]
    assert (
        detect_format("text") is None and detect_format({"id": 1}) is None and detect_format({"messages": [1]}) is None
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (80, 50), "red").save(tmp_path / "a.png")
    write_tokenizer(tmp_path / "tokenizer")
    return tmp_path


def a_dataset(folder: Path, records: list[dict], form: str, **more: Any) -> LLaVADataset:
    file = folder / f"{form}{len(list(folder.glob('*.json')))}.json"
    file.write_text(json.dumps(records))
    processor = {"type": "mg_llava.PictureProcessor", "image_size": CANVAS}
    return LLaVADataset(
        file, folder, str(folder / "tokenizer"), "vicuna", processor, tokens=TokenCount(4, 1), format=form, **more
    )


def test_samples_are_those_of_llava_records_in_pixels(folder: Path) -> None:
    """Whatever convention the boxes are in; with a token cache too, which knows formats apart."""
    boxes = GROUNDED["objects"]["bbox"]
    shares = {
        of: [[x1 * of / 80, y1 * of / 50, x2 * of / 80, y2 * of / 50] for x1, y1, x2, y2 in boxes] for of in (1, 1000)
    }
    texts = "Be brief.\n<image>Find the dog and the cat.", "<box:0> and <box:1>"
    plain = {"id": 0, "image": "a.png", "conversations": turns_of(*texts)}
    plain["objects"] = [{"box": box, "label": word} for box, word in zip(boxes, ("dog", "cat"), strict=True)]
    wanted = a_dataset(folder, [plain, plain], "llava")[0]
    records = [GROUNDED, *(with_objects(bbox=shares[of], bbox_type=f"norm{of}") for of in (1, 1000))]
    dataset = a_dataset(folder, records, "ms-swift", **grouped(token_cache=folder / "cache"))
    for number in range(3):
        found = dataset[number]
        assert (found["input_ids"], found["labels"]) == (wanted["input_ids"], wanted["labels"])
        assert torch.equal(found["images"][0], wanted["images"][0])
    assert [dataset.record(number).id for number in range(3)] == ["0", "1", "2"]
    with pytest.raises(RecordError, match=r"needs an id.*it looks like format='ms-swift'"):
        a_dataset(folder, records, "llava")
    with pytest.raises(ValueError, match="format is 'x'; allowed: 'llava', 'ms-swift', 'sharegpt'"):
        a_dataset(folder, records, "x")


def test_boxes_far_outside_of_their_picture_are_refused(folder: Path) -> None:
    for box, hint in (
        ([500, 200, 700, 900], "look like thousandths"),
        ([500, 200, 1700, 900], "another picture or size"),
        ([-50, 2, -30, 9], "another picture or size"),
    ):
        dataset = a_dataset(folder, [with_objects(bbox=[box, box])], "ms-swift")
        with pytest.raises(RecordError, match=rf"record '0' of .*is in pixels, the picture is 80 x 50; it.* {hint}"):
            dataset[0]


def test_box_runs_and_hashes_read_them_too(folder: Path) -> None:
    file = folder / "swift.jsonl"
    file.write_text(json.dumps(SWIFT) + "\n" + json.dumps({**SWIFT, "id": "own"}))
    entries = list(list_entries([file], folder, form="ms-swift"))
    assert [entry.keys for entry in entries] == [["0"], ["own"]]
    hashes = list(hash_pictures(file, folder, folder / "journal", 1, form="ms-swift"))
    assert [(one.key, one.path) for one in hashes] == [("0", "a.png"), ("own", "a.png")]
