"""Boxes as text: round trips in every style and frame, tolerant reading, and nothing that a reply holds raises."""

import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.kosmos2.processing_kosmos2 import coordinate_to_patch_index, patch_index_to_coordinate

from mg_llava.data.pictures.frames import Canvas, Frame
from mg_llava.data.text.coordinates import BoxText, Style, are_writable

STYLES, FRAMES = get_args(Style), get_args(Frame)
ALL = [*(BoxText(style, frame) for style in STYLES for frame in FRAMES), BoxText("bins", bins=64)]
BOXES_PER_EXAMPLE = 100
SIDE = st.integers(1, 5000)
PIECES = (
    "<object>",
    "</object>",
    "<patch_index_0033>",
    "<patch_index_9999>",
    "<|box_start|>",
    "<box>",
    "<bin_7>",
    "(1,2)",
)
TOKENS = st.lists(st.sampled_from([*PIECES, "(3, 4,", " ", ","])).map("".join)


def random_boxes(seed, size):
    """(100, 4) boxes inside of a picture."""
    corners = np.random.default_rng(seed).uniform(0, 1, (BOXES_PER_EXAMPLE, 2, 2)) * size
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


@pytest.mark.parametrize("box_text", ALL, ids=str)
@given(size=st.tuples(SIDE, SIDE), seed=st.integers(0, 2**32))
@settings(max_examples=100)
def test_reading_undoes_writing(box_text, size, seed):
    boxes = random_boxes(seed, size)
    text = box_text.write(boxes, size)
    found = box_text.read(text, size)
    assert found.failures == 0 and not found.clamped.any()
    assert (np.abs(found.boxes - boxes) <= np.tile(box_text.bound(size), 2) * (1 + 1e-9)).all()
    assert box_text.write(found.boxes, size) == text
    assert box_text.separator.join(text[start:end] for start, end in found.spans) == text


@pytest.mark.parametrize("box_text", ALL, ids=str)
@given(
    text=st.one_of(st.text(), st.text("[]{}<>()0123456789.,;-+eE bin_\n"), TOKENS, st.text("[1.5, ;]", min_size=20))
)
@settings(max_examples=300)
def test_nothing_raises_and_all_boxes_lie_in_the_frame(box_text, text):
    found = box_text.find(text)
    assert len(found.boxes) == len(found.spans) == len(found.clamped)
    assert ((found.boxes >= 0) & (found.boxes <= 1)).all() and (found.boxes[:, :2] <= found.boxes[:, 2:]).all()
    assert all(box_text.find(text[start:end]).boxes.shape == (1, 4) for start, end in found.spans if ";" not in text)


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("unit3", "[0.100, 0.250, 0.500, 0.750]"),
        ("unit2", "[0.10, 0.25, 0.50, 0.75]"),
        ("int1000", "[100, 250, 500, 750]"),
        ("int100", "{<10><25><50><75>}"),
        ("bins", "<bin_100><bin_250><bin_500><bin_750>"),
        ("shikra", "[0.100,0.250,0.500,0.750]"),
        ("qwen", "<|box_start|>(100,250),(500,750)<|box_end|>"),
    ],
)
def test_forms(style, text):
    assert BoxText(style, "original").write([[100, 50, 500, 150]], (1000, 200)) == text
    # 1000 x 200 lies in a square of 1000 x 1000, from row 400 on
    padded = BoxText(style, "padded").read(text, (1000, 200)).boxes
    assert padded == pytest.approx(np.array([[100, -150, 500, 350]]), abs=1)


@pytest.mark.parametrize(
    ("text", "boxes", "clamped", "failures"),
    [
        ("a [.1,.2,.3,.4] b", [[0.1, 0.2, 0.3, 0.4]], [False], 0),
        ("[ 0.1 0.2 , 0.3,\n0.4, ]", [[0.1, 0.2, 0.3, 0.4]], [False], 0),
        ("[0.1,0.2,0.3,0.4;0.5,0.5,1,1]", [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1, 1]], [False, False], 0),
        ("[0.3, 0.4, 0.1, 0.2]", [[0.1, 0.2, 0.3, 0.4]], [False], 0),
        ("[-0.1, 0, 1.5, 1e-1]", [[0, 0, 1, 0.1]], [True], 0),
        ("[" + "9" * 5000 + ", 0, 0, 0]", [[0, 0, 1, 0]], [True], 0),
        ("[0.1, 0.2, 0.3]", [], [], 1),
        ("[0.1, 0.2, 0.3, 0.4, 0.5]", [], [], 1),
        ("[0.1, 0.2; 0.1, 0.2, 0.3, 0.4]", [[0.1, 0.2, 0.3, 0.4]], [False], 1),
        ("[x: 0.1, y: 0.2, 0.3, 0.4]", [], [], 1),
        ("[0.1, 0.2, 0.3, 0.4", [], [], 1),
        ("[see above] (0.1, 0.2, 0.3, 0.4)", [], [], 0),
        ("", [], [], 0),
    ],
)
def test_tolerant_reading(text, boxes, clamped, failures):
    found = BoxText().find(text)
    assert found.boxes == pytest.approx(np.array(boxes).reshape(-1, 4))
    assert (found.clamped.tolist(), found.failures) == (clamped, failures)


@pytest.mark.parametrize("text", ["{<1><2><3>}", "{<1><2><3><4><5>}", "{<1><2><3><4", "<1><2>, <3>"])
def test_other_than_four_percentages_are_a_failure(text):
    found = BoxText("int100").find(text)
    assert (len(found.boxes), found.failures) == (0, 1)


def test_percentages_need_no_braces():
    assert BoxText("int100").find("at < 10 > <20>, <30> <40>.").boxes.tolist() == [[0.1, 0.2, 0.3, 0.4]]


@given(st.tuples(*[st.floats(0, 1)] * 4))
@settings(max_examples=300)
def test_cells_are_kosmos2s(numbers):
    left, right = sorted(numbers[:2])
    upper, lower = sorted(numbers[2:])
    if right - left < 1e-6 or lower - upper < 1e-6 or max(left, upper) > 1 - 1e-6:
        return
    first, last = coordinate_to_patch_index((left, upper, right, lower), 32)
    box_text = BoxText("kosmos2", "original")
    text = f"<object><patch_index_{first:04d}><patch_index_{last:04d}></object>"
    assert box_text.write([[left, upper, right, lower]], (1, 1)) == text
    assert box_text.find(text).boxes[0] == pytest.approx(patch_index_to_coordinate(first, last, 32))


@pytest.mark.parametrize(
    ("text", "style", "found"),
    [
        ("<box>(100,250),(500,750)</box>", "qwen", 1),
        ("at (100, 250), (500, 750).", "qwen", 1),
        ("<|box_start|>(100,250),(500)<|box_end|>", "qwen", 0),
        ("<patch_index_0000><patch_index_1023>", "kosmos2", 1),
        ("<object><patch_index_0000></object>", "kosmos2", 0),
        ("<object><patch_index_0000><patch_index_5000></object>", "kosmos2", 1),
    ],
)
def test_tolerant_reading_of_marks(text, style, found):
    boxes = BoxText(style).find(text)
    assert (len(boxes.boxes), boxes.failures) == (found, 1 - found)
    assert boxes.clamped.tolist() == [("5000" in text)] * found


def test_shares_of_the_padded_square_are_those_of_the_canvas():
    boxes, size = np.array([[10, 20, 300, 400.0]]), (640, 481)
    on_canvas = Canvas(*size, 1000).to_canvas(boxes)
    assert BoxText("int1000").write(boxes, size) == str(np.rint(on_canvas[0]).astype(int).tolist())


def test_boxes_are_clamped_before_they_are_rounded():
    assert BoxText(frame="original").write([[-50, 20, 300, 4000]], (400, 200)) == "[0.000, 0.100, 0.750, 1.000]"


def test_small_boxes_are_not_asked_for():
    assert are_writable(np.array([[0, 0, 1, 1], [5, 5, 5.9, 100], [5, 5, 100, 5]])).tolist() == [True, False, False]


@pytest.mark.parametrize("boxes", [[[0, 0, float("nan"), 1]], [[5, 0, 1, 1]], [[0, 0, 1, float("inf")]]])
def test_wrong_boxes_are_not_written(boxes):
    with pytest.raises(ValueError, match="x1 <= x2"):
        BoxText().write(boxes, (10, 10))


@pytest.mark.parametrize(
    "settings",
    [
        {"style": "unit4"},
        {"frame": "canvas"},
        {"separator": ", "},
        {"separator": ""},
        {"separator": "] ["},
        {"bins": 1},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        BoxText(**settings)


@pytest.mark.parametrize("given", [{"stile": "unit3"}, "unit3", None, 5])
def test_other_things_than_settings_are_refused(given):
    with pytest.raises(ValueError, match="allowed is a dict of style, frame, separator, bins"):
        BoxText.build(given)
    assert BoxText.build({"style": "int100"}) == BoxText.build(BoxText("int100")) == BoxText("int100")


def test_words_of_bins():
    words = BoxText("bins").words
    assert len(words) == len(set(words)) == 1000 and words[7] == "<bin_007>"
    assert BoxText().words == ()
    assert BoxText("bins", bins=64).words[63:] == ("<bin_063>",)
    assert len(BoxText("kosmos2").words) == 2 + 32 * 32


def test_needs_neither_torch_nor_pillow():
    script = "import sys, mg_llava.data.text.coordinates; print({'torch', 'PIL', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
