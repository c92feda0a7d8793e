"""Multiple choice: tables of questions, letters in replies as the published scripts read them, and means by group."""

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import Row, cell_or_none, id_key, is_missing, plain_id
from mg_llava.evaluation.scoring.figures import group_by, mean
from mg_llava.evaluation.scoring.files import only_path, read_rows
from mg_llava.evaluation.scoring.joining import name_ids

_REFERENCE_RUN = re.compile("[A-D]+")
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
NO_OPTION = "Z"
"""What VLMEvalKit reads a refusal as."""

LETTERS = string.ascii_uppercase
CIRCULAR_STEP = 1_000_000
"""Circular copies of a row have its index and multiples of this."""
Metrics = dict[str, float]
RowScores = Mapping[str, float]

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_WHOLE_NUMBER = re.compile(r"\s*[+-]?\d+\s*")
_WORDS = frozenset(["None", "NA", "N/A", "n/a", "NULL", "null"])
_CV_BENCH = {"2D": ("ADE20K", "COCO"), "3D": ("Omni3D",)}


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
    """A table, whose rows without options may be open questions, as in MMMU; and what is wrong with it."""

    path: Path
    rows: Sequence[Choice]
    open_questions: bool
    warnings: list[str]

    @property
    def groups(self) -> dict[str, list[Choice]]:
        """Base rows, first, with their rotations, by key of the base row."""
        groups = {row.key: [row] for row in self.rows if row.base == row.key}
        for row in self.rows:
            if row.base != row.key and row.base in groups:
                groups[row.base].append(row)
        return groups


def options_of(row: Row) -> dict[str, str]:
    """Text of each option of a row by its letter, as a question has them; letters in between may be missing.

    ``None`` and ``N/A``, which pandas takes for an empty cell, are options; so is any such mark that is the answer.
    """
    return {letter: row[letter] for letter in LETTERS if letter in row and _is_option(row, letter)}


def _is_option(row: Row, letter: str) -> bool:
    cell = row[letter]
    return not is_missing(cell) or (cell != "" and (cell in _WORDS or _answer(row) == letter))


def load_choice_table(paths: Sequence[Path], open_questions: bool = False) -> ChoiceTable:
    """Read a table, the only one of the paths.

    Raises:
        ValueError: If there is more than one path, or the table is malformed; the message names file and row.
    """
    path = only_path(paths, "multiple choice takes one table")
    rows, warnings = read_rows(path, "question", "A", "B")
    letters = [letter for letter in LETTERS if letter in rows[0]]
    texts = {letter: _as_read_by_pandas([cell_or_none(row, letter) for row in rows]) for letter in letters}
    choices = []
    for number, row in enumerate(rows):
        options = {letter: text for letter in letters if (text := texts[letter][number]) is not None}
        index = plain_id(row["index"])
        base = index % CIRCULAR_STEP if isinstance(index, int) else index
        choices.append(Choice(index, id_key(base), _answer(row), options, row))
    words = [
        f"{row['index']} {letter}: {text}"
        for row in rows
        for letter, text in options_of(row).items()
        if is_missing(text)
    ]
    warnings += name_ids(
        words,
        f"options of {path} are words that pandas takes for an empty cell; they are asked, but the published rules "
        "that go through pandas do not know them",
    )
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


def choice_metrics(
    table: ChoiceTable, strict: RowScores, vanilla: RowScores, short_names: Mapping[str, str], title: str
) -> Metrics:
    """Means over all questions and by group.

    Args:
        table: The table.
        strict: By base row, 1 where all rotations are right.
        vanilla: By base row, 1 where the row itself is right.
        short_names: Second names of categories.
        title: Name of the mean over a split.
    """
    base = [group[0] for group in table.groups.values()]
    metrics: Metrics = {"accuracy": mean(strict.values()), "vanilla": mean(vanilla.values())}
    metrics |= _by_group(base, strict, short_names)
    if any(row.base != row.key for row in table.rows):
        metrics["circular"] = mean(strict.values())
        metrics |= {f"vanilla/{name}": value for name, value in _by_group(base, vanilla, {}).items()}
    splits = _groups(base, "split")
    for split, part in sorted(splits.items()) if len(splits) > 1 else ():
        metrics[f"{split}/{title}"] = mean(strict[row.key] for row in part)
        metrics |= {f"{split}/{name}": value for name, value in _by_group(part, strict, short_names).items()}
    return metrics | _cycles(base, strict) | _sources(base, strict)


def _groups(rows: Iterable[Choice], column: str) -> dict[str, list[Choice]]:
    """Rows by a cell; those without it are left out."""
    return group_by((row for row in rows if row.cell(column) is not None), lambda row: row.cell(column))


def _by_group(rows: Sequence[Choice], scores: RowScores, short_names: Mapping[str, str]) -> Metrics:
    """Means by l2-category and by category; the latter wins where names meet, as in the scripts."""
    metrics: Metrics = {}
    for column in ("l2-category", "category"):
        for name, part in sorted(_groups(rows, column).items()):
            if name in metrics:
                metrics[f"l2-category/{name}"] = metrics[name]
            metrics[name] = mean(scores[row.key] for row in part)
            if name in short_names:
                metrics[short_names[name]] = metrics[name]
    return metrics


def _cycles(rows: Sequence[Choice], scores: RowScores) -> Metrics:
    """HR-Bench: accuracy in each cycle, and of questions that are right in all of them."""
    cycles = _groups(rows, "cycle_category")
    metrics: Metrics = {}
    sums: dict[str, float] = {}
    for cycle, part in cycles.items():
        figures = {"all": mean(scores[row.key] for row in part), **_by_group(part, scores, {})}
        for name, value in figures.items():
            metrics[f"{cycle}/{name}"] = value
            sums[name] = sums.get(name, 0) + value
    metrics |= {f"Average/{name}": value / len(cycles) for name, value in sums.items()}
    if cycles:
        asked = (row for part in cycles.values() for row in part)
        metrics["circular"] = mean(min(scores[row.key] for row in some) for some in group_by(asked, _asked).values())
    return metrics


def _asked(row: Choice) -> tuple[Any, ...]:
    """The same for the rotations of a question."""
    return row.cell("question"), frozenset(row.options.values()), row.row.fingerprint, row.cell("image_path")


def _sources(rows: Sequence[Choice], scores: RowScores) -> Metrics:
    """CV-Bench: 2D is the mean of its sources, the whole the mean of 2D and 3D."""
    groups = _groups(rows, "source")
    known = {source for sources in _CV_BENCH.values() for source in sources}
    if not groups or not set(groups) <= known:
        return {}
    metrics = {f"source/{name}": mean(scores[row.key] for row in part) for name, part in groups.items()}
    for part, sources in _CV_BENCH.items():
        present = [metrics[f"source/{name}"] for name in sources if name in groups]
        if present:
            metrics[part] = mean(present)
    if "2D" in metrics and "3D" in metrics:
        metrics["CV-Bench"] = (metrics["2D"] + metrics["3D"]) / 2
    return metrics


def reference_letter(reply: str) -> str:
    """MG-LLaVA's reading: the first run of the capitals A to D, wherever it stands; ``""`` without one.

    So ``Answer: C`` is A, ``BD`` is BD (which no answer equals), ``b`` is nothing, and E can never be read.
    """
    found = _REFERENCE_RUN.search(reply)
    return found.group() if found else ""


def infer_choice(reply: str, options: Mapping[str, str]) -> str:
    """VLMEvalKit's reading by exact matching, June 2024: by letter, else by text; ``""`` where neither is unique.

    Args:
        reply: The reply.
        options: Text of each option by letter.
    """
    return _infer_letter(reply, options) or _infer_text(reply, options)


def _infer_letter(reply: str, options: Mapping[str, str]) -> str:
    """The only letter of an option among the words, or Z for a refusal; case matters.

    VLMEvalKit leaves a reply with the word ``A`` and more than three words open, in case A is an article, but only
    where its log is verbose. That is off by default, and so it is here.
    """
    if _FAILED in reply:
        return ""
    if any(refusal in reply for refusal in _REFUSALS):
        return NO_OPTION
    words = reply.translate(_PUNCTUATION).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1:
        return found[0]
    return NO_OPTION if not found and NO_OPTION in words else ""


def _infer_text(reply: str, options: Mapping[str, str]) -> str:
    """The only option whose text occurs in the reply, without regard to case."""
    lowered = reply.lower()
    found = [letter for letter, text in options.items() if text.lower() in lowered]
    return found[0] if len(found) == 1 else ""
