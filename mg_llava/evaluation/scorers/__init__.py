"""Scoring rules as pure functions on annotations and predictions; imports neither torch nor a model.

A family of benchmarks is a module with a pair of functions for each benchmark, ``load_X(paths) -> annotations`` and
``score_X(annotations, predictions, **options) -> ScoreResult``, and one row for each name in ``_TABLE``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mg_llava.evaluation.scorers.joining import Joined, ScoreResult, join_predictions, make_result
from mg_llava.evaluation.scorers.predictions import read_predictions

__all__ = [
    "SCORERS",
    "Joined",
    "ScoreResult",
    "Scorer",
    "find_scorer",
    "join_predictions",
    "make_result",
    "read_predictions",
    "score_predictions",
]


@dataclass(frozen=True)
class Scorer:
    """How one benchmark is loaded and scored; its family module is imported at first use.

    Attributes:
        name: Name on the command line.
        module: Family module in this package.
        function: ``X`` of the module's ``load_X`` and ``score_X``.
        help: What ``--data`` and the prediction lines are.
    """

    name: str
    module: str
    function: str
    help: str

    @property
    def load(self) -> Callable[[Sequence[Path]], Any]:
        """Reads the data files into annotations; raises ``ValueError`` that names the file and the row."""
        return getattr(import_module(f"{__name__}.{self.module}"), f"load_{self.function}")

    @property
    def score(self) -> Callable[..., ScoreResult]:
        """Scores prediction dicts against annotations by every rule that applies."""
        return getattr(import_module(f"{__name__}.{self.module}"), f"score_{self.function}")


_MC = 'TSV of VLMEvalKit form; lines {"index", "prediction"}'

# name: (family module, function, help)
_TABLE: dict[str, tuple[str, str, str]] = {
    "mmbench": ("multiple_choice", "multiple_choice", _MC),
    "ccbench": ("multiple_choice", "multiple_choice", _MC),
    "seed_image": ("multiple_choice", "multiple_choice", _MC),
    "mmstar": ("multiple_choice", "mmstar", _MC),
    "scienceqa_image": ("multiple_choice", "multiple_choice", _MC),
    "ai2d": ("multiple_choice", "multiple_choice", _MC),
    "mmmu": ("multiple_choice", "mmmu", _MC),
    "vstar": ("multiple_choice", "multiple_choice", _MC),
    "hrbench": ("multiple_choice", "multiple_choice", _MC),
    "cv_bench": ("multiple_choice", "multiple_choice", _MC),
    "mme_realworld": ("multiple_choice", "multiple_choice", _MC),
    "blink": ("multiple_choice", "multiple_choice", _MC),
    "multiple_choice": ("multiple_choice", "multiple_choice", "any " + _MC),
    "seed": ("seed", "seed", 'SEED-Bench.json; lines {"question_id", "text"}'),
    "scienceqa": (
        "science_qa",
        "scienceqa",
        'folder with problems.json, pid_splits.json, llava_test_CQM-A.json; lines {"question_id", "text"}',
    ),
    "pope": (
        "pope",
        "pope",
        'folder with coco_pope_*.json; lines {"question_id", "category", "text"} (TSV: {"index", "prediction"})',
    ),
    "mme": (
        "mme",
        "mme",
        'TSV, or the release folder; lines {"question_id", "category", "question", "text"} or {"index", "prediction"}',
    ),
    "hallusionbench": ("hallusionbench", "hallusionbench", 'TSV; lines {"index", "prediction"}'),
    "mmvp": ("mmvp", "mmvp", 'Questions.csv; lines {"question_id", "response"}, and "judge" for judged scoring'),
    "textvqa": (
        "vqa_text",
        "textvqa",
        'TextVQA_0.5.1_val.json and the question jsonl, or the TSV; lines {"question_id", "prompt", "text"}',
    ),
    "docvqa": ("vqa_text", "docvqa", 'val_v1.0.json, or the TSV; lines {"index", "prediction"}'),
    "infovqa": ("vqa_text", "docvqa", 'JSON or TSV as for docvqa; lines {"index", "prediction"}'),
    "ocrvqa": ("vqa_text", "ocrvqa", 'TSV; lines {"index", "prediction"}'),
    "chartqa": ("vqa_text", "chartqa", 'TSV; lines {"index", "prediction"}'),
    "vqav2": ("vqav2", "vqav2", 'question and annotation JSON; lines {"question_id", "text"}'),
    "vqav2_submission": ("vqav2", "vqav2_submission", 'all questions as jsonl; lines {"question_id", "text"}'),
    "gqa": ("gqa", "gqa", 'testdev_balanced_questions.json; lines {"question_id", "text"}'),
    "refcoco": ("refcoco", "refcoco", 'JSON list or jsonl; lines {"id", "ans"} or {"id", "pred_text"}'),
    "mathvista": ("mathvista", "mathvista", "test_mini.json; JSON with responses and extracted answers"),
    "mm_vet": ("mm_vet", "mm_vet", "mm-vet.json; judge replies"),
    "llava_bench": ("llava_bench", "llava_bench", "the official files; judge replies"),
    "msvd_qa": ("video_qa", "video_qa", "test_q.json and test_a.json; JSON list with judge replies"),
    "msrvtt_qa": ("video_qa", "video_qa", "test_q.json and test_a.json; JSON list with judge replies"),
}

SCORERS: dict[str, Scorer] = {name: Scorer(name, *row) for name, row in _TABLE.items()}
"""All scorers by name."""

_FALLBACK = "multiple_choice"
_TABLE_SUFFIXES = {".tsv", ".csv"}


def find_scorer(benchmark: str, data: Sequence[Path] = ()) -> Scorer:
    """The scorer of a name as people type it: ``MMBench_DEV_EN`` and ``mmbench`` are the same.

    Args:
        benchmark: A name of ``SCORERS``, in any case, with ``-`` or ``_``, or such a name with a split behind it.
        data: Data files; a name that nothing knows is taken for multiple choice where the data is one TSV that has
            columns ``A`` and ``B``.

    Raises:
        ValueError: If no scorer is found; the message lists the known names and the nearest match.
    """
    name = benchmark.strip().lower().replace("-", "_")
    if name in SCORERS:
        return SCORERS[name]
    squeezed = name.replace("_", "")
    prefixes = [known for known in SCORERS if squeezed.startswith(known.replace("_", ""))]
    if prefixes:
        return SCORERS[max(prefixes, key=len)]
    if len(data) == 1 and Path(data[0]).suffix.lower() in _TABLE_SUFFIXES:
        from mg_llava.data.records.tables import read_header

        if {"A", "B"} <= set(read_header(data[0])):
            return SCORERS[_FALLBACK]
    nearest = difflib.get_close_matches(name, SCORERS, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ValueError(f"no scorer for benchmark {benchmark!r}{hint} Known are {', '.join(sorted(SCORERS))}")


def score_predictions(
    benchmark: str, data: Sequence[str | Path], predictions: Sequence[Mapping[str, Any]], **options: Any
) -> ScoreResult:
    """Score predictions by every rule that applies to a benchmark.

    Args:
        benchmark: Name of the scorer.
        data: The benchmark's files or folders.
        predictions: Prediction lines.
        options: Further settings of the scorer, such as ``box_format`` of refcoco.

    Returns:
        ``benchmark``, ``n`` (questions), ``n_missing`` (questions without a prediction), ``n_unknown`` (predictions of
        no question), ``n_duplicates`` (predictions that a later one of the same id replaced), ``warnings`` and
        ``rules``: for each rule ``metrics`` and ``per_sample`` (a list of dicts with at least ``id`` and ``score``).

    Raises:
        ValueError: If the benchmark is unknown or a data file is malformed.
        FileNotFoundError: If a data file does not exist.
    """
    paths = [Path(path) for path in data]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{benchmark}: data {path} does not exist")
    scorer = find_scorer(benchmark, paths)
    return {"benchmark": benchmark, **scorer.score(scorer.load(paths), predictions, **options)}
