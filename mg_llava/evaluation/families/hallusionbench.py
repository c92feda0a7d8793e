"""HallusionBench by rule: yes or no to sets of questions about figures and altered figures (rows with a picture).

Metrics: ``aAcc`` (questions), ``fAcc`` (figures with all questions right) and ``qAcc`` (questions right for all
figures), over all and as ``NAME/aAcc`` for each category and l2-category. The official figures, by a GPT judge on all
1129 questions, are not comparable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import Row, cell_or_none, has_picture, id_key, is_missing
from mg_llava.evaluation.asking import YES_NO_REQUEST, table_questions
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import published_table
from mg_llava.evaluation.scoring.figures import group_by, mean, mean_score
from mg_llava.evaluation.scoring.files import only_path, read_rows
from mg_llava.evaluation.scoring.joining import Lines, ScoreResult, join_predictions
from mg_llava.evaluation.scoring.yes_no import reference_yes_no

_PARTS = 6
_IDS = ("index", "question_id", "id")


@dataclass(frozen=True)
class HallusionData:
    """Rows with a picture, the ids of those without, and what is wrong with the table."""

    rows: Sequence[Row]
    text_only: frozenset[str]
    warnings: Sequence[str]


def load_hallusionbench(paths: Sequence[Path]) -> HallusionData:
    """Read the table; raises ``ValueError`` that names file and row if it is malformed."""
    path = only_path(paths, "hallusionbench takes one table")
    rows, warnings = read_rows(path, "question", "answer")
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


def score_hallusionbench(data: HallusionData, predictions: Lines, **options: Any) -> ScoreResult:
    """Score by the rule ``reference`` (MG-LLaVA's and VLMEvalKit's reading; an unclear reply is wrong)."""
    relevant = [line for line in predictions if not {id_key(line.get(name)) for name in _IDS} & data.text_only]
    joined = join_predictions([row["index"] for row in data.rows], relevant, _IDS, ("prediction", "text"))
    if data.rows and all(is_missing(row["answer"]) for row in data.rows):
        return joined.result({}, [*data.warnings, "the table has no answers: nothing is scored"])
    samples: list[dict[str, Any]] = []
    for row, text, line in joined.beside(data.rows):
        parsed = reference_yes_no(text) if line is not None else None
        reply = {"score": float(parsed == row["answer"]), "parsed": parsed, "answer": row["answer"]}
        groups = {column: cell_or_none(row, column) for column in ("category", "l2-category")}
        samples.append({"id": row["index"], **reply, **groups})
    metrics = _figures(samples)
    for column in ("category", "l2-category"):
        for name in sorted({sample[column] for sample in samples} - {None}):
            part = _figures([sample for sample in samples if sample[column] == name])
            metrics |= {f"{name}/{figure}": value for figure, value in part.items()}
    return joined.result({"reference": ({**metrics, "accuracy": metrics["aAcc"]}, samples)}, data.warnings)


def _figures(samples: Lines) -> dict[str, float]:
    def sets_right(place: int) -> float:
        groups = group_by(samples, lambda one: (one["l2-category"], _parts(one["id"])[0], _parts(one["id"])[place]))
        return mean(min(sample["score"] for sample in some) for some in groups.values())

    return {"aAcc": mean_score(samples), "fAcc": sets_right(1), "qAcc": sets_right(2)}


def _parts(index: str) -> list[str]:
    """Set, figure and question."""
    parts = index.split("_")
    return parts[3:6] if len(parts) >= _PARTS else ["", "", "", *parts][-3:]


@BENCHMARKS.register
class HallusionBench(Benchmark):
    """The questions of HallusionBench that have a picture; arguments as of ``Benchmark``."""

    scorer = "hallusionbench"
    form = 'TSV; lines {"index", "prediction"}'
    load, rate = staticmethod(load_hallusionbench), staticmethod(score_hallusionbench)
    _note = "951 questions with a picture, by rule; the official GPT judge has 1129"
    releases = (published_table("hallusionbench", "HallusionBench", caution=_note),)
    headline = ("reference", "aAcc")

    def questions(self) -> Sequence[Question]:
        """All rows with a picture."""
        rows = load_hallusionbench(self.data).rows
        return table_questions(
            rows, self.data[0], self.image_folder, lambda row: f"{row['question']}\n{YES_NO_REQUEST}"
        )
