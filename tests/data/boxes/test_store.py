"""Box stores: keys, lookup by content, policies, workers."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mg_llava.data.boxes.convert import convert_boxes
from mg_llava.data.boxes.policy import StandIn
from mg_llava.data.boxes.store import open_box_store, picture_keys
from mg_llava.data.pictures.files import content_hash
from mg_llava.data.records.schema import RecordError, make_box_record

GOOD = {"boxes": [[1, 2, 3, 4], [0, 0, 9.5, 9]], "scores": [0.5, 0.25], "labels": ["a", "b"]}
POLICIES = "'error', 'empty', 'picture', 'corner', 'detect'"


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def picture(value, size=(12, 10)):
    return Image.new("RGB", size, (value, 0, 0))


def open_as(kind, path, records, **kwargs):
    """A store of the records, read from JSON or converted."""
    json_path = write(path / "b.json", records)
    if kind == "json":
        return open_box_store(json_path, **kwargs)
    assert convert_boxes([json_path], path / "b.safetensors").written
    return open_box_store(path / "b.safetensors", **kwargs)


@pytest.mark.parametrize("kind", ["json", "converted"])
@pytest.mark.parametrize("layout", ["list", "dict"])
def test_integer_and_string_ids_are_one_key(tmp_path, kind, layout):
    records = [{"id": 17, **GOOD, "width": 20, "height": 10}, {"id": "x", "boxes": [], "scores": [], "labels": []}]
    store = open_as(kind, tmp_path, records if layout == "list" else {str(r["id"]): r for r in records})
    for key in (17, "17", np.int64(17)):
        assert key in store and store.image_size(key) == (20, 10)
        for record in (store.get(key), store.find(key)):
            assert record.boxes.tolist() == GOOD["boxes"] and record.scores.tolist() == GOOD["scores"]
            assert record.labels == ("a", "b") and record.boxes.dtype == record.scores.dtype == np.float64
    assert len(store) == 2 and len(store.get("x")) == 0 and store.image_size("x") is None
    assert "1" not in store and "y" not in store and store.find("y") is None and list(store.keys()) == ["17", "x"]
    assert store.metadata["records"] == 2 and store.metadata["boxes"] == 2
    assert store.counts(["y", "17", "x", "17"]).tolist() == [0, 2, 0, 2]


@pytest.mark.parametrize("kind", ["json", "converted"])
def test_tags_stay_with_their_pictures(tmp_path, kind):
    records = [
        {"id": "a", **GOOD, "tags": ["dog", "a", "very long"]},
        {"id": "b", **GOOD},
        {"id": "a", **GOOD, "tags": ["cat"]},  # the last counts
        {"id": "c", "boxes": [], "tags": ["dog"]},
    ]
    store = open_as(kind, tmp_path, records)
    assert [store.get(key).tags for key in "abc"] == [("cat",), (), ("dog",)]
    assert store.get("a").labels == ("a", "b")
    with pytest.raises(RecordError, match="tags is a str; a list is needed"):
        open_as("json", tmp_path, [{"id": "a", **GOOD, "tags": "dog"}])


def test_an_empty_store(tmp_path):
    for kind in ("json", "converted"):
        store = open_as(kind, tmp_path, [], missing="empty")
        assert len(store) == 0 and store.find("a") is None and store.check(["a"]) == 1 and list(store.keys()) == []
        assert store.counts(["a", "b"]).tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["json", "converted"])
def test_records_cannot_be_changed(tmp_path, kind):
    record = open_as(kind, tmp_path, {"p": GOOD}).get("p")
    for array in (record.boxes, record.scores):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7


def test_own_boxes_need_neither_scores_nor_labels(tmp_path):
    record = open_box_store(write(tmp_path / "b.json", {"p": {"boxes": [[0, 0, 1, 1]]}})).get("p")
    assert record.scores.tolist() == [1] and record.labels == ("",)


def test_bad_records_refuse_the_file_or_are_left_out(tmp_path):
    path = write(tmp_path / "b.json", {"good": GOOD, "broken": {**GOOD, "scores": [1]}})
    with pytest.raises(RecordError, match=r"b\.json: 1 bad box records .*id 'broken'.*bad_box_record='drop'"):
        open_box_store(path)
    store = open_box_store(path, bad="drop")
    assert "good" in store and "broken" not in store
    with pytest.raises(ValueError, match="allowed: 'error', 'drop'"):
        open_box_store(path, bad="ignore")


def test_duplicate_ids(tmp_path):
    path = write(tmp_path / "b.json", [{"id": 1, **GOOD}, {"id": "1", **GOOD}])
    assert len(open_box_store(path)) == 1
    path.write_text(f'{{"1": {json.dumps(GOOD)}, "1": {json.dumps({**GOOD, "scores": [0.5, 0.9]})}}}')
    with pytest.raises(RecordError, match="id '1': found 2 times, with different boxes"):
        open_box_store(path)
    assert open_box_store(path, bad="drop").get(1).scores.tolist() == [0.5, 0.9]


@pytest.mark.parametrize("text", ['[{"id": 1, "boxes": [[1, 2', '"x"', "[7]", ""])
def test_broken_files_are_named(tmp_path, text):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(RecordError, match=r"b\.json"):
        open_box_store(tmp_path / "b.json")
    with pytest.raises(FileNotFoundError, match=r"no\.json does not exist"):
        open_box_store(tmp_path / "no.json")


@pytest.mark.parametrize("kind", ["json", "converted"])
def test_missing_boxes_are_an_error_by_default(tmp_path, kind):
    store = open_as(kind, tmp_path, {"p": GOOD})
    with pytest.raises(RecordError, match=r"b\.\w+ has no boxes for id 'q'; .*missing_box='empty'"):
        store.get("q")
    with pytest.raises(RecordError, match=r"no boxes for 2 pictures, such as id 'q', 'r'"):
        store.check(["p", "q", "r"])
    assert store.check(["p"]) == 0


@pytest.mark.parametrize(("policy", "empty_box"), [("empty", "none"), ("picture", "picture"), ("corner", "corner")])
def test_stand_ins_are_counted(tmp_path, policy, empty_box):
    store = open_as("json", tmp_path, {"p": GOOD}, missing=policy)
    assert store.missing == policy and store.check(["p", "q"]) == 1 and store.missed == 0
    for expected in (1, 2):
        record = store.get("q")
        assert isinstance(record, StandIn) and len(record) == 0 and record.boxes.shape == (0, 4)
        assert record.empty_box == empty_box and store.missed == expected
    assert not isinstance(store.get("p"), StandIn) and store.missed == 2


def test_boxes_are_detected_now(tmp_path):
    seen = []

    def propose(image):
        seen.append(image.mode)
        return [[0, 0, image.width, 5]], [0.75], ["mark"]

    store = open_as("json", tmp_path, {"p": GOOD}, missing="detect", proposer=propose)
    assert store.get("q", Image.new("L", (12, 10))).boxes.tolist() == [[0, 0, 12, 5]]
    assert store.get("q", lambda: picture(1)).labels == ("mark",) and seen == ["RGB", "RGB"] and store.missed == 2
    assert store.get("p", lambda: pytest.fail("opened in vain")).labels == ("a", "b")
    with pytest.raises(ValueError, match="'q'; missing='detect' needs the picture"):
        store.get("q")
    turn = Image.Transpose.ROTATE_90
    turned = open_box_store(
        tmp_path / "b.json", "detect", proposer=propose, to_frame=lambda image: image.transpose(turn)
    )
    assert turned.get("q", picture(1)).boxes.tolist() == [[0, 0, 10, 5]]


def test_proposers_are_built_from_the_registry(tmp_path):
    proposer = dict(type="mg_llava.ConnectedComponentProposals", max_boxes=3)
    store = open_as("json", tmp_path, {"p": GOOD}, missing="detect", proposer=proposer)
    image = picture(0, (64, 64))
    image.paste((255, 255, 255), (20, 20, 32, 32))
    found = store.get("q", image)
    assert len(found) == 1 and np.abs(found.boxes - [[20, 20, 32, 32]]).max() <= 2


def test_wrong_policies_are_refused_at_the_start(tmp_path):
    path = write(tmp_path / "b.json", {"p": GOOD})
    with pytest.raises(ValueError, match=f"allowed: {POLICIES}"):
        open_box_store(path, missing="ignore")
    with pytest.raises(ValueError, match="needs a proposer"):
        open_box_store(path, missing="detect")
    with pytest.raises(KeyError, match=r"mg_llava\.NoSuchProposer.*known: .*ConnectedComponentProposals"):
        open_box_store(path, missing="detect", proposer=dict(type="mg_llava.NoSuchProposer"))


def test_pictures_are_found_by_content(tmp_path):
    path = write(tmp_path / "b.json", {"p": GOOD, "r": {"boxes": [[0, 0, 1, 1]]}})
    hashes = [("p", "p.png", content_hash(picture(1))), ("r", "r.png", content_hash(picture(2)))]
    hashes.append(("unknown", "z.png", "f" * 32))
    report = convert_boxes([path], tmp_path / "b.safetensors", pictures=hashes)
    assert report.pictures == 2
    store = open_box_store(tmp_path / "b.safetensors", missing="corner")
    assert store.get("renamed", picture(1)).labels == ("a", "b")
    assert store.get(None, lambda: picture(2).convert("RGBA")).boxes.tolist() == [[0, 0, 1, 1]] and store.missed == 0
    assert store.get("p", picture(2)).labels == ("a", "b")
    assert isinstance(store.get("renamed", picture(3)), StandIn) and isinstance(store.get("z"), StandIn)
    # Unknown ids may be found by content, so that they are no reason to refuse training.
    assert open_box_store(tmp_path / "b.safetensors").check(["p", "renamed"]) == 1
    with pytest.raises(RecordError, match="no boxes for this picture"):
        open_box_store(tmp_path / "b.safetensors").get(None, picture(3))


def test_boxes_of_another_detector_are_refused(tmp_path):
    path, target = write(tmp_path / "b.json", {"p": GOOD}), tmp_path / "b.safetensors"
    convert_boxes([path], target, detector="owlv2", settings={"threshold": 0.2}, image_size=[960, 960])
    store = open_box_store(target, detector="owlv2", settings={"threshold": 0.2})
    assert store.metadata["detector"] == "owlv2" and store.metadata["image_size"] == [960, 960]
    for wanted in ({"detector": "yolo"}, {"settings": {"threshold": 0.3}}):
        with pytest.raises(RecordError, match="was made with"):
            open_box_store(target, **wanted)
    with pytest.raises(RecordError, match="made with detector None, not 'owlv2'"):
        open_box_store(path, detector="owlv2")


class Lookup(Dataset):
    """Boxes of the ids ``0`` to ``9``, of which the store has the even ones."""

    def __init__(self, store):
        self.store = store

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return len(self.store.get(index))


@pytest.mark.parametrize("kind", ["json", "converted"])
def test_workers_share_the_store_and_the_count(tmp_path, kind):
    records = [{"id": number, **GOOD} for number in range(0, 10, 2)]
    store = open_as(kind, tmp_path, records, missing="empty")
    loader = DataLoader(Lookup(store), batch_size=None, num_workers=2)
    assert [int(count) for count in loader] == [2, 0] * 5 and store.missed == 5
    copy = pickle.loads(pickle.dumps(store))
    assert copy.get(4).labels == ("a", "b") and len(copy) == 5
    # A converted store is mapped again, not sent.
    large = open_as(kind, tmp_path, [{"id": number, **GOOD} for number in range(2000)])
    assert (len(pickle.dumps(large)) < 20_000) == (kind == "converted")


def test_inputs_are_copied_and_keys_of_several_pictures():
    boxes = np.array([[1.0, 2, 3, 4]])
    record = make_box_record(boxes)
    boxes[:] = 0
    assert record.boxes.tolist() == [[1, 2, 3, 4]]
    assert picture_keys("a", 1) == ["a"] and picture_keys("a", 2) == ["a#0", "a#1"] and picture_keys("a", 0) == []
