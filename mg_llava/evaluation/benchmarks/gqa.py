"""GQA: balanced questions about scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.benchmarks.vqa import ask_shortly
from mg_llava.evaluation.benchmarks.yes_no import file_opener
from mg_llava.evaluation.scorers.files import find_files, read_json_lines
from mg_llava.evaluation.scorers.gqa import load_gqa
from mg_llava.registry import BENCHMARKS


@BENCHMARKS.register_module()
class GQA(Benchmark):
    """GQA from ``testdev_balanced_questions.json`` (and LLaVA's question jsonl, if given), pictures in a folder."""

    scorer: ClassVar[str] = "gqa"
    id_field: ClassVar[str] = "question_id"
    text_field: ClassVar[str] = "text"
    headline: ClassVar[tuple[str, str]] = ("official", "accuracy")

    def questions(self) -> Sequence[Question]:
        """The questions of the jsonl, or else the balanced ones of the JSON."""
        for path in find_files(self.data, "*.jsonl"):
            lines = read_json_lines(path)
            return [self._question(str(line["question_id"]), line["text"], line["image"]) for line in lines]
        return [
            self._question(name, ask_shortly(one["question"]), f"{one['imageId']}.jpg")
            for name, one in load_gqa(self.data).questions.items()
            if one.get("isBalanced", True)
        ]

    def _question(self, name: str, text: str, image: str) -> Question:
        opener = file_opener((self.image_folder or self.data[0].parent / "images") / image, f"question {name}")
        return Question(name, text, opener, image, name)
