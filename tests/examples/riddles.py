"""A benchmark: questions in a JSON file, right where the reply is the answer."""

import json

from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.scoring.joining import join_predictions, make_result, share


def load(paths):
    """Rows ``{"id", "question", "answer"}``."""
    return json.loads(paths[0].read_text())


def rate(rows, predictions, **options):
    """Score prediction lines ``{"index", "prediction"}``."""
    joined = join_predictions([row["id"] for row in rows], predictions)
    right = [float(text == row["answer"]) for row, text in zip(rows, joined.texts, strict=True)]
    each = [{"id": row["id"], "score": score} for row, score in zip(rows, right, strict=True)]
    rule = {"metrics": {"accuracy": share(sum(right), len(right))}, "per_sample": each}
    return make_result(joined, {"reference": rule})


@BENCHMARKS.register
class Riddles(Benchmark):
    """Riddles without pictures."""

    scorer = "riddles"
    load = staticmethod(load)
    rate = staticmethod(rate)

    def questions(self):
        """See :meth:`Benchmark.questions`."""
        return [Question(row["id"], row["question"]) for row in load(self.data)]
