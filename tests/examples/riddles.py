"""A benchmark: questions in a JSON file, right where the reply is the answer."""

import json

from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.scoring.figures import mean_score
from mg_llava.evaluation.scoring.joining import join_predictions


def load(paths):
    """Rows ``{"id", "question", "answer"}``."""
    return json.loads(paths[0].read_text())


def rate(rows, predictions, **options):
    """Score prediction lines ``{"index", "prediction"}``."""
    joined = join_predictions([row["id"] for row in rows], predictions)
    samples = [{"id": row["id"], "score": float(text == row["answer"])} for row, text, _ in joined.beside(rows)]
    return joined.result({"reference": ({"accuracy": mean_score(samples)}, samples)})


@BENCHMARKS.register
class Riddles(Benchmark):
    """Riddles without pictures."""

    scorer = "riddles"
    load, rate = staticmethod(load), staticmethod(rate)

    def questions(self):
        """See :meth:`Benchmark.questions`."""
        return [Question(row["id"], row["question"]) for row in load(self.data)]
