"""Published data sets of the benchmarks: their files, where to get them, and the paper's numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MG_LLAVA = {
    "MG-LLaVA Phi3": (73.4, 72.9, 70.2, 35.5, 65.3, 49.3, 73.9, 75.1, 77.9, 47.3, 75.4, None),
    "MG-LLaVA Vicuna-7B": (72.1, 71.9, 69.4, 35.1, 67.3, 47.9, 70.8, 69.3, 80.2, 41.0, 75.5, 47.3),
    "MG-LLaVA Llama3-8B": (76.5, 76.6, 71.5, 36.9, 68.1, 49.0, 76.3, 75.6, 80.7, 46.9, 75.5, None),
    "MG-LLaVA Vicuna-13B": (72.2, 73.5, 70.8, 34.1, 69.6, 52.1, 74.7, 73.4, 81.2, 46.7, 82.0, None),
    "MG-LLaVA Yi1.5-34B": (80.1, 79.1, 73.7, 47.9, 70.0, 56.1, 77.0, 81.1, 82.0, 48.4, 80.5, 50.0),
}
BASELINES = {
    "LLaVA-1.5-7B": (65.2, 66.5, 66.1, 30.3, 58.2, 21.5, 66.8, 55.5, 78.5, 31.1, 65.4, 24.7),
    "LLaVA-1.5-13B": (69.2, 69.2, 68.2, 32.8, 61.3, 24.1, 71.6, 61.1, 80.0, 36.1, 72.5, 27.6),
}
"""Rows of the paper's main tables (arXiv 2406.17770, tables 1 and 2); MM-Vet, LLaVA-W and MMVP are from the picture in
the reference's README. Columns as in ``COLUMNS``."""
COLUMNS = (
    *("MMB-dev", "MMB-test", "SEED-I", "MMStar", "TextVQA", "DocVQA"),
    *("SQA-I", "AI2D", "VQAv2", "MM-Vet", "LLaVA-W", "MMVP"),
)
VIDEO = {
    "MSVD-QA": {"MG-LLaVA Vicuna-7B": 71.5, "Video-LLaVA": 70.7, "Video-ChatGPT": 64.9},
    "MSRVTT-QA": {"MG-LLaVA Vicuna-7B": 59.8, "Video-LLaVA": 59.2, "Video-ChatGPT": 49.3},
}
"""Table 3, accuracy as a GPT judges it."""
GROUNDING_COLUMNS = (
    *("refcoco_val", "refcoco_testa", "refcoco_testb", "refcoco+_val", "refcoco+_testa", "refcoco+_testb"),
    *("refcocog_val", "refcocog_test"),
)
GROUNDING = {
    "GroundingGPT-7B": (88.02, 91.55, 82.47, 81.61, 87.18, 73.18, 81.67, 81.99),
    "Shikra-7B": (87.00, 90.60, 80.20, 81.60, 87.40, 72.10, 82.30, 82.20),
    "InternVL2-8B": (87.1, 91.1, 80.7, 79.8, 87.9, 71.4, 82.7, 82.7),
}
"""Accuracy at an overlap of 0.5 of published neighbours, as one table quotes them; a model of other prompts and frames
than ours, which is why they stand beside the results and are no target."""
PAPER_MODEL = "MG-LLaVA Vicuna-7B"
"""Whose numbers tables quote unless told otherwise."""

HUGGING_FACE = "https://huggingface.co/datasets/"
COCO = "http://images.cocodataset.org/zips/"
COCO_VAL = f"COCO val2014 pictures ({COCO}val2014.zip) to coco/val2014"
EVAL_ZIP = "LLaVA's eval.zip (https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md)"
JUDGED = "a judge scores it (tools/judge.py), whom the result names; numbers of two judges do not compare"
_TABLES = "https://opencompass.openxlab.space/utils/VLMEval/"


@dataclass(frozen=True)
class Release:
    """One data set of a benchmark, as it is published.

    Attributes:
        name: As ``tools/evaluate.py`` takes it.
        data: Files or folders under the data root, in the order that the benchmark's class takes them.
        images: Folder of pictures under the data root; None where they are inside of the data.
        get: What to download, and from where.
        column: Column of the paper's tables, or of ``GROUNDING``; None where there is no number.
        caution: What to know before comparing with the paper or others.
        settings: Further arguments of the class.
    """

    name: str
    data: tuple[str, ...]
    images: str | None = None
    get: str = ""
    column: str | None = None
    caution: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def paper(self) -> dict[str, float]:
        """The numbers of the paper, or of published neighbours, by model, in percent."""
        if self.column in GROUNDING_COLUMNS:
            place = GROUNDING_COLUMNS.index(self.column)
            return {model: row[place] for model, row in GROUNDING.items()}
        if self.column in VIDEO:
            return dict(VIDEO[self.column])
        if self.column is None:
            return {}
        place = COLUMNS.index(self.column)
        rows = {**MG_LLAVA, **BASELINES}
        return {model: row[place] for model, row in rows.items() if row[place] is not None}  # type: ignore[misc]


def published_table(name: str, file: str, column: str | None = None, caution: str = "", get: str = "") -> Release:
    """The release of a table ``file`` with its pictures in it, as VLMEvalKit publishes it or in the same form."""
    return Release(name, (f"LMUData/{file}.tsv",), None, get or f"{_TABLES}{file}.tsv", column, caution)
