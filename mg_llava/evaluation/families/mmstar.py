"""MMStar: multiple choice whose own rule is more lenient than the others."""

from typing import Any

from mg_llava.evaluation.benchmark import BENCHMARKS
from mg_llava.evaluation.families.multiple_choice import FIELDS, MultipleChoice, score_multiple_choice
from mg_llava.evaluation.release import published_table
from mg_llava.evaluation.scoring.choice_table import ChoiceTable
from mg_llava.evaluation.scoring.figures import group_by, mean_score
from mg_llava.evaluation.scoring.joining import Lines, ScoreResult, join_predictions

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


def score_mmstar(table: ChoiceTable, predictions: Lines, **options: Any) -> ScoreResult:
    """``score_multiple_choice`` and ``official``, MMStar's own rule.

    ``official`` has the script's ``final score`` (hits / 1500), each category (hits / 250) and each
    ``category(l2_category)``; and ``accuracy``, hits over the number of questions.
    """
    result = score_multiple_choice(table, predictions)
    if not result["rules"]:
        return result
    joined = join_predictions([row.id for row in table.rows], predictions, *FIELDS)
    samples: list[dict[str, Any]] = []
    for row, text, _ in joined.beside(table.rows):
        right = float(row.answer is not None and mmstar_right(text, row.answer))
        samples.append({"id": row.id, "score": right, "answer": row.answer, "category": row.cell("category")})
    metrics = {"accuracy": mean_score(samples), "final score": sum(one["score"] for one in samples) / _SIZE}
    for category, some in group_by(samples, lambda sample: sample["category"]).items():
        if category:
            metrics[category] = sum(sample["score"] for sample in some) / _CATEGORY_SIZE
    pairs = group_by(
        zip(table.rows, samples, strict=True), lambda pair: (pair[1]["category"], pair[0].cell("l2_category"))
    )
    metrics |= {f"{name}({l2})": mean_score(s for _, s in some) for (name, l2), some in pairs.items() if name and l2}
    if len(samples) != _SIZE:
        result["warnings"].append(
            f"the table has {len(samples)} questions, but MMStar's script divides by 1500 and 250 all the same: "
            "see 'accuracy'"
        )
    official = joined.result({"official": (metrics, samples)})["rules"]
    return {**result, "rules": {**official, **result["rules"]}}


@BENCHMARKS.register
class MMStar(MultipleChoice):
    """MMStar."""

    scorer = "mmstar"
    rate = staticmethod(score_mmstar)
    _note = "the official rule takes the first letter of anything, the others do not"
    releases = (published_table("mmstar", "MMStar", "MMStar", _note),)
