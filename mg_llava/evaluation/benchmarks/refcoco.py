"""RefCOCO, RefCOCO+ and RefCOCOg: where in the picture is what a sentence describes?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.benchmarks.yes_no import file_opener
from mg_llava.evaluation.scorers.joining import ScoreResult
from mg_llava.evaluation.scorers.refcoco import BoxFormat, Referred, load_refcoco
from mg_llava.registry import BENCHMARKS
from mg_llava.tokens import IMAGE_PLACEHOLDER

_PROMPTS = {
    "llava": "Please provide the bounding box coordinate of the region this sentence describes: {}",
    "xtuner": "[refer] give me the location of {}\n" + IMAGE_PLACEHOLDER,
}


@BENCHMARKS.register_module()
class RefCOCO(Benchmark):
    """RefCOCO, RefCOCO+ or RefCOCOg from XTuner's JSON or a LLaVA-style jsonl.

    MG-LLaVA's authors have no such evaluation, so that prompt, frame and rule are ours to choose: the prompt of the
    LLaVA-1.5 mixture that the model is trained on, fractions of the original picture, and an overlap of at least 0.5.

    Args:
        box_format: Whether the model's fractions are of the ``original`` or of the ``padded`` picture.
        **arguments: As of ``Benchmark``. Prompt ``llava`` asks for ``[x1, y1, x2, y2]``; ``xtuner``, with the picture
            behind the sentence, for ``{<x1><y1><x2><y2>}``.
    """

    scorer: ClassVar[str] = "refcoco"
    prompts: ClassVar[tuple[str, ...]] = tuple(_PROMPTS)
    id_field: ClassVar[str] = "id"

    def __init__(self, *args: Any, box_format: BoxFormat = "original", **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.box_format = box_format
        self.text_field = "ans" if self.prompt == "xtuner" else "pred_text"  # type: ignore[misc]
        self.headline = ("xtuner" if self.prompt == "xtuner" else "lmms_eval", "accuracy")  # type: ignore[misc]

    def questions(self) -> Sequence[Question]:
        """All sentences."""
        return [self._question(record) for record in load_refcoco(self.data)]

    def score(self, predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
        """As of ``Benchmark``, with the class's ``box_format``."""
        return super().score([dict(line) for line in predictions], **{"box_format": self.box_format, **options})

    def _question(self, record: Referred) -> Question:
        opener = file_opener(self._path(record.picture), f"sentence {record.id!r}")
        text = _PROMPTS[self.prompt].format(record.sentence)
        return Question(record.id, text, opener, record.picture, record.picture)

    def _path(self, picture: str) -> Path:
        """The picture's file: COCO names its pictures with and without ``COCO_train2014_``."""
        folder = self.image_folder or self.data[0].parent
        names = (picture, f"COCO_train2014_{picture}", picture.removeprefix("COCO_train2014_"))
        return next((folder / name for name in names if (folder / name).is_file()), folder / picture)
