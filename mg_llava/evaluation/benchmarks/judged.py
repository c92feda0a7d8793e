"""Benchmarks with free answers that a judge grades: MM-Vet, LLaVA-Bench (in the wild)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.benchmarks.yes_no import file_opener
from mg_llava.evaluation.scorers.judge_replies import JudgedQuestion
from mg_llava.evaluation.scorers.llava_bench import load_llava_bench
from mg_llava.evaluation.scorers.mm_vet import load_mm_vet
from mg_llava.registry import BENCHMARKS


class _Judged(Benchmark):
    """Plain questions about pictures in ``image_folder``; ``tools/judge.py`` adds the judge's replies."""

    id_field: ClassVar[str] = "question_id"
    text_field: ClassVar[str] = "text"
    max_new_tokens: ClassVar[int] = 1024

    def _question(self, question: JudgedQuestion) -> Question:
        beside = self.data[0] if self.data[0].is_dir() else self.data[0].parent
        path = (self.image_folder or beside / "images") / question.image
        opener = file_opener(path, f"question {question.id}")
        return Question(question.id, question.text, opener, question.image, question.id, {"prompt": question.text})


@BENCHMARKS.register_module()
class MMVet(_Judged):
    """MM-Vet from ``mm-vet.json``."""

    scorer: ClassVar[str] = "mm_vet"
    headline: ClassVar[tuple[str, str]] = ("official", "total")

    def questions(self) -> Sequence[Question]:
        """All questions."""
        return [self._question(question) for question in load_mm_vet(self.data)]


@BENCHMARKS.register_module()
class LLaVABench(_Judged):
    """LLaVA-Bench (in the wild) from its folder or ``questions.jsonl``."""

    scorer: ClassVar[str] = "llava_bench"
    headline: ClassVar[tuple[str, str]] = ("official", "all")

    def questions(self) -> Sequence[Question]:
        """All questions."""
        return [self._question(question) for question in load_llava_bench(self.data)]
