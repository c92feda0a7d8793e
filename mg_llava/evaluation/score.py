"""Scores predictions by every rule that applies to a benchmark; imports neither torch nor a model."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark
from mg_llava.evaluation.judging.protocol import JudgeProtocol
from mg_llava.evaluation.scoring.joining import Lines, ScoreResult


def find_scorer(benchmark: str, data: Sequence[Path] = ()) -> type[Benchmark]:
    """The benchmark of a name as people type it: ``MMBench_DEV_EN`` and ``mmbench`` are the same.

    Args:
        benchmark: Name of a scorer, in any case, with ``-`` or ``_``, or such a name with a split behind it.
        data: Data files; a name that nothing knows is taken for multiple choice where the data is one TSV that has
            columns ``A`` and ``B``.

    Raises:
        ValueError: If no scorer is found; the message lists the known names and the nearest match.
    """
    scorers = BENCHMARKS.scorers
    name = benchmark.strip().lower().replace("-", "_")
    if name in scorers:
        return scorers[name]
    squeezed = name.replace("_", "")
    prefixes = [known for known in scorers if squeezed.startswith(known.replace("_", ""))]
    if prefixes:
        return scorers[max(prefixes, key=len)]
    if len(data) == 1 and Path(data[0]).suffix.lower() in (".tsv", ".csv"):
        from mg_llava.data.records.tables import read_header

        if {"A", "B"} <= set(read_header(data[0])):
            return scorers["multiple_choice"]
    nearest = difflib.get_close_matches(name, scorers, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ValueError(f"no scorer for benchmark {benchmark!r}{hint} Known are {', '.join(sorted(scorers))}")


def find_protocol(benchmark: str) -> JudgeProtocol:
    """How a judge grades a benchmark.

    Raises:
        ValueError: If none does; the message lists the benchmarks that one grades.
    """
    protocols = {name: kind.judge for name, kind in BENCHMARKS.scorers.items() if kind.judge is not None}
    if benchmark not in protocols:
        raise ValueError(f"no judge's protocol for {benchmark!r}; known are {', '.join(sorted(protocols))}")
    return protocols[benchmark]


def score_predictions(benchmark: str, data: Sequence[str | Path], predictions: Lines, **options: Any) -> ScoreResult:
    """Score predictions by every rule that applies to a benchmark; options are the scorer's, such as ``box_format``.

    Returns:
        ``benchmark``, ``n`` (questions), ``n_missing`` (questions without a prediction), ``n_unknown`` (predictions of
        no question), ``n_duplicates`` (predictions that a later one of the same id replaced), ``warnings`` and
        ``rules``: for each rule ``metrics`` and ``per_sample`` (a list of dicts with at least ``id`` and ``score``).

    Raises:
        ValueError: If the benchmark or an option is unknown, or a data file is malformed.
        FileNotFoundError: If a data file does not exist.
    """
    paths = [Path(path) for path in data]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{benchmark}: data {path} does not exist")
    kind = find_scorer(benchmark, paths)
    return {"benchmark": benchmark, **kind.score_files(paths, predictions, **options)}
