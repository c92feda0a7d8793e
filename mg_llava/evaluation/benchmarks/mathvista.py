"""MathVista: mathematics in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.benchmarks.yes_no import file_opener
from mg_llava.evaluation.scorers.mathvista import load_mathvista, make_query
from mg_llava.registry import BENCHMARKS


@BENCHMARKS.register_module()
class MathVista(Benchmark):
    """MathVista from ``test_mini.json``, pictures (``images/1.jpg``, ...) in ``image_folder``.

    Replies without an extracted answer are scored as they are; ``tools/judge.py mathvista`` has a judge extract it.
    """

    scorer: ClassVar[str] = "mathvista"
    id_field: ClassVar[str] = "pid"
    text_field: ClassVar[str] = "response"
    headline: ClassVar[tuple[str, str]] = ("official", "accuracy")

    def questions(self) -> Sequence[Question]:
        """All problems."""
        folder = self.image_folder or self.data[0].parent
        return [
            Question(
                name,
                make_query(problem),
                file_opener(folder / problem["image"], f"problem {name}"),
                str(problem["image"]),
                name,
            )
            for name, problem in load_mathvista(self.data).items()
        ]
