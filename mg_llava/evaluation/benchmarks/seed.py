"""SEED-Bench from its own JSON: the questions about pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mg_llava.data.records.tables import plain_id
from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.benchmarks.multiple_choice import LETTER_REQUEST
from mg_llava.evaluation.benchmarks.yes_no import file_opener
from mg_llava.evaluation.scorers.joining import ScoreResult
from mg_llava.evaluation.scorers.seed import load_seed
from mg_llava.registry import BENCHMARKS


@BENCHMARKS.register_module()
class SEED(Benchmark):
    """SEED-Bench with the pictures in ``image_folder`` (``SEED-Bench-image``); arguments as of ``Benchmark``.

    Questions about videos are not asked, and count as missing in ``total``: quote ``image``.
    """

    scorer: ClassVar[str] = "seed"
    id_field: ClassVar[str] = "question_id"
    text_field: ClassVar[str] = "text"
    headline: ClassVar[tuple[str, str]] = ("official", "image")

    def questions(self) -> Sequence[Question]:
        """The questions about pictures."""
        return [self._question(item) for item in load_seed(self.data).questions if item["data_type"] == "image"]

    def score(self, predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
        """As of ``Benchmark``, with a warning for the videos."""
        result = super().score([dict(line) for line in predictions], **options)
        result["warnings"].append("questions about videos were not asked: quote 'image', not 'total'")
        return result

    def _question(self, item: Mapping[str, Any]) -> Question:
        options = [f"{letter}. {item[f'choice_{letter.lower()}']}" for letter in "ABCD"]
        text = "\n".join([item["question"], *options, LETTER_REQUEST])
        number = plain_id(str(item["question_id"]))
        name = str(item["data_id"])
        picture = (self.image_folder or self.data[0].parent / "SEED-Bench-image") / name
        return Question(number, text, file_opener(picture, f"question {number}"), name, number)
