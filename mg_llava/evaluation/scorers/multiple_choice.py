"""Multiple-choice tables of VLMEvalKit's form (MMBench, CCBench, SEED, MMStar, AI2D, MMMU, ...) by several rules.

Metrics of every rule, as shares of 1:

- ``accuracy`` over all questions, also under the script's own name (``Average`` of MG-LLaVA, ``Overall`` of
  VLMEvalKit). Where the table has circular copies (index + k * 1,000,000) a question is right if all its rotations
  are, and ``circular`` is the same figure again.
- ``vanilla``: over base rows alone, whether or not there are copies; ``vanilla/NAME`` for groups.
- one for each l2-category and category by its name; VLMEvalKit's short names (``CP``, ``LR``, ...) beside them.
- ``SPLIT/NAME`` where the table has more than one split.
- HR-Bench (column ``cycle_category``): ``cycle/NAME`` for each cycle, and ``circular``, right in all cycles.
- CV-Bench (column ``source`` with ADE20K, COCO, Omni3D): ``source/NAME``, ``2D``, ``3D`` and ``CV-Bench``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import Row, cell_or_none, plain_id, read_table, require_columns, unique_rows
from mg_llava.evaluation.scorers.choice_rules import LETTERS, infer_choice, mmstar_right, reference_letter
from mg_llava.evaluation.scorers.joining import Joined, ScoreResult, id_key, join_predictions, make_result, share

CIRCULAR_STEP = 1_000_000
Metrics = dict[str, float]
Scores = Mapping[str, float]

_SHORT_NAMES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_WHOLE_NUMBER = re.compile(r"\s*[+-]?\d+\s*")
_CV_BENCH = {"2D": ("ADE20K", "COCO"), "3D": ("Omni3D",)}
_MMSTAR_CATEGORY_SIZE = 250
_MMSTAR_SIZE = 1500
_FIELDS = (("index", "question_id", "id"), ("prediction", "text"))
_SUBMISSION_LEFT_OUT = ("image", "image_path")


@dataclass(frozen=True)
class Choice:
    """A row of a table.

    Attributes:
        id: The index, a number where it is written as one.
        base: Key of the question that the row is a rotation of; its own for a base row.
        answer: Letter of the right option; None where the table does not tell.
        options: Text of each option by letter.
        row: All cells.
    """

    id: int | str
    base: str
    answer: str | None
    options: Mapping[str, str]
    row: Row

    @property
    def key(self) -> str:
        """What the row is joined by."""
        return id_key(self.id)

    def cell(self, column: str) -> str | None:
        """A cell; None if it is empty or there is no such column."""
        return cell_or_none(self.row, column)


@dataclass(frozen=True)
class ChoiceTable:
    """A table.

    Attributes:
        path: Its file.
        rows: Its rows.
        open_questions: Whether rows without options are open questions, as in MMMU.
        warnings: What is wrong with it.
    """

    path: Path
    rows: Sequence[Choice]
    open_questions: bool = False
    warnings: Sequence[str] = field(default_factory=tuple)

    @property
    def groups(self) -> dict[str, list[Choice]]:
        """Base rows, first, with their rotations, by key of the base row."""
        groups = {row.key: [row] for row in self.rows if row.base == row.key}
        for row in self.rows:
            if row.base != row.key and row.base in groups:
                groups[row.base].append(row)
        return groups

    @property
    def circular(self) -> bool:
        """Whether there are rotations."""
        return any(row.base != row.key for row in self.rows)


def load_multiple_choice(paths: Sequence[Path]) -> ChoiceTable:
    """Read a table.

    Raises:
        ValueError: If there is more than one path, or the table is malformed; the message names file and row.
    """
    return _load(paths, "MMMU" in paths[0].name)


def load_mmmu(paths: Sequence[Path]) -> ChoiceTable:
    """``load_multiple_choice`` with questions without options taken for open ones."""
    return _load(paths, open_questions=True)


load_mmstar = load_multiple_choice


def score_multiple_choice(table: ChoiceTable, predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
    """Score by the rules ``reference`` (MG-LLaVA) and ``vlmevalkit`` (exact matching of June 2024)."""
    joined = join_predictions([row.id for row in table.rows], predictions, *_FIELDS)
    warnings = [*table.warnings]
    answered = sum(row.answer is not None for row in table.rows)
    extra: dict[str, Any] = {"n_questions": len(table.groups)}
    if not answered:
        warnings.append(
            f"{table.path} has no answers (a test split): nothing is scored; the benchmark's server takes the table "
            "with a column 'prediction', here under 'submission'"
        )
        return make_result(joined, {}, warnings, **extra, submission=_submission(table, joined))
    if answered < len(table.rows):
        warnings.append(f"{len(table.rows) - answered} of {len(table.rows)} rows have no answer and count as wrong")
    rules = {
        "reference": _rule(table, joined, _read_reference, {}, "Average"),
        "vlmevalkit": _rule(table, joined, _read_vlmevalkit, _SHORT_NAMES, "Overall"),
    }
    return make_result(joined, rules, warnings, **extra)


score_mmmu = score_multiple_choice


def score_mmstar(table: ChoiceTable, predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
    """``score_multiple_choice`` and ``official``, MMStar's own rule.

    ``official`` has the script's ``final score`` (hits / 1500), each category (hits / 250) and each
    ``category(l2_category)``; and ``accuracy``, hits over the number of questions.
    """
    result = score_multiple_choice(table, predictions)
    if not result["rules"]:
        return result
    replies = _replies(table, join_predictions([row.id for row in table.rows], predictions, *_FIELDS))
    samples: list[dict[str, Any]] = []
    hits: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in table.rows:
        right = float(row.answer is not None and mmstar_right(replies[row.key], row.answer))
        hits[row.cell("category") or "", row.cell("l2_category") or ""].append(right)
        samples.append({"id": row.id, "score": right, "answer": row.answer, "category": row.cell("category")})
    metrics: Metrics = {
        "accuracy": share(sum(sample["score"] for sample in samples), len(samples)),
        "final score": sum(sum(values) for values in hits.values()) / _MMSTAR_SIZE,
    }
    for category in dict.fromkeys(category for category, _ in hits if category):
        total = sum(sum(values) for (name, _), values in hits.items() if name == category)
        metrics[category] = total / _MMSTAR_CATEGORY_SIZE
    metrics |= {f"{name}({l2})": share(sum(v), len(v)) for (name, l2), v in hits.items() if name and l2}
    if len(samples) != _MMSTAR_SIZE:
        result["warnings"].append(
            f"the table has {len(samples)} questions, but MMStar's script divides by 1500 and 250 all the same: "
            "see 'accuracy'"
        )
    result["rules"] = {"official": {"metrics": metrics, "per_sample": samples}, **result["rules"]}
    return result


def _load(paths: Sequence[Path], open_questions: bool) -> ChoiceTable:
    if len(paths) != 1:
        raise ValueError(f"multiple choice takes one table, got {len(paths)}: {', '.join(map(str, paths))}")
    path = paths[0]
    rows, warnings = unique_rows(path, require_columns(path, read_table(path), ("index", "question", "A", "B")))
    letters = [letter for letter in LETTERS if letter in rows[0]]
    texts = {letter: _as_read_by_pandas([cell_or_none(row, letter) for row in rows]) for letter in letters}
    choices = []
    for number, row in enumerate(rows):
        options = {letter: text for letter in letters if (text := texts[letter][number]) is not None}
        index = plain_id(row["index"])
        base = index % CIRCULAR_STEP if isinstance(index, int) else index
        choices.append(Choice(index, id_key(base), _answer(row), options, row))
    table = ChoiceTable(path, choices, open_questions, warnings)
    orphans = len(choices) - sum(map(len, table.groups.values()))
    if orphans:
        warnings.append(f"{path}: {orphans} circular rows have no base row and are not scored")
    return table


def _answer(row: Row) -> str | None:
    """The answer; ``(C)``, as CV-Bench has it, is C."""
    answer = cell_or_none(row, "answer")
    bracketed = re.fullmatch(r"\s*\(([A-Z])\)\s*", answer or "")
    return bracketed.group(1) if bracketed else answer


def _as_read_by_pandas(cells: Sequence[str | None]) -> list[str | None]:
    """Text of a column after VLMEvalKit's way through a data frame: numbers if all are, floats if one is missing."""
    given = [cell for cell in cells if cell is not None]
    if not given or not all(_NUMBER.fullmatch(cell) for cell in given):
        return list(cells)
    whole = len(given) == len(cells) and all(_WHOLE_NUMBER.fullmatch(cell) for cell in given)
    return [None if cell is None else str(int(cell) if whole else float(cell)) for cell in cells]


def _replies(table: ChoiceTable, joined: Joined) -> dict[str, str]:
    return {row.key: text for row, text in zip(table.rows, joined.texts, strict=True)}


def _read_reference(table: ChoiceTable, row: Choice, reply: str) -> tuple[str, str | None]:
    return reference_letter(reply), row.answer


def _read_vlmevalkit(table: ChoiceTable, row: Choice, reply: str) -> tuple[str, str | None]:
    """Letter of the reply and right letter; an open question of MMMU has its answer as A beside ``Other Answers``."""
    options, answer = dict(row.options), row.answer
    if table.open_questions:
        if "A" not in options:
            options = {**options, "A": answer or "", "B": "Other Answers"}
        answer = answer if answer in tuple(LETTERS) else "A"
    return infer_choice(reply, dict(sorted(options.items()))), answer


def _rule(
    table: ChoiceTable,
    joined: Joined,
    read: Callable[[ChoiceTable, Choice, str], tuple[str, str | None]],
    short_names: Mapping[str, str],
    title: str,
) -> dict[str, Any]:
    """Metrics and samples of a rule that reads one letter out of each reply."""
    read_rows: dict[str, dict[str, Any]] = {}
    for row, text, line in zip(table.rows, joined.texts, joined.lines, strict=True):
        parsed, answer = read(table, row, text) if line is not None else ("", row.answer)
        right = float(line is not None and row.answer is not None and parsed == answer)
        read_rows[row.key] = {"id": row.id, "score": right, "parsed": parsed, "answer": answer}
    samples: list[dict[str, Any]] = []
    vanilla: dict[str, float] = {}
    strict: dict[str, float] = {}
    for key, group in table.groups.items():
        parts = [read_rows[row.key] for row in group]
        vanilla[key], strict[key] = parts[0]["score"], min(part["score"] for part in parts)
        sample = {**parts[0], "score": strict[key], "vanilla": vanilla[key]}
        sample |= {name: group[0].cell(name) for name in ("category", "l2-category") if name in group[0].row}
        samples.append({**sample, "rotations": parts[1:]} if len(parts) > 1 else sample)
    metrics = {title: _mean(strict.values()), **_metrics(table, strict, vanilla, short_names, title)}
    return {"metrics": metrics, "per_sample": samples}


def _metrics(
    table: ChoiceTable, strict: Scores, vanilla: Scores, short_names: Mapping[str, str], title: str
) -> Metrics:
    base = [group[0] for group in table.groups.values()]
    metrics: Metrics = {"accuracy": _mean(strict.values()), "vanilla": _mean(vanilla.values())}
    if table.circular:
        metrics["circular"] = metrics["accuracy"]
    metrics |= _by_group(base, strict, short_names)
    if table.circular:
        metrics |= {f"vanilla/{name}": value for name, value in _by_group(base, vanilla, {}).items()}
    splits = sorted({row.cell("split") for row in base} - {None}, key=str)
    for split in splits if len(splits) > 1 else ():
        part = [row for row in base if row.cell("split") == split]
        metrics[f"{split}/{title}"] = _mean(strict[row.key] for row in part)
        metrics |= {f"{split}/{name}": value for name, value in _by_group(part, strict, short_names).items()}
    return metrics | _cycles(base, strict) | _sources(base, strict)


def _by_group(rows: Sequence[Choice], scores: Scores, short_names: Mapping[str, str]) -> Metrics:
    """Means by l2-category and by category; the latter wins where names meet, as in the scripts."""
    metrics: Metrics = {}
    for column in ("l2-category", "category"):
        groups: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            name = row.cell(column)
            if name is not None:
                groups[name].append(scores[row.key])
        for name in sorted(groups):
            if name in metrics:
                metrics[f"l2-category/{name}"] = metrics[name]
            metrics[name] = _mean(groups[name])
            if name in short_names:
                metrics[short_names[name]] = metrics[name]
    return metrics


def _cycles(rows: Sequence[Choice], scores: Scores) -> Metrics:
    """HR-Bench: accuracy in each cycle, and of questions that are right in all of them."""
    cycles: dict[str, list[Choice]] = defaultdict(list)
    questions: dict[Any, list[float]] = defaultdict(list)
    for row in rows:
        cycle = row.cell("cycle_category")
        if cycle is not None:
            cycles[cycle].append(row)
            same = (row.cell("question"), frozenset(row.options.values()), row.row.fingerprint, row.cell("image_path"))
            questions[same].append(scores[row.key])
    metrics: Metrics = {}
    for cycle, part in cycles.items():
        metrics[f"{cycle}/all"] = _mean(scores[row.key] for row in part)
        metrics |= {f"{cycle}/{name}": value for name, value in _by_group(part, scores, {}).items()}
    for name in dict.fromkeys(key.split("/", 1)[1] for key in metrics):
        values = [value for key, value in metrics.items() if key.split("/", 1)[1] == name]
        metrics[f"Average/{name}"] = sum(values) / len(cycles)
    if questions:
        metrics["circular"] = _mean(min(values) for values in questions.values())
    return metrics


def _sources(rows: Sequence[Choice], scores: Scores) -> Metrics:
    """CV-Bench: 2D is the mean of its sources, the whole the mean of 2D and 3D."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        source = row.cell("source")
        if source is not None:
            groups[source].append(scores[row.key])
    known = {source for sources in _CV_BENCH.values() for source in sources}
    if not groups or not set(groups) <= known:
        return {}
    metrics = {f"source/{name}": _mean(values) for name, values in groups.items()}
    for part, sources in _CV_BENCH.items():
        present = [metrics[f"source/{name}"] for name in sources if name in groups]
        if present:
            metrics[part] = _mean(present)
    if "2D" in metrics and "3D" in metrics:
        metrics["CV-Bench"] = (metrics["2D"] + metrics["3D"]) / 2
    return metrics


def _submission(table: ChoiceTable, joined: Joined) -> list[dict[str, Any]]:
    """The rows that MMBench's server takes: the table without pictures, with the replies."""
    rows = []
    for row, text in zip(table.rows, joined.texts, strict=True):
        cells = {name: value for name, value in row.row.items() if name not in _SUBMISSION_LEFT_OUT}
        rows.append({**cells, "index": row.id, "prediction": text})
    return rows


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return share(sum(numbers), len(numbers))
