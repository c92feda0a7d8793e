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
    right = [text == row["answer"] for row, text in zip(rows, joined.texts, strict=True)]
    return make_result(joined, {"reference": {"accuracy": share(sum(right), len(right))}})


@BENCHMARKS.register
class Riddles(Benchmark):
    """Riddles without pictures."""

    scorer = "riddles"
    load = staticmethod(load)
    rate = staticmethod(rate)

    def questions(self):
        """See :meth:`Benchmark.questions`."""
        return [Question(row["id"], row["question"]) for row in load(self.data)]
