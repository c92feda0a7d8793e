"""The miniature's benchmarks: its own seven kinds of questions, and the MMBench and POPE files made of them.

The small LLM has never seen the requests that the public benchmarks add to a question, so its prompts do without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mg_llava.data.pictures.files import open_picture
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.families.multiple_choice import MMBench
from mg_llava.evaluation.families.pope import POPE
from mg_llava.evaluation.scoring.choice_table import options_of


@BENCHMARKS.register
class NanoKinds(Benchmark):
    """``heldout.jsonl``: exact match by kind of question, beside chance; pictures are in ``images/`` beside it.

    ``limit`` in the arguments keeps the questions of the first so many pictures.
    """

    scorer: ClassVar[str] = "nano"
    prompts: ClassVar[tuple[str, ...]] = ("nano",)
    id_field: ClassVar[str] = "id"
    headline: ClassVar[tuple[str, str]] = ("exact", "accuracy")
    max_new_tokens: ClassVar[int] = 24

    def questions(self) -> Sequence[Question]:
        """One question of each kind for each picture."""
        return [self._question(line) for line in self.lines()]

    def lines(self) -> list[dict[str, str]]:
        """The lines of the file."""
        return [json.loads(line) for line in self.data[0].read_text().splitlines()]

    def _question(self, line: Mapping[str, str]) -> Question:
        path = (self.image_folder or self.data[0].parent / "images") / line["image"]
        opener = partial(open_picture, path, f"question {line['id']}")
        return Question(line["id"], line["question"], opener, str(path), line["picture"])

    def score(self, predictions: Sequence[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """Exact match of the stripped text; missing replies are wrong."""
        texts = {line["id"]: line["prediction"] for line in predictions}
        rows = [
            {
                "id": line["id"],
                "score": float(texts.get(line["id"], "").strip() == line["answer"].strip()),
                "parsed": texts.get(line["id"]),
                "answer": line["answer"],
                "category": line["kind"],
            }
            for line in self.lines()
        ]
        kinds = {kind: _mean([r for r in rows if r["category"] == kind]) for kind in {r["category"]: 0 for r in rows}}
        metrics = {"accuracy": _mean(rows), "kinds": kinds}
        return {
            "benchmark": self.scorer,
            "n": len(rows),
            "n_missing": sum(row["parsed"] is None for row in rows),
            "n_unknown": len(set(texts) - {row["id"] for row in rows}),
            "rules": {"exact": {"metrics": metrics, "per_sample": rows}},
        }


@BENCHMARKS.register
class NanoMMBench(MMBench):
    """The choice questions as an MMBench table, four rows each."""

    prompts: ClassVar[tuple[str, ...]] = ("nano",)
    max_new_tokens: ClassVar[int] = 24

    def _question(self, row: Any, pictures: Any) -> Question:
        text = "\n".join([row["question"], *(f"{letter}. {option}" for letter, option in options_of(row).items())])
        return replace(super()._question(row, pictures), text=text, box_key=row["source"])


@BENCHMARKS.register
class NanoPOPE(POPE):
    """The presence questions as POPE's three files."""

    prompts: ClassVar[tuple[str, ...]] = ("nano",)
    max_new_tokens: ClassVar[int] = 24

    def _question(self, question: Any, request: str) -> Question:
        built = super()._question(question, request)
        name = Path(str(question.cells["image"]))
        return replace(built, text=str(question.cells["text"]), box_key=f"{name.parent.name}-{name.stem}")


def _mean(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(row["score"] for row in rows) / len(rows) if rows else 0.0
