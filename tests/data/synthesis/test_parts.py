"""Filters, relations, names, templates, letters, readers of damaged files, and other words for texts."""

import json
import pickle
import string
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from mg_llava.data.records.schema import RecordError
from mg_llava.data.synthesis.flickr30k import Flickr30kReader, read_entities, read_sentences
from mg_llava.data.synthesis.refer import CocoReader, RefCOCOReader, find_refs, load_refs
from mg_llava.data.synthesis.relations import describe_relation, relations_of
from mg_llava.data.synthesis.reserved import picture_ids
from mg_llava.data.synthesis.rewriting import Rewriter, rewrite_texts
from mg_llava.data.synthesis.run import RECORDS_FILE, Synthesis
from mg_llava.data.synthesis.scenes import Link, Scene, Sieve, Thing, sift
from mg_llava.data.synthesis.tasks import TASKS, View
from mg_llava.data.synthesis.writing import LEAST_TEMPLATES, load_templates
from tests.data.synthesis import toys

FIELDS = {
    "text_to_box": {"text"},
    "box_to_text": {"box"},
    "image_to_text": {"object"},
    "image_to_box": {"object"},
    "text_to_image": {"text", "options"},
    "box_to_image": {"box", "options"},
    "box_is_image": {"box", "object"},
    "box_image_to_text": {"box", "object"},
    "text_image_to_box": {"text", "object"},
    "relation": {"first", "second"},
    "relation_to_box": {"box", "predicate"},
    "list": {"label"},
    "caption": set(),
    "presence": {"label"},
    "count": {"label"},
}


def test_there_are_enough_templates_and_each_says_all() -> None:
    assert set(load_templates()) == set(TASKS) == set(FIELDS)
    for task, forms in load_templates().items():
        assert len(set(forms["questions"])) == len(forms["questions"]) >= LEAST_TEMPLATES
        for text in forms["questions"]:
            assert {name for _, name, _, _ in string.Formatter().parse(text) if name} == FIELDS[task], text


def scene(*things: Thing, **options: object) -> Scene:
    return Scene("1", "a.jpg", (200, 100), things, **options)


def test_useless_objects_are_counted_by_reason() -> None:
    objects, phrases, captions = Sieve(), Sieve(), Sieve()
    kept = sift(
        scene(
            Thing((float("nan"), 0, 9, 9), "nan"),
            Thing((20, 20, 20, 40), "empty"),
            Thing((300, 0, 340, 40), "outside"),
            Thing((0, 0, 7.9, 40), "thin"),
            Thing((-50, -50, 210, 110), "whole"),
            Thing((10, 10, 50, 50), "dog", (" a  dog ", "", "A" + " a" * 30, "a dog")),
            Thing((11, 10, 50, 50), "cat", ("A dog",)),
            Thing((100, 10, 150, 60)),
            Thing((100, 10, 150.006, 60), "cat"),
            links=(Link(5, "NEAR <b>", 8), Link(5, "on", 3)),
            captions=("A <image> dog <box:5> and <box:6>; <box:8> here", "Thin <box:3>."),
            complete=("dog", "cat", "thin"),
        ),
        objects,
        phrases,
        captions,
    )
    assert kept is not None and objects.read == 9 == objects.kept + objects.dropped.total()
    assert objects.dropped == {
        "a box that is empty or not finite": 2,
        "a box outside of the picture": 1,
        "a side of less than 8 pixels": 1,
        "more than 90% of the picture": 1,
        "the same words at the same place": 1,
        "no words": 1,
    }
    assert kept.things == (Thing((10, 10, 50, 50), "dog", ("a dog",)), Thing((100, 10, 150.01, 60), "cat"))
    assert (phrases.read, phrases.kept, phrases.dropped.total()) == (5, 1, 4)
    assert kept.links == (Link(0, "NEAR b", 1),)
    assert kept.captions == ("A  image  dog <box:0> and; <box:1> here",)
    assert kept.complete == ("dog",) and (captions.read, captions.kept) == (2, 1)
    assert Scene.from_dict(json.loads(json.dumps(kept.to_dict()))) == kept
    assert sift(scene(Thing((0, 0, 5, 5), "a")), Sieve(), Sieve(), Sieve()) is None
    large = Scene("1", "a", (2000, 1000), (Thing((0, 0, 40, 40), "a"), Thing((0, 0, 60, 40), "b")))
    found = sift(large, objects, phrases, captions)
    assert found is not None and [thing.label for thing in found.things] == ["b"]
    assert objects.dropped["less than 0.1% of the picture"] == 1


def test_relations_are_those_of_the_boxes_and_turn_around() -> None:
    left, right = (0, 0, 20, 20), (60, 0, 100, 40)
    assert relations_of(left, right) == ["left of", "smaller than"]
    assert relations_of(right, left) == ["right of", "larger than"]
    assert relations_of((0, 0, 100, 100), (40, 40, 60, 60)) == ["around", "larger than"]
    assert relations_of((40, 40, 60, 60), (0, 0, 100, 100)) == ["inside", "smaller than"]
    assert relations_of((0, 0, 50, 50), (20, 0, 70, 50)) == ["overlapping"]
    assert relations_of((0, 0, 10, 10), (0, 50, 10, 60)) == ["above"]
    assert describe_relation(["left of", "above", "smaller than"]) == (
        "It is left of, above and smaller than the other one."
    )


def test_a_label_names_an_object_only_where_it_is_the_only_one() -> None:
    things = [Thing((0, 0, 20, 20), "dog"), Thing((50, 0, 70, 20), "dog"), Thing((100, 0, 150, 20), "cat")]
    assert View(scene(*things)).names == [[], [], ["the cat"]]
    with_group = scene(*things, complete=("dog",), present=("cat", "dog"))
    assert View(with_group).names == [[], [], []]  # a group of cats is there too
    named = [Thing((0, 0, 20, 20), "dog", ("left one", "a pet")), Thing((50, 0, 70, 20), "dog", ("A pet",))]
    assert View(scene(*named)).names == [["left one"], []]


def test_rivals_are_hard_first_and_never_at_the_same_place() -> None:
    things = [
        Thing((0, 0, 40, 40), "dog", group="animal"),
        Thing((2, 0, 40, 40), "puppy", group="animal"),
        Thing((50, 0, 90, 40), "car", group="vehicle"),
        Thing((100, 0, 140, 20), "cat", group="animal"),
        Thing((150, 50, 190, 90), "dog", group="animal"),
    ]
    assert View(scene(*things)).rivals(0) == [4, 3, 2]


def test_letters_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    file = toys.write_coco(tmp_path / "instances.json", tmp_path / "pictures", range(1, 121))
    Synthesis(
        [CocoReader(file, tmp_path / "pictures")], tmp_path / "out", tmp_path, wanted={"box_to_image": 600}
    ).run()
    records = [json.loads(line) for line in (tmp_path / "out" / RECORDS_FILE).read_text().splitlines()]
    found: dict[int, Counter[str]] = {3: Counter(), 4: Counter()}
    for record in records:
        found[len(record["objects"])][record["conversations"][1]["value"]] += 1
    assert sum(map(Counter.total, found.values())) == 600
    for options, limit in ((3, 9.21), (4, 11.34)):  # chi-square, p = 0.01
        expected = found[options].total() / options
        assert sum((found[options][letter] - expected) ** 2 for letter in "ABCD"[:options]) / expected < limit


def test_references_are_read_and_nothing_else_is_run(tmp_path: Path) -> None:
    toys.write_refcoco(tmp_path, tmp_path / "pictures")
    assert len(load_refs(find_refs(tmp_path))) == 24
    toys.write_refcoco(tmp_path, tmp_path / "pictures", file="refs(umd).p")
    assert find_refs(tmp_path).name == "refs(umd).p"
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (marker,)

    for content in (pickle.dumps([Evil()]), pickle.dumps([{"ann_id": 1}]), pickle.dumps({}), b"\x80\x02](", b""):
        (tmp_path / "refs(umd).p").write_bytes(content)
        with pytest.raises(RecordError, match=r"refs\(umd\).p"):
            load_refs(tmp_path / "refs(umd).p")
    assert not marker.exists()


def test_damaged_sources_name_file_and_entry(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no refs"):
        RefCOCOReader(tmp_path, tmp_path)
    file = toys.write_json(tmp_path / "instances.json", {"images": [], "annotations": []})
    with pytest.raises(RecordError, match="categories are needed"):
        CocoReader(file, tmp_path)
    content = toys.instances([1], "{}.jpg")
    content["annotations"][0]["bbox"] = [1, 2, 3]
    with pytest.raises(RecordError, match="annotation 100: the box is"):
        list(CocoReader(toys.write_json(file, content), tmp_path).scenes())
    file.write_text('{"images": [')
    with pytest.raises(RecordError, match=r"instances.json is truncated"):
        CocoReader(file, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train.txt does not exist; It needs a folder with"):
        Flickr30kReader(tmp_path, tmp_path)
    folder = toys.write_flickr30k(tmp_path / "entities", tmp_path / "pictures")
    (folder / "Annotations" / "1003.xml").write_text("<annotation>")
    with pytest.raises(RecordError, match=r"1003.xml cannot be read"):
        list(Flickr30kReader(folder, tmp_path / "pictures").scenes())


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("images",), None, "images: found None; a list is needed"),
        (("images", 0), 5, "images, entry 0: found 5; an object is needed"),
        (("images", 0, "id"), [1], r"images, entry 0: id is \[1\]"),
        (("images", 0, "file_name"), None, "images, entry 0: file_name is None"),
        (("images", 0, "width"), float("nan"), "picture 1: width is nan, height 120; pixels are needed"),
        (("annotations", 1, "category_id"), {}, "annotations, entry 1: category_id is {}"),
        (("categories", 0, "name"), None, "categories, entry 0: name is None"),
        (("categories", 1, "name"), "a \ud83d", "picture 1: half of a surrogate pair"),
    ],
)
def test_malformed_annotations_name_file_and_entry(place: tuple, value: Any, message: str, tmp_path: Path) -> None:
    file = toys.write_coco(tmp_path / "instances.json", tmp_path / "pictures", [1])
    content = json.loads(file.read_text())
    reduce(lambda found, key: found[key], place[:-1], content)[place[-1]] = value
    toys.write_json(file, content)
    with pytest.raises(RecordError, match=f"instances.json.*{message}"):
        Synthesis([CocoReader(file, tmp_path / "pictures")], tmp_path / "out", tmp_path).plan()


def test_malformed_references_and_sentences_name_file_and_entry(tmp_path: Path) -> None:
    folder = toys.write_refcoco(tmp_path, tmp_path / "pictures", [1])
    refs = load_refs(find_refs(folder))
    for change, message in (
        ({"split": []}, "entry 1: split is"),
        ({"image_id": "1"}, "entry 1: image_id is '1'"),
        ({"sentences": ["x"]}, "entry 1, sentences, entry 0: found 'x'"),
        ({"ann_id": 7_000}, "reference 1 is about object 7000 of picture 1, not in .*instances.json"),
    ):
        find_refs(folder).write_bytes(pickle.dumps([refs[0], {**refs[1], **change}]))
        with pytest.raises(RecordError, match=rf"refs\(unc\).p.*{message}"):
            list(RefCOCOReader(folder, tmp_path / "pictures").scenes())
    find_refs(folder).write_bytes(b"(" * 100_000 + b"l" * 100_000 + b".")
    with pytest.raises(RecordError, match=r"entry 0: found .*an object is needed"):
        load_refs(find_refs(folder))
    path = tmp_path / "1000.txt"
    for content, message in (
        (b"[/EN#1/people Caf\xe9]", "not UTF-8"),
        (b"[/EN#1/x A man [/EN#2/x with]", "does not end"),
    ):
        path.write_bytes(content)
        with pytest.raises(RecordError, match=f"1000.txt.*{message}"):
            read_sentences(path)


def test_a_picture_that_comes_twice_is_counted_and_used_once(tmp_path: Path) -> None:
    file = toys.write_coco(tmp_path / "instances.json", tmp_path / "pictures", [1, 2])
    content = json.loads(file.read_text())
    toys.write_json(file, {**content, "images": [*content["images"], content["images"][0]]})
    report = Synthesis([CocoReader(file, tmp_path / "pictures")], tmp_path / "out", tmp_path).run()
    names = [json.loads(line)["id"] for line in (tmp_path / "out" / RECORDS_FILE).read_text().splitlines()]
    assert len(names) == len(set(names)) > 0
    found = report["sources"]["instances"]
    assert found["pictures"] == {"read": 3, "kept": 2, "dropped": {"named by an earlier entry": 1}}
    assert found["objects"]["read"] == 15 == found["objects"]["kept"] + sum(found["objects"]["dropped"].values())


def test_entities_have_places_chains_and_boxes(tmp_path: Path) -> None:
    folder = toys.write_flickr30k(tmp_path, tmp_path / "pictures")
    first, second = read_sentences(folder / "Sentences" / "1000.txt")
    assert first.text == "A tall man with brown hair holds a red bag ."
    assert [(one.text, one.chain) for one in first.phrases] == [
        ("A tall man", "10"),
        ("brown hair", "11"),
        ("a red bag", "12"),
    ]
    assert all(first.text[one.start :].startswith(one.text) for one in first.phrases)
    assert second.phrases[-1].chain == "0"
    entities = read_entities(folder / "Annotations" / "1000.xml")
    assert entities.size == toys.SIZE and {chain: len(own) for chain, own in entities.boxes.items()} == {
        "10": 1,
        "12": 1,
        "13": 2,
    }


@pytest.mark.parametrize(
    ("path", "ids"),
    [
        ("coco/COCO_train2014_000000000017.jpg", ("coco:17",)),
        ("train2017/000000000017.jpg", ("coco:17",)),
        ("COCO_val2014_000000000017_3", ("coco:17",)),
        ("vg/VG_100K/2417997.jpg", ()),
        ("flickr30k-images/36979.jpg", ("flickr:36979",)),
        ("other/36979.jpg", ()),
    ],
)
def test_names_of_pictures(path: str, ids: Sequence[str]) -> None:
    assert picture_ids(path) == ids


def test_texts_in_other_words(tmp_path: Path) -> None:
    asked: list[str] = []
    replies = {"a": "the first letter.", "b": "two\nlines", "c": "C", "d": None, "e": "<box>", "f": "w " * 31}

    def ask(request: str) -> str | None:
        asked.append(request.rsplit("\n", 1)[1])
        return replies[asked[-1]]

    rewriter = Rewriter(ask, "toy", share=1.0, workers=1)
    texts = rewriter.chosen([*replies, "a"], 0)
    assert texts == sorted(replies)
    for _ in range(2):
        words, counts = rewrite_texts(rewriter, texts, tmp_path / "words.journal")
        assert words == {"a": "the first letter"}
        assert counts == {
            "more than 30 words": 1,
            "not one plain line": 2,
            "refused": 1,
            "rewritten": 1,
            "unchanged": 1,
        }
    assert asked == texts  # once
    half = Rewriter(ask, "toy", share=0.5).chosen(map(str, range(1000)), 0)
    assert 430 < len(half) < 570


def test_other_words_are_in_the_records(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    toys.write_refcoco(tmp_path / "refcoco", tmp_path / "pictures")
    rewriter = Rewriter(lambda request: "something else" if "left café" in request else None, "toy", share=1.0)
    reader = RefCOCOReader(tmp_path / "refcoco", tmp_path / "pictures")
    report = Synthesis([reader], tmp_path / "out", tmp_path, wanted={"text_to_box": 1000}, rewriter=rewriter).run()
    text = (tmp_path / "out" / RECORDS_FILE).read_text()
    assert text.count("something else") == 9 and "left café" not in text
    assert report["rewriting"] == {"model": "toy", "texts": 6, "refused": 5, "rewritten": 1}
