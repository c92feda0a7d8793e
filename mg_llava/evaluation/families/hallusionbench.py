"""HallusionBench by rule: yes or no to sets of questions about figures and altered figures (rows with a picture).

Metrics: ``aAcc`` (questions), ``fAcc`` (figures with all questions right) and ``qAcc`` (questions right for all
figures), over all and as ``NAME/aAcc`` for each category and l2-category. The official figures, by a GPT judge on all
1129 questions, are not comparable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import (
    Row,
    TablePictures,
    cell_or_none,
    has_picture,
    id_key,
    is_missing,
    read_table,
    require_columns,
    unique_rows,
)
from mg_llava.evaluation.asking import YES_NO_REQUEST, picture_question
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import published_table
from mg_llava.evaluation.scoring.joining import ScoreResult, join_predictions, make_result, share
from mg_llava.evaluation.scoring.yes_no import reference_yes_no

_PARTS = 6
_IDS = ("index", "question_id", "id")


@dataclass(frozen=True)
class HallusionData:
    """Rows with a picture, the ids of those without, and what is wrong with the table."""

    rows: Sequence[Row]
    text_only: frozenset[str] = frozenset()
    warnings: Sequence[str] = ()


def load_hallusionbench(paths: Sequence[Path]) -> HallusionData:
    """Read the table.

    Raises:
        ValueError: If it is malformed; the message names file and row.
    """
    if len(paths) != 1:
        raise ValueError(f"hallusionbench takes one table, got {len(paths)}")
    path = paths[0]
    rows, warnings = unique_rows(path, require_columns(path, read_table(path), ("index", "question", "answer")))
    kept = [row for row in rows if has_picture(row)]
    text_only = frozenset(id_key(row["index"]) for row in rows) - {id_key(row["index"]) for row in kept}
    if text_only:
        warnings.append(f"{len(text_only)} of {len(rows)} questions have no picture and are left out, as usual")
    odd = [row for row in kept if len(row["index"].split("_")) != _PARTS]
    if odd:
        warnings.append(
            f"{path}: {len(odd)} indices, such as {odd[0]['index']!r} in row {odd[0].number}, are not of six parts; "
            "set, figure and question were taken from the last three"
        )
    return HallusionData(kept, text_only, warnings)


def score_hallusionbench(data: HallusionData, predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
    """Score by the rule ``reference`` (MG-LLaVA's and VLMEvalKit's reading; an unclear reply is wrong)."""
    relevant = [line for line in predictions if not {id_key(line.get(name)) for name in _IDS} & data.text_only]
    joined = join_predictions([row["index"] for row in data.rows], relevant, _IDS, ("prediction", "text"))
    warnings = [*data.warnings]
    if data.rows and all(is_missing(row["answer"]) for row in data.rows):
        warnings.append("the table has no answers: nothing is scored")
        return make_result(joined, {}, warnings)
    samples: list[dict[str, Any]] = []
    for row, text, line in zip(data.rows, joined.texts, joined.lines, strict=True):
        parsed = reference_yes_no(text) if line is not None else None
        samples.append(
            {
                "id": row["index"],
                "score": float(parsed == row["answer"]),
                "parsed": parsed,
                "answer": row["answer"],
                "category": cell_or_none(row, "category"),
                "l2-category": cell_or_none(row, "l2-category"),
            }
        )
    metrics = _figures(samples)
    for column in ("category", "l2-category"):
        for name in sorted({sample[column] for sample in samples} - {None}):
            part = [sample for sample in samples if sample[column] == name]
            metrics |= {f"{name}/{figure}": value for figure, value in _figures(part).items()}
    metrics["accuracy"] = metrics["aAcc"]
    return make_result(joined, {"reference": {"metrics": metrics, "per_sample": samples}}, warnings)


def _figures(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    figures: dict[Any, list[float]] = defaultdict(list)
    questions: dict[Any, list[float]] = defaultdict(list)
    for sample in samples:
        parts = sample["id"].split("_")
        group, figure, question = parts[3:6] if len(parts) >= _PARTS else ["", "", "", *parts][-3:]
        figures[sample["l2-category"], group, figure].append(sample["score"])
        questions[sample["l2-category"], group, question].append(sample["score"])
    return {
        "aAcc": share(sum(sample["score"] for sample in samples), len(samples)),
        "fAcc": share(sum(min(scores) for scores in figures.values()), len(figures)),
        "qAcc": share(sum(min(scores) for scores in questions.values()), len(questions)),
    }


@BENCHMARKS.register
class HallusionBench(Benchmark):
    """The questions of HallusionBench that have a picture; arguments as of ``Benchmark``."""

    scorer = "hallusionbench"
    form = 'TSV; lines {"index", "prediction"}'
    load = staticmethod(load_hallusionbench)
    rate = staticmethod(score_hallusionbench)
    releases = (
        published_table(
            "hallusionbench",
            "HallusionBench",
            caution="951 questions with a picture, by rule; the official GPT judge has 1129",
        ),
    )
    headline = ("reference", "aAcc")

    def questions(self) -> Sequence[Question]:
        """All rows with a picture."""
        rows = load_hallusionbench(self.data).rows
        pictures = TablePictures(rows, self.image_folder, str(self.data[0]))
        return [picture_question(row, f"{row['question']}\n{YES_NO_REQUEST}", pictures) for row in rows]
