"""A picture with its boxes, the question and the answer, as one picture."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mg_llava.data.inputs import PictureLike, list_pictures, open_shown
from mg_llava.data.pictures.files import to_rgb
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.drawing.boxes import MARGIN, PAPER, draw_boxes, draw_text
from mg_llava.drawing.lettering import load_font
from mg_llava.inference.requests import Answer

INK, ANSWER_INK = "#222222", "#0b5d1e"


def draw_answer(
    picture: PictureLike | Sequence[PictureLike] | None,
    question: str,
    answer: Answer,
    min_side: int = 640,
    max_side: int = 1600,
    font: str | Path | None = None,
    processor: PictureProcessor | None = None,
) -> Image.Image:
    """Draw what a model was asked, saw and answered.

    Args:
        picture: The pictures of the request, or its video, whose frames are drawn; they stand side by side.
        question: The question.
        answer: The answer, with the boxes the model saw.
        min_side: Small pictures are enlarged until their longer side has this many pixels.
        max_side: Large ones are reduced to this.
        font: A TrueType file, for scripts that PIL's own font does not have.
        processor: Of the predictor, so that pictures are drawn as they were seen; None for plain ones.

    Returns:
        An RGB picture.

    Raises:
        ValueError: If pictures and answer do not belong together.
    """
    pictures = open_shown(list_pictures(picture, "the answer"), max(1, len(answer.pictures)), "the answer")
    if processor is not None:
        pictures = [to_rgb(image, processor.mode, processor.apply_exif) for image in pictures]
    if len(pictures) != len(answer.pictures):
        raise ValueError(f"{len(pictures)} pictures for an answer about {len(answer.pictures)}")
    drawn = [
        draw_boxes(image, seen.boxes, seen.labels, seen.scores, min_side, max_side, font)
        for image, seen in zip(pictures, answer.pictures, strict=True)
    ]
    width = sum(image.width + MARGIN for image in drawn) + MARGIN if drawn else min_side
    height = max((image.height for image in drawn), default=0)
    face = load_font(max(18, width // 36), font)
    text = draw_text(
        [("Question: " + question, INK), ("Answer: " + (answer.text or "(nothing)"), ANSWER_INK)], width, face
    )
    sheet = Image.new("RGB", (width, height + MARGIN + text.height), PAPER)
    left = MARGIN
    for image in drawn:
        sheet.paste(image, (left, MARGIN))
        left += image.width + MARGIN
    sheet.paste(text, (0, height + MARGIN))
    return sheet
