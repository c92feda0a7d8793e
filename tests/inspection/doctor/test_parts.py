"""Parts of the data doctor: judging boxes and sources, proof of coordinates, text, evaluation pictures."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mg_llava.data.pictures.files import content_hash
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.records.schema import Turn, make_box_record
from mg_llava.data.text.budget import TokenBudget
from mg_llava.data.text.conversation import Template
from mg_llava.inspection.doctor import check as check_module
from mg_llava.inspection.doctor.boxes import judge_boxes, judge_values, measure_boxes
from mg_llava.inspection.doctor.check import CheckOptions, check_dataset
from mg_llava.inspection.doctor.coordinates import bound_of, draw_and_find, map_and_return, pixel_bound
from mg_llava.inspection.doctor.findings import KINDS, LEVELS
from mg_llava.inspection.doctor.leakage import hash_eval_pictures, list_eval_pictures
from mg_llava.inspection.doctor.sources import OpenedSource
from mg_llava.inspection.doctor.summary import length_summary
from mg_llava.inspection.doctor.texts import _odd_turns, check_template, check_texts, decode
from mg_llava.inspection.doctor.verdicts import judge_source
from mg_llava.registry import TRANSFORMS
from tests.data.broken import write_clean
from tests.data.conftest import turns_of

DOCTOR = Path(check_module.__file__).parent
SIDE = st.integers(20, 300)
SHARES = st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5)


def test_every_finding_has_a_row_in_the_table():
    assert all(kind.what and kind.fix and kind.level in LEVELS for kind in KINDS.values())
    code = "".join(path.read_text() for path in DOCTOR.glob("*.py"))
    told = set(re.findall(r"(?:Found|tell|telling)\(\s*\"(\w+)\"", code))
    assert len(told) > 20 and told <= set(KINDS)
    assert all(f'"{kind}"' in code for kind in KINDS)  # no row without a use


def boxes_of(shares, size):
    """(n, 4) boxes in pixels from numbers in 0..1."""
    corners = np.array(shares).reshape(-1, 2, 2) * np.array(size)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


@given(SIDE, SIDE, SHARES)
def test_boxes_inside_a_picture_are_not_odd(width, height, shares):
    boxes = boxes_of(shares, (width, height))
    assume(boxes.max() > 2)
    assert judge_boxes(boxes, (width, height)) == []
    assert judge_boxes(boxes, (width, height), made_on=(width, height)) == []


@given(SIDE, SIDE, SHARES)
def test_shares_and_swapped_axes_are_told(width, height, shares):
    boxes = boxes_of(shares, (width, height))
    assume(boxes.max() > 2)
    assert [kind for kind, _ in judge_boxes(boxes / ([width, height] * 2), (width, height))] == ["boxes_normalized"]
    kinds = {kind for kind, _ in judge_boxes(boxes[:, [1, 0, 3, 2]], (width, height))}
    assert kinds <= {"boxes_swapped", "box_overhang", "box_outside"}
    if (boxes[:, 2:].max(axis=0) > 1.2 * np.array([height, width])).any():
        assert kinds == {"boxes_swapped"}
        turned = judge_boxes(boxes[:, [1, 0, 3, 2]], (width, height), is_turned=True)
        assert [kind for kind, _ in turned] == ["boxes_other_orientation"]


def test_boxes_of_other_frames():
    boxes = np.array([[10.0, 10, 90, 50]])
    assert judge_boxes(boxes, (100, 60), made_on=(200, 120)) == [
        ("boxes_other_size", "made on 200 x 120, the picture has 100 x 60")
    ]
    assert judge_boxes(boxes, (100, 60), made_on=(60, 100), is_turned=True)[0][0] == "boxes_other_orientation"
    assert judge_boxes(boxes * 2, (100, 60))[0][0] == "boxes_other_size"
    assert judge_boxes(np.array([[-30.0, -20, 50, 60]]), (640, 480))[0][0] == "box_overhang"
    assert judge_boxes(np.array([[10.0, 10, 90, 50], [700, 100, 800, 200]]), (640, 480))[0][0] == "box_outside"
    assert judge_boxes(np.zeros((0, 4)), (640, 480)) == []


def statistics_of(transform, count=200, seed=0):
    """Statistics of correct boxes after ``transform(boxes, size)``, in pictures of many sizes."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        size = tuple(int(side) for side in rng.integers(100, 600, 2))
        boxes = boxes_of(rng.random((6, 4)).tolist(), size)
        boxes[0, 2:] = size
        boxes = transform(boxes, size)
        kinds = {kind for kind, _ in judge_boxes(boxes, size)}
        rows.append(measure_boxes(boxes, size, kinds))
    return rows


def squeeze(boxes, size):
    """What comes of scaling a detector's padded square down to the picture's size."""
    return boxes / max(size) * np.array([*size, *size])


def as_sizes(center):
    """Boxes with width and height in place of their second corner; those that still look like boxes."""

    def transform(boxes, size):
        sides = boxes[:, 2:] - boxes[:, :2]
        boxes = np.hstack([boxes[:, :2] + sides * center, sides])
        kept = boxes[(boxes[:, 2:] >= boxes[:, :2]).all(axis=1)]
        return kept if len(kept) else np.array([[size[0] * center, size[1] * center, *size]])

    return transform


@pytest.mark.parametrize(
    ("transform", "kinds"),
    [
        (lambda boxes, size: boxes, []),
        (as_sizes(0), ["source_boxes_convention"]),
        (as_sizes(0.5), ["source_boxes_convention"]),
        (lambda boxes, size: boxes[:, [1, 0, 3, 2]], ["source_boxes_swapped"]),
        (lambda boxes, size: boxes / [*size, *size], ["source_boxes_normalized"]),
        (lambda boxes, size: boxes * 2, ["source_boxes_other_size"]),
        (lambda boxes, size: boxes * 0.5, ["source_boxes_small"]),
        (squeeze, ["source_boxes_squeezed", "source_boxes_squeezed"]),
        (lambda boxes, size: boxes / [*size, *size] * 100, ["source_boxes_small"]),
        (lambda boxes, size: boxes / [*size, *size] * 1000, ["source_boxes_other_size"]),
        (lambda boxes, size: boxes / [*size, *size] * 336, ["source_boxes_other_size"]),
        (lambda boxes, size: boxes * 640 / max(size), ["source_boxes_other_size"]),
        (lambda boxes, size: boxes / 4, ["source_boxes_small"]),
        (lambda boxes, size: (boxes / [*size, *size])[:, [1, 0, 3, 2]], ["source_boxes_normalized"]),
        (lambda boxes, size: as_sizes(0)(boxes, size) / [*size, *size], ["source_boxes_normalized"]),
    ],
    ids=(
        "right corner_and_size center_and_size swapped shares larger smaller squeezed percent per_mille resized "
        "long_edge quarter swapped_shares shares_of_corner_and_size"
    ).split(),
)
def test_whole_sources_are_judged(transform, kinds):
    assert [found.kind for found in judge_source(statistics_of(transform))] == kinds
    assert list(judge_source(statistics_of(transform, count=2))) == []


def test_scores_and_sides_out_of_range_are_told():
    def kinds_of(scores, boxes=((0, 0, 9, 9), (1, 1, 5, 5))):
        return [kind for kind, _ in judge_values(make_box_record(boxes, scores))]

    assert kinds_of([0.0, 1.0]) == kinds_of([1.00001, 0.5]) == []
    assert kinds_of([87.5, 12.0]) == kinds_of([-2.2, 3.1]) == kinds_of([0.9, -0.1]) == ["score_range"]
    assert kinds_of([255, 3]) == kinds_of([0.5, 1.01]) == kinds_of([-1e-6, 0.2]) == ["score_range"]
    assert kinds_of([0.5, 0.5], [(3, 0, 3, 9), (1, 1, 5, 5)]) == ["flat_box"]


@pytest.mark.parametrize(
    ("roles", "details"),
    [
        ("hghg", []),
        ("hhg", ["turns 1 and 2 are both questions"]),
        ("hggh", ["turns 2 and 3 are both answers", "it ends with a question"]),
        ("ghg", ["it begins with an answer"]),
        ("hgh", ["it ends with a question"]),
        ("hgghhg", ["turns 2 and 3 are both answers", "turns 4 and 5 are both questions"]),
        ("hggg", ["turns 2 and 3 are both answers", "turns 3 and 4 are both answers"]),
        ("ghhg", ["it begins with an answer", "turns 2 and 3 are both questions"]),
        ("h", ["it ends with a question"]),
    ],
)
def test_turns_that_do_not_alternate_are_told(roles, details):
    found = list(_odd_turns([Turn({"h": "human", "g": "gpt"}[role], "text") for role in roles]))
    assert [text.split(", which")[0].split(" to one")[0] for text in found] == details


def test_a_few_odd_pictures_do_not_condemn_a_source():
    rows = statistics_of(lambda boxes, size: boxes, 180) + statistics_of(lambda b, s: b[:, [1, 0, 3, 2]], 20, seed=1)
    assert list(judge_source(rows)) == []
    assert list(judge_source([])) == []


@given(
    SIDE, SIDE, st.tuples(*[st.floats(0, 1)] * 4), st.sampled_from(["reference", "exact"]), st.booleans(),
    st.sampled_from(["shortest_edge", "squash"]), st.sampled_from([(122, 116, 104), (255, 255, 255)]),
)  # fmt: skip
@settings(max_examples=60)
def test_coordinates_hold_for_every_processor(width, height, share, mode, pad, resize, color):
    processor = PictureProcessor(64, pad_to_square=pad, mode=mode, resize=resize, pad_color=color)
    box = boxes_of([share], (width, height))
    mapped = map_and_return(processor, make_box_record(box), (width, height))
    assert mapped.canvas_error <= bound_of(processor)
    if mapped.example is not None:
        assert mapped.original_error <= (1e-6 if mode == "exact" else 1.5 * max(width, height) / 64 + 1e-6)
        error = draw_and_find(processor, (width, height), mapped.example)
        assert error is None or error <= pixel_bound(processor)


def test_a_processor_that_forgets_the_padding_is_caught(tmp_path):
    @TRANSFORMS.register_module(name="ForgetfulProcessor")
    class Forgetful(PictureProcessor):
        """Places boxes as if there were no padding, in both directions."""

        def place(self, record, canvas, *arguments):
            moved = make_box_record(record.boxes - np.tile(canvas.pad_offset, 2), record.scores, record.labels)
            return super().place(moved, canvas, *arguments)

        def __call__(self, image, boxes=None, *arguments):
            canvas = self.canvas_of(image.size)
            moved = make_box_record(boxes.boxes - np.tile(canvas.pad_offset, 2), boxes.scores, boxes.labels)
            return super().__call__(image, moved, *arguments)

    try:
        data = write_clean(tmp_path / "data", records=2)
        processor = {"type": "mg_llava.ForgetfulProcessor", "image_size": 64, "mode": "exact"}
        report = check_dataset(
            data.arguments(picture_processor=processor), CheckOptions(workers=1, show_progress=False)
        )
        details = [found.detail for found in report.sources[0].findings.examples["coordinates"]]
        assert len(details) == 2 and "canvas pixels off" in details[0] and "a drawn box is" in details[1]
        assert report.errors == 2
    finally:
        TRANSFORMS.module_dict.pop("ForgetfulProcessor")


def source_of(tokenizer, *texts, template="vicuna", **arguments):
    """A source with one record."""
    records = [{"id": "r", "conversations": turns_of(*texts)}]
    settings = {"data_path": "a.json", **arguments}
    budget = TokenBudget(**arguments)
    return OpenedSource(
        "s",
        settings,
        records=records,
        indices=np.arange(1),
        tokenizer=tokenizer,
        template=Template.build(template),
        budget=budget,
    )


def kinds_of(source):
    return [found.kind for found in check_texts([source], (0, 0, 1)).found]


def test_text_that_does_not_come_back_is_found(tokenizers):
    assert kinds_of(source_of(tokenizers["words"], "How many digits?", "Three digits.")) == []
    found = check_texts([source_of(tokenizers["words"], "How many \u03a9?", "Three \u03a9 digits.")], (0, 0, 1)).found
    assert [one.kind for one in found] == ["lossy_text"] and "'How many \u03a9?' comes back as" in found[0].detail
    assert kinds_of(source_of(tokenizers["bytes"], "How many \u03a9?", "Three \u03a9 digits.")) == []


@pytest.mark.parametrize("kind", ["words", "bytes", "no_bos"])
def test_ids_are_decoded_as_the_tokenizer_does(tokenizers, kind):
    tokenizer = tokenizers[kind]
    ids = tokenizer(["How many digits ?", "Three </s> \u03a9 , two."], add_special_tokens=False)["input_ids"]
    wanted = tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert decode(tokenizer, ids) == wanted


@pytest.mark.parametrize("mark", ["<s>", "</s>", "<unk>", "<|im_end|>"])
def test_special_tokens_in_text_are_found(tokenizers, mark):
    # The template's stop word counts, and so does what the tokenizer calls special.
    source = source_of(tokenizers["bytes"], f"What is {mark} here?", "Two.", template="qwen_chat")
    assert kinds_of(source) == ["special_token"]


def test_templates_are_tried_on_the_tokenizer(tokenizers):
    source = source_of(tokenizers["bytes"], "a", "b", template="llama3_chat")
    shown = check_template(source)
    assert (
        source.findings.counts == {} and shown["loss"].endswith("<|eot_id|>") and "How many dogs?" in shown["prompt"]
    )
    source = source_of(tokenizers["bytes"], "a", "b", template={"INSTRUCTION": "<|ask|>{input}<|end|>", "SUFFIX": "x"})
    assert check_template(source) and [one.detail for one in source.findings.examples["template_token"]] == [
        f"'<|ask|>' becomes {len(tokenizers['bytes'].encode('<|ask|>'))} tokens"
    ]


def test_lengths(tokenizers):
    source = source_of(tokenizers["words"], "How many digits are there? " * 9, "Three.", max_length=20)
    result = check_texts([source], (0, 0, 1))
    assert [found.kind for found in result.found] == ["truncated_text"]
    (used,) = result.used
    assert used.length == 20 < used.full_length
    summary = length_summary(result.used, 20, bins=4)
    assert summary["edges"] == [0, 5, 10, 15, 20] and summary["counts"] == [0, 0, 0, 0, 1]
    exact = length_summary([used._replace(full_length=n) for n in (1, 5, 6, 20)], 20, bins=4)
    assert exact["counts"] == [2, 1, 0, 1, 0] and exact["longest"] == 20
    assert length_summary([], 20) == {}


def test_evaluation_pictures_of_every_source(tmp_path):
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)) for i in range(3)]
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        image.save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "notes.txt").write_text("no picture")
    stream = io.BytesIO()
    images[2].save(stream, "BMP")
    data = base64.b64encode(stream.getvalue()).decode()
    (tmp_path / "eval.tsv").write_text(
        f"index\timage\tquestion\n7\t{data}\twhat?\n8\t7\twhich?\n9\t{'x' * 70}\thow?\n"
    )
    (tmp_path / "eval.jsonl").write_text("\n".join(json.dumps({"image": f"{i}.png"}) for i in (0, 1, 5)))
    (tmp_path / "eval.json").write_text(json.dumps([{"images": ["images/0.png", "images/2.png"]}]))
    expected = {"images": [0, 1, 2], "eval.tsv": [2], "eval.jsonl": [0, 1], "eval.json": [0, 2]}
    for name, numbers in expected.items():
        pictures = list_eval_pictures(tmp_path / name)
        hashes = hash_eval_pictures(pictures, (0, len(pictures)))
        assert set(hashes.names) == {content_hash(images[number]) for number in numbers}
        assert [found.kind for found in hashes.found] == ["eval_unreadable"] * (len(pictures) - len(numbers))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_eval_pictures(tmp_path / "none")
    with pytest.raises(ValueError, match="unknown kind"):
        list_eval_pictures(tmp_path / "images" / "notes.txt")
