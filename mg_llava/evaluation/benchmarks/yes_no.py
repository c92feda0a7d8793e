"""Benchmarks that ask for yes or no: POPE, MME and HallusionBench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from PIL import Image

from mg_llava.data.pictures.files import PictureError, open_picture
from mg_llava.data.records.tables import Row, TablePictures
from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.benchmarks.multiple_choice import picture_question
from mg_llava.evaluation.scorers.hallusionbench import load_hallusionbench
from mg_llava.evaluation.scorers.mme import LLAVA_SENTENCE, REFERENCE_SENTENCE, SENTENCE, MmeQuestion, load_mme
from mg_llava.evaluation.scorers.pope import PopeQuestion, load_pope
from mg_llava.registry import BENCHMARKS

YES_NO_REQUEST = "Please answer the question with yes or no."


def file_opener(path: Path, owner: str) -> Callable[[], Image.Image]:
    """Opens a picture file; the ``PictureError`` of a bad one names it and its owner."""
    return partial(open_picture, path, owner)


@BENCHMARKS.register_module()
class POPE(Benchmark):
    """POPE; arguments as of ``Benchmark``.

    Ids are those of LLaVA's question file, which are unique over the splits. Boxes are looked up by the id of the
    label file; in the version with 2910 random questions that id means another picture than in the other splits.

    Prompts: ``reference`` is MG-LLaVA's, ``llava`` asks for a single word or phrase.
    """

    scorer: ClassVar[str] = "pope"
    prompts: ClassVar[tuple[str, ...]] = ("reference", "llava")
    id_field: ClassVar[str] = "question_id"
    text_field: ClassVar[str] = "text"
    headline: ClassVar[tuple[str, str]] = ("official", "f1")

    def questions(self) -> Sequence[Question]:
        """The questions of all splits, split by split."""
        data = load_pope(self.data)
        request = YES_NO_REQUEST if self.prompt == "reference" else LLAVA_SENTENCE
        if data.is_table:
            rows = [question.cells for question in data.questions if isinstance(question.cells, Row)]
            pictures = TablePictures(rows, self.image_folder, str(self.data[0]))
            return [picture_question(row, f"{row['question']}\n{request}", pictures) for row in rows]
        return [self._question(question, request) for question in data.questions]

    def _question(self, question: PopeQuestion, request: str) -> Question:
        name = str(question.cells["image"])
        split = question.splits[0]
        picture = (self.image_folder or self.data[0]) / name
        owner = f"question {question.id} of {split}"
        fields = {"category": split}
        text = f"{question.cells['text']}\n{request}"
        return Question(question.unique_id, text, file_opener(picture, owner), name, question.id, fields)


@BENCHMARKS.register_module()
class MME(Benchmark):
    """MME from the table or the release folder; arguments as of ``Benchmark``.

    Prompts: ``reference`` is MG-LLaVA's wording of the request for yes or no, ``llava`` asks for a single word or
    phrase, ``plain`` leaves the question as it is.
    """

    scorer: ClassVar[str] = "mme"
    prompts: ClassVar[tuple[str, ...]] = ("reference", "llava", "plain")
    headline: ClassVar[tuple[str, str]] = ("official", "total")

    def questions(self) -> Sequence[Question]:
        """All questions; the two about a picture one after the other."""
        data = load_mme(self.data)
        rows = [question.cells for question in data.questions if question.cells is not None]
        pictures = TablePictures(rows, self.image_folder, str(self.data[0]))
        return [self._question(question, pictures) for question in data.questions]

    def _question(self, question: MmeQuestion, pictures: TablePictures) -> Question:
        text = question.text
        if self.prompt == "reference":
            text = text.replace(SENTENCE, REFERENCE_SENTENCE)
        elif self.prompt == "llava":
            text = text.replace(f" {SENTENCE}", f"\n{LLAVA_SENTENCE}")
        fields = {"category": question.task, "question": question.text}
        if question.cells is not None:
            return picture_question(question.cells, text, pictures, **fields)
        if question.file is None:
            owner = f"{self.data[0]}: {question.id}"
            return Question(question.id, text, partial(_no_picture, owner), str(question.id), question.id, fields)
        opener = file_opener(question.file, f"question {question.id}")
        return Question(question.id, text, opener, str(question.file), question.id, fields)


@BENCHMARKS.register_module()
class HallusionBench(Benchmark):
    """The questions of HallusionBench that have a picture; arguments as of ``Benchmark``."""

    scorer: ClassVar[str] = "hallusionbench"
    headline: ClassVar[tuple[str, str]] = ("reference", "aAcc")

    def questions(self) -> Sequence[Question]:
        """All rows with a picture."""
        rows = load_hallusionbench(self.data).rows
        pictures = TablePictures(rows, self.image_folder, str(self.data[0]))
        return [picture_question(row, f"{row['question']}\n{YES_NO_REQUEST}", pictures) for row in rows]


def _no_picture(owner: str) -> Image.Image:
    raise PictureError(f"{owner} has no picture beside it; download the release again", "missing")
