"""A page of pictures with the true box, the box that the model named, and the question."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mg_llava.data.pictures.files import PictureError, to_rgb
from mg_llava.data.pictures.frames import Frame, from_shares
from mg_llava.data.pictures.geometry import BoxMode
from mg_llava.drawing.lettering import load_font
from mg_llava.drawing.marks import Mark, draw_marks
from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.results import RunResult
from mg_llava.work.atomic import write_text

GALLERY_FILE = "boxes.html"
TRUE_COLOR, FOUND_COLOR = "#3cb44b", "#e6194b"
_SIDE = 560
_RULES = ("box_text", "merged_boxes")
"""Rules whose boxes are shares of the original picture."""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1300px; padding: 0 1rem; color: #16181d }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(380px, 1fr)); gap: 1.5rem }
figure { margin: 0 } img { max-width: 100% } figcaption { overflow-wrap: anywhere } .note { color: #667 }
"""


def write_gallery(benchmark: Benchmark, run: RunResult, count: int, mode: BoxMode = "reference") -> Path | None:
    """Write ``boxes.html`` beside the results of a run; None where the benchmark is not about boxes.

    Args:
        benchmark: The benchmark.
        run: Its result.
        count: How many pictures, spread evenly over the questions; those with the least overlap come first.
        mode: How pictures become RGB.
    """
    samples = next((run.score["rules"][name]["per_sample"] for name in _RULES if name in run.score["rules"]), None)
    if samples is None:
        return None
    questions = {str(question.id): question for question in benchmark.questions()}
    replies = {str(line["id"]): line["text"] for line in run.samples}
    step = max(1, len(samples) // max(1, count))
    chosen = sorted(samples[::step][:count], key=lambda sample: sample["iou"])
    figures = [_figure(questions[str(one["id"])], one, replies.get(str(one["id"]), ""), mode) for one in chosen]
    path = run.folder / GALLERY_FILE
    write_text(path, _page(f"{benchmark.name}: {len(figures)} of {len(samples)} questions", figures))
    return path


def draw_pair(image: Image.Image, true: Sequence[float], found: Sequence[float] | None) -> Image.Image:
    """A picture with the true box, green, and the one of the reply, red and dashed; shares of the picture, xyxy."""
    scale = _SIDE / max(image.size)
    sheet = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    marks = [Mark(_placed(true, sheet.size), TRUE_COLOR, "true")]
    if found is not None:
        marks.append(Mark(_placed(found, sheet.size), FOUND_COLOR, "reply", dashed=True))
    draw_marks(sheet, marks, 3, load_font(14))
    return sheet


def _placed(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (value * side for value, side in zip(box, size * 2, strict=True))
    return x1, y1, x2, y2


def _figure(question: Question, sample: Mapping[str, Any], reply: str, mode: BoxMode) -> str:
    text = f"<b>{escape(question.text)}</b><br>{escape(reply) or '(no reply)'}"
    facts = f"{escape(str(sample['id']))}: overlap {sample['iou']:.2f}, {sample['n_boxes']} boxes"
    shown = _picture(question, sample, mode)
    return f'<figure>{shown}<figcaption>{text}<br><span class="note">{facts}</span></figcaption></figure>'


def _picture(question: Question, sample: Mapping[str, Any], mode: BoxMode) -> str:
    assert question.picture is not None
    try:
        opened = question.picture()
    except PictureError as error:
        return f'<p class="note">{escape(str(error))}</p>'
    image = to_rgb(opened[0] if isinstance(opened, list) else opened, mode)
    content = io.BytesIO()
    boxes = [_of_picture(sample[name], image.size, sample.get("frame", "original")) for name in ("answer", "parsed")]
    draw_pair(image, boxes[0], boxes[1]).save(content, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}">'


def _of_picture(box: Sequence[float] | None, size: tuple[int, int], frame: Frame) -> Any:
    """A box in shares of a frame as shares of the original picture."""
    if box is None or frame == "original":
        return box
    return (from_shares(np.array([box]), size, frame)[0] / np.tile(size, 2)).tolist()


def _page(title: str, figures: Sequence[str]) -> str:
    legend = f'<span style="color: {TRUE_COLOR}">true box</span>, <span style="color: {FOUND_COLOR}">reply</span>'
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1><p>{legend}</p>\n"
        f"<main>{''.join(figures)}</main></body></html>\n"
    )
