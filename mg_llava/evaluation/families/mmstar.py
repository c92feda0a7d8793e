"""MMStar: multiple choice whose own rule is more lenient than the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mg_llava.evaluation.benchmark import BENCHMARKS
from mg_llava.evaluation.families.multiple_choice import FIELDS, MultipleChoice, score_multiple_choice
from mg_llava.evaluation.release import published_table
from mg_llava.evaluation.scoring.choice_table import ChoiceTable, Metrics
from mg_llava.evaluation.scoring.joining import ScoreResult, join_predictions, share

_CATEGORY_SIZE = 250
_SIZE = 1500


def mmstar_right(reply: str, answer: str) -> bool:
    """MMStar's own rule: the answer's letter begins the reply, bare, after ``(``, ``option `` or ``the answer is ``.

    It is lenient: ``a dog`` is A, ``because`` is B. An empty reply is wrong.
    """
    letter = answer.lower().strip().replace("\n", " ")
    text = reply.lower().strip().replace("\n", " ")
    if not text:
        return False
    if text[0] == letter:
        return True
    for prefix in ("(", "option ", "the answer is "):
        if text.startswith(prefix):
            return text[len(prefix) : len(prefix) + 1] == letter
    return False


def score_mmstar(table: ChoiceTable, predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
    """``score_multiple_choice`` and ``official``, MMStar's own rule.

    ``official`` has the script's ``final score`` (hits / 1500), each category (hits / 250) and each
    ``category(l2_category)``; and ``accuracy``, hits over the number of questions.
    """
    result = score_multiple_choice(table, predictions)
    if not result["rules"]:
        return result
    joined = join_predictions([row.id for row in table.rows], predictions, *FIELDS)
    samples: list[dict[str, Any]] = []
    hits: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row, text in zip(table.rows, joined.texts, strict=True):
        right = float(row.answer is not None and mmstar_right(text, row.answer))
        hits[row.cell("category") or "", row.cell("l2_category") or ""].append(right)
        samples.append({"id": row.id, "score": right, "answer": row.answer, "category": row.cell("category")})
    metrics: Metrics = {
        "accuracy": share(sum(sample["score"] for sample in samples), len(samples)),
        "final score": sum(sum(values) for values in hits.values()) / _SIZE,
    }
    for category in dict.fromkeys(category for category, _ in hits if category):
        total = sum(sum(values) for (name, _), values in hits.items() if name == category)
        metrics[category] = total / _CATEGORY_SIZE
    metrics |= {f"{name}({l2})": share(sum(v), len(v)) for (name, l2), v in hits.items() if name and l2}
    if len(samples) != _SIZE:
        result["warnings"].append(
            f"the table has {len(samples)} questions, but MMStar's script divides by 1500 and 250 all the same: "
            "see 'accuracy'"
        )
    result["rules"] = {"official": {"metrics": metrics, "per_sample": samples}, **result["rules"]}
    return result


@BENCHMARKS.register
class MMStar(MultipleChoice):
    """MMStar."""

    scorer = "mmstar"
    rate = staticmethod(score_mmstar)
    releases = (
        published_table(
            "mmstar", "MMStar", "MMStar", "the official rule takes the first letter of anything, the others do not"
        ),
    )
