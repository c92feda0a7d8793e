"""ScienceQA from its own files and LLaVA's list of questions, with and without pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.benchmarks.multiple_choice import LETTER_REQUEST
from mg_llava.evaluation.benchmarks.yes_no import file_opener
from mg_llava.evaluation.scorers.files import find_file, read_json
from mg_llava.evaluation.scorers.science_qa import CONVERSATIONS
from mg_llava.registry import BENCHMARKS
from mg_llava.tokens import IMAGE_PLACEHOLDER


@BENCHMARKS.register_module()
class ScienceQA(Benchmark):
    """The test split of ScienceQA as LLaVA asks it; pictures in ``image_folder`` (``images/test``)."""

    scorer: ClassVar[str] = "scienceqa"
    id_field: ClassVar[str] = "question_id"
    text_field: ClassVar[str] = "text"
    headline: ClassVar[tuple[str, str]] = ("official", "IMG-Accuracy")

    def questions(self) -> Sequence[Question]:
        """All questions of ``llava_test_CQM-A.json``."""
        return [self._question(item) for item in read_json(find_file(self.data, "list of questions", CONVERSATIONS))]

    def _question(self, item: Mapping[str, Any]) -> Question:
        name = str(item["id"])
        asked = item["conversations"][0]["value"].replace(IMAGE_PLACEHOLDER, "").strip()
        text = f"{asked}\n{LETTER_REQUEST}"
        if not item.get("image"):
            return Question(name, text, fields={"prompt": text})
        picture = (self.image_folder or self.data[0] / "images" / "test") / item["image"]
        fields = {"prompt": f"{IMAGE_PLACEHOLDER}\n{text}"}  # by which LLaVA's script knows questions with a picture
        return Question(name, text, file_opener(picture, f"question {name}"), str(picture), name, fields)
