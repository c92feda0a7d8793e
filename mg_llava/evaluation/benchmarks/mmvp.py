"""MMVP: pairs of pictures that CLIP takes for alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.benchmarks.yes_no import file_opener
from mg_llava.evaluation.scorers.mmvp import MmvpQuestion, load_mmvp
from mg_llava.registry import BENCHMARKS


@BENCHMARKS.register_module()
class MMVP(Benchmark):
    """MMVP from ``Questions.csv``; pictures in ``image_folder`` (``MMVP Images``)."""

    scorer: ClassVar[str] = "mmvp"
    id_field: ClassVar[str] = "question_id"
    text_field: ClassVar[str] = "response"
    headline: ClassVar[tuple[str, str]] = ("lmms_eval", "pair_accuracy")

    def questions(self) -> Sequence[Question]:
        """The questions in order; consecutive ones are a pair."""
        return [self._question(question) for question in load_mmvp(self.data)]

    def _question(self, question: MmvpQuestion) -> Question:
        beside = self.data[0] if self.data[0].is_dir() else self.data[0].parent
        picture = (self.image_folder or beside / "MMVP Images") / f"{question.id}.jpg"
        opener = file_opener(picture, f"question {question.id}")
        fields = {"prompt": question.text, "answer": f"({question.answer})"}
        return Question(question.id, question.text, opener, picture.name, question.id, fields)
