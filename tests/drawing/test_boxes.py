"""Drawings: boxes where they belong, text that fits, inputs left alone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mg_llava.data.pictures.frames import Canvas
from mg_llava.drawing.boxes import COLORS, draw_boxes
from mg_llava.drawing.lettering import load_font, wrap
from mg_llava.drawing.marks import Mark, draw_marks, place_tags
from mg_llava.inference.drawing import draw_answer
from mg_llava.inference.requests import Answer, SeenPicture
from tests.videos import write_video

GRAY = (90, 90, 90)


def gray(width: int = 200, height: int = 100) -> Image.Image:
    return Image.new("RGB", (width, height), GRAY)


def answer_about(*sizes: tuple[int, int], text: str = "a cat", boxes: int = 1) -> Answer:
    seen = [
        SeenPicture(Canvas(*size, 64), np.array([[20.0, 30, 80, 60]] * boxes).reshape(-1, 4), ("cat",) * boxes)
        for size in sizes
    ]
    return Answer(text, pictures=tuple(seen))


def test_box_is_where_it_belongs() -> None:
    picture = gray()
    drawn = np.asarray(draw_boxes(picture, [[20, 40, 80, 60]], min_side=400))
    assert drawn.shape == (200, 400, 3)
    changed = np.argwhere((drawn != GRAY).any(axis=2))
    assert np.abs(changed.min(axis=0) - [80, 40]).max() <= 3
    assert np.abs(changed.max(axis=0) - [120, 160]).max() <= 3
    assert (drawn[84:117, 44:157] == GRAY).all()  # what the box holds stays visible
    assert picture.getextrema() == tuple((value, value) for value in GRAY)


def test_labels_have_colors() -> None:
    boxes = [[10, 40, 30, 60], [60, 40, 80, 60], [110, 40, 130, 60]]
    drawn = draw_boxes(gray(), boxes, ["cat", "dog", "cat"], [0.9, 0.5, 0.25], min_side=200)
    colors = [drawn.getpixel((box[0] - 1, 50)) for box in boxes]
    assert colors[0] == colors[2] != colors[1]
    assert all(f"#{r:02x}{g:02x}{b:02x}" in COLORS for r, g, b in colors)


@pytest.mark.parametrize("boxes", [[], [[-50, -50, 500, 500]], [[0, 0, 0, 0]], [[199, 99, 200, 100], [0, 0, 200, 3]]])
def test_boxes_at_the_edges(boxes: list[list[float]]) -> None:
    drawn = draw_boxes(gray(), boxes, ["a label that is wider than the whole picture"] * len(boxes), min_side=10)
    assert drawn.size == (200, 100)
    assert (np.asarray(drawn) != GRAY).any() == bool(boxes)  # every box leaves a mark, also beside the picture


def test_large_pictures_are_reduced() -> None:
    assert draw_boxes(gray(3000, 10), []).size == (1600, 5)


def test_answer_grows_with_the_text() -> None:
    short = draw_answer(gray(), "what is there?", answer_about((200, 100)))
    long = draw_answer(gray(), "what is there? " * 40, answer_about((200, 100), text="a cat\nand a dog"))
    assert short.width == long.width
    assert short.height < long.height
    pixels = np.asarray(long)
    assert (pixels[:, -8:] == 255).all()  # nothing runs over the margin
    assert (pixels[-4:] == 255).all()
    assert (pixels[-60:] < 128).any()


def test_answer_from_file_several_pictures_and_none(tmp_path: Path) -> None:
    gray().save(tmp_path / "a.png")
    one = draw_answer(tmp_path / "a.png", "what?", answer_about((200, 100), boxes=0))
    two = draw_answer([tmp_path / "a.png", gray(100, 200)], "what?", answer_about((200, 100), (100, 200)))
    assert two.width > one.width
    video = draw_answer(write_video(tmp_path / "a.mp4", frames=5), "what?", answer_about((64, 48), (64, 48)))
    assert video.width == draw_answer([gray(64, 48)] * 2, "what?", answer_about((64, 48), (64, 48))).width
    assert draw_answer(None, "what?", Answer("")).size[1] < one.height
    with pytest.raises(ValueError, match="1 pictures for an answer about 0"):
        draw_answer(gray(), "what?", Answer("nothing"))


def test_wrap() -> None:
    face = load_font(16)
    text = "one two three " * 10 + "w" * 300 + "\nnext 二 line"
    lines = wrap(text, 120, face)
    assert all(face.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")
    assert lines[-1] == "next 二 line"
    assert wrap("", 50, face) == [""]


def test_tags_stay_inside_and_off_each_other() -> None:
    face = load_font(14)
    marks = [Mark((100 + k, 100 + k, 140, 140), "#00aa00", f"{k} digit") for k in range(5)]
    places = place_tags([*marks, Mark((-50, -50, -10, -10), "#00aa00", "far")], (300, 300), 2, face)
    for number, (x1, y1, x2, y2) in enumerate(places):
        assert 0 <= x1 < x2 <= 300 and 0 <= y1 < y2 <= 300
        for left, top, right, bottom in places[:number]:
            shared = max(0, min(x2, right) - max(x1, left)) * max(0, min(y2, bottom) - max(y1, top))
            assert shared < 0.1 * (x2 - x1) * (y2 - y1)


@pytest.mark.parametrize("dashed", [False, True])
def test_lines_lie_outside_the_box(dashed: bool) -> None:
    sheet = gray(100, 100)
    draw_marks(sheet, [Mark((30, 30, 60, 70), "#ff0000", dashed=dashed)], 3, load_font(12))
    drawn = np.asarray(sheet)
    assert (drawn[30:70, 30:60] == GRAY).all()
    share = (drawn[28, 27:64] == (255, 0, 0)).all(axis=1).mean()
    assert 0.3 < share < 0.8 if dashed else share == 1
