"""Texts of prompts, and questions about pictures in tables, that several families share."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import Row, TablePictures, plain_id
from mg_llava.evaluation.benchmark import Question
from mg_llava.evaluation.scoring.choice_table import CIRCULAR_STEP
from mg_llava.tokens import IMAGE_PLACEHOLDER

LETTER_REQUEST = "Answer with the option's letter from the given choices directly."
SHORT_ANSWER_REQUEST = "Answer the question using a single word or phrase."
YES_NO_REQUEST = "Please answer the question with yes or no."


def ask_shortly(question: str) -> str:
    """A question with the request for a short answer."""
    return f"{question}\n{SHORT_ANSWER_REQUEST}"


def table_questions(
    rows: Sequence[Row], path: Path, image_folder: str | None, prompt: Callable[[Row], str]
) -> list[Question]:
    """Questions about the rows of a table, with pictures in its cells or in the folder."""
    pictures = TablePictures(rows, image_folder, str(path))
    return [picture_question(row, prompt(row), pictures) for row in rows]


def picture_question(row: Row, text: str, pictures: TablePictures, **fields: Any) -> Question:
    """A question about the pictures of a table's row.

    The boxes are those of the row's index; a circular copy has those of its base row, whose picture it shows.
    """
    index, opener = plain_id(row["index"]), pictures.opener(row)
    if opener is None:
        return Question(index, text, fields=fields)
    count, key = pictures.count(row), pictures.key(row)
    frames = count if count > 1 else None
    return Question(
        index, place_pictures(text, count), opener, key, _box_key(row, index, pictures), fields, frames=frames
    )


def place_pictures(text: str, pictures: int) -> str:
    """Put placeholders for several pictures where the text says ``<image 1>``, ``<image 2>``, ...

    The text is left alone, so that the pictures come first, for a single one, or where it does not name each of them
    once and in order.
    """
    marks = re.findall(r"<image (\d+)>", text)
    if pictures < 2 or marks != [str(number) for number in range(1, pictures + 1)]:
        return text
    return re.sub(r"<image \d+>", IMAGE_PLACEHOLDER, text)


def _box_key(row: Row, index: int | str, pictures: TablePictures) -> int | str:
    """The base row's index for a circular copy; a large index without base row, or of another picture, is its own."""
    if not isinstance(index, int) or index < CIRCULAR_STEP:
        return index
    base = pictures.row(index % CIRCULAR_STEP)
    return index if base is None or pictures.key(base) != pictures.key(row) else index % CIRCULAR_STEP
