"""POPE: yes or no to whether an object is in the picture, in three splits (random, popular, adversarial).

Metrics: ``SPLIT/accuracy``, ``precision``, ``recall``, ``f1``, ``yes_ratio`` and the counts ``TP``, ``FP``, ``TN``,
``FN`` of each split, ``*_rounded`` as LLaVA's script prints them (three decimals), and their means over the splits
without a prefix (``f1`` of ``official`` is the figure of the LLaVA-1.5 paper; also as ``average_f1``). ``vlmevalkit``
(tables only) pools the splits instead: ``Overall`` is F1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import (
    Row,
    TablePictures,
    cell_or_none,
    id_key,
    plain_id,
    read_table,
    require_columns,
    unique_rows,
)
from mg_llava.evaluation.asking import SHORT_ANSWER_REQUEST, YES_NO_REQUEST, file_opener, picture_question
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import COCO_VAL, Release
from mg_llava.evaluation.scoring.files import read_json_lines
from mg_llava.evaluation.scoring.joining import Joined, ScoreResult, join_predictions, make_result, share
from mg_llava.evaluation.scoring.yes_no import Confusion, pope_yes_no, reference_yes_no

ID_STEP = 10_000_000
OFFSETS = {"adversarial": 0, "random": 1, "popular": 2}
"""In LLaVA's question file ids of a split start after this many ``ID_STEP``."""
_IDS = ("question_id", "index", "id")
_TEXTS = ("text", "prediction", "answer")
_FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")
_TABLE_SUFFIXES = (".tsv", ".csv")


@dataclass(frozen=True)
class PopeQuestion:
    """A question.

    Attributes:
        key: What predictions are joined by.
        id: Its id in the data file.
        label: Whether yes is right.
        splits: Its splits; a table has a question once for all of them.
        cells: The line of the file.
    """

    key: str
    id: int | str
    label: bool
    splits: tuple[str, ...]
    cells: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unique_id(self) -> int | str:
        """The id that LLaVA's question file has, unique over the splits; that of a table as it is."""
        if isinstance(self.id, int) and self.id < ID_STEP and len(self.splits) == 1:
            return self.id + OFFSETS.get(self.splits[0], 0) * ID_STEP
        return self.id


@dataclass(frozen=True)
class PopeData:
    """The questions of the label files, or of a table."""

    questions: Sequence[PopeQuestion]
    splits: Sequence[str]
    is_table: bool = False
    warnings: Sequence[str] = ()


def load_pope(paths: Sequence[Path]) -> PopeData:
    """Read label files (or the folder with them), or a table.

    Raises:
        ValueError: If there are none, or one is malformed; the message names file and line.
    """
    if len(paths) == 1 and paths[0].suffix.lower() in _TABLE_SUFFIXES:
        return _load_table(paths[0])
    files = [file for path in paths for file in (_label_files(path) if path.is_dir() else [path])]
    if not files:
        raise ValueError(f"{', '.join(map(str, paths))}: no coco_pope_*.json there")
    questions: dict[str, PopeQuestion] = {}
    warnings = []
    for file in files:
        split = split_of(file)
        for number, line in enumerate(read_json_lines(file), start=1):
            label = str(line.get("label", "")).strip().lower()
            if label not in ("yes", "no"):
                raise ValueError(f"{file}: line {number} has the label {line.get('label')!r}, expected yes or no")
            question_id = line.get("question_id", number)
            key = f"{split}:{_place(question_id)[1]}"
            if key in questions:
                warnings.append(f"{file}: line {number} repeats question_id {question_id}; it was left out")
                continue
            questions[key] = PopeQuestion(key, question_id, label == "yes", (split,), line)
    return PopeData(list(questions.values()), list(dict.fromkeys(map(split_of, files))), False, warnings)


def split_of(file: Path) -> str:
    """``random`` of ``coco_pope_random.json``; the name of the file where it has no such part."""
    found = re.fullmatch(r".*pope_(.+)", file.stem)
    return found.group(1) if found else file.stem


def score_pope(data: PopeData, predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
    """Score by the rules ``official`` (POPE's and LLaVA's script) and ``reference`` (MG-LLaVA).

    The scripts go by position in the files; here lines are joined by id. A question without a prediction counts as
    answered wrongly.
    """
    if data.is_table:
        joined = join_predictions([question.id for question in data.questions], predictions, _IDS, _TEXTS)
    else:
        keys = [question.key for question in data.questions]
        joined = join_predictions(keys, predictions, text_field=_TEXTS, key=_key_of(data, predictions))
    warnings = [*data.warnings]
    rules = {
        "official": _rule(data, joined, pope_yes_no, warnings),
        "reference": _rule(data, joined, reference_yes_no, warnings),
    }
    if data.is_table:
        rules["vlmevalkit"] = _pooled(data, joined)
    return make_result(joined, rules, list(dict.fromkeys(warnings)))


def _label_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("coco_pope_*.json")) or sorted(folder.glob("*pope_*.json"))
    return [file for file in files if file.is_file()]


def _load_table(path: Path) -> PopeData:
    rows, warnings = unique_rows(path, require_columns(path, read_table(path), ("index", "question", "answer")))
    questions = []
    for row in rows:
        answer = row["answer"].strip().lower()
        if answer not in ("yes", "no"):
            raise ValueError(f"{path}: row {row.number} has the answer {row['answer']!r}, expected Yes or No")
        splits = tuple(name for name in (cell_or_none(row, "category") or "all").split(",") if name)
        questions.append(PopeQuestion(id_key(row["index"]), plain_id(row["index"]), answer == "yes", splits, row))
    names = sorted({name for question in questions for name in question.splits})
    return PopeData(questions, names, True, warnings)


def _place(question_id: Any) -> tuple[int, str]:
    """The range that an id is in, and the id without the offset of that range."""
    name = id_key(question_id)
    if not name.isdigit():
        return 0, name
    offset, local = divmod(int(name), ID_STEP)
    return offset, str(local)


def _key_of(data: PopeData, predictions: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], str]:
    """Gives split and id of a prediction line, from its category, else from the range of its id."""

    def place(line: Mapping[str, Any]) -> tuple[int, str]:
        return _place(next((line[name] for name in _IDS if name in line), None))

    one_range = all(place(line)[0] == 0 for line in predictions)
    by_range = {offset: split for split, offset in OFFSETS.items()}

    def key(line: Mapping[str, Any]) -> str:
        offset, local = place(line)
        split = str(line.get("category") or "").removeprefix("coco_pope_")
        if not split:
            split = data.splits[0] if len(data.splits) == 1 and one_range else by_range.get(offset, "")
        return f"{split}:{local}"

    return key


def _rule(data: PopeData, joined: Joined, read: Callable[[str], str], warnings: list[str]) -> dict[str, Any]:
    answers = _answers(data, joined, read)
    metrics: dict[str, float] = {}
    for split in data.splits:
        part = [number for number, question in enumerate(data.questions) if split in question.splits]
        confusion = Confusion.of([answers[n] for n in part], [data.questions[n].label for n in part])
        given = [answers[n] for n in part if joined.lines[n] is not None]
        metrics |= {f"{split}/{name}": value for name, value in _figures(confusion, given).items()}
        if confusion.undefined:
            warnings.append(
                f"{split}: {', '.join(confusion.undefined)} would divide by zero in the script; taken as 0"
            )
    for name in _FIGURES:
        metrics[name] = share(sum(metrics[f"{split}/{name}"] for split in data.splits), len(data.splits))
    metrics["average_f1"] = metrics["f1"]
    return {"metrics": metrics, "per_sample": _samples(data, joined, answers, read)}


def _answers(data: PopeData, joined: Joined, read: Callable[[str], str]) -> list[bool]:
    """Whether each question was answered with yes; with the wrong one where there is no prediction."""
    return [
        read(text).lower() == "yes" if line is not None else not question.label
        for question, text, line in zip(data.questions, joined.texts, joined.lines, strict=True)
    ]


def _samples(
    data: PopeData, joined: Joined, answers: Sequence[bool], read: Callable[[str], str]
) -> list[dict[str, Any]]:
    return [
        {
            "id": question.id if data.is_table else question.unique_id,
            "category": ",".join(question.splits),
            "score": float(answer == question.label),
            "parsed": read(text) if line is not None else None,
            "answer": "yes" if question.label else "no",
        }
        for question, answer, text, line in zip(data.questions, answers, joined.texts, joined.lines, strict=True)
    ]


def _figures(confusion: Confusion, given: Sequence[bool]) -> dict[str, float]:
    figures: dict[str, float] = {
        "accuracy": confusion.accuracy,
        "precision": confusion.precision,
        "recall": confusion.recall,
        "f1": confusion.f1,
        "yes_ratio": share(sum(given), len(given)),
    }
    counts = {"TP": confusion.tp, "FP": confusion.fp, "TN": confusion.tn, "FN": confusion.fn}
    return figures | counts | {f"{name}_rounded": round(value, 3) for name, value in figures.items()}


def _pooled(data: PopeData, joined: Joined) -> dict[str, Any]:
    """VLMEvalKit's figures: a question counts once for each of its splits; an unclear reply is no to F1 but wrong."""
    answers = _answers(data, joined, reference_yes_no)
    metrics: dict[str, float] = {}
    samples = _samples(data, joined, answers, reference_yes_no)
    for sample in samples:
        sample["score"] = float(str(sample["parsed"]).lower() == sample["answer"])
    for split in (None, *data.splits):
        part = [
            number
            for number, question in enumerate(data.questions)
            for name in question.splits
            if split in (None, name)
        ]
        confusion = Confusion.of([answers[n] for n in part], [data.questions[n].label for n in part])
        prefix = f"{split}/" if split else ""
        metrics |= {
            f"{prefix}Overall": confusion.f1,
            f"{prefix}acc": share(sum(samples[n]["score"] for n in part), len(part)),
            f"{prefix}precision": confusion.precision,
            f"{prefix}recall": confusion.recall,
        }
    metrics |= {"f1": metrics["Overall"], "accuracy": metrics["acc"]}
    return {"metrics": metrics, "per_sample": samples}


@BENCHMARKS.register
class POPE(Benchmark):
    """POPE; arguments as of ``Benchmark``.

    Ids are those of LLaVA's question file, which are unique over the splits. Boxes are looked up by the id of the
    label file; in the version with 2910 random questions that id means another picture than in the other splits.

    Prompts: ``reference`` is MG-LLaVA's, ``llava`` asks for a single word or phrase.
    """

    scorer = "pope"
    form = 'folder with coco_pope_*.json; lines {"question_id", "category", "text"} (TSV: {"index", "prediction"})'
    load = staticmethod(load_pope)
    rate = staticmethod(score_pope)
    releases = (
        Release(
            "pope",
            ("pope",),
            "coco/val2014",
            "coco_pope_{adversarial,popular,random}.json of https://github.com/AoiDragon/POPE (output/coco) to pope; "
            + COCO_VAL,
            caution="LLaVA used commit e3e3926 with 2910 random questions, HEAD has 3000; in the former an id is "
            "another picture in each split, so that box files by id do not fit it",
        ),
    )
    prompts = ("reference", "llava")
    id_field = "question_id"
    text_field = "text"
    headline = ("official", "f1")

    def questions(self) -> Sequence[Question]:
        """The questions of all splits, split by split."""
        data = load_pope(self.data)
        request = YES_NO_REQUEST if self.prompt == "reference" else SHORT_ANSWER_REQUEST
        if data.is_table:
            rows = [question.cells for question in data.questions if isinstance(question.cells, Row)]
            pictures = TablePictures(rows, self.image_folder, str(self.data[0]))
            return [picture_question(row, f"{row['question']}\n{request}", pictures) for row in rows]
        return [self._question(question, request) for question in data.questions]

    def _question(self, question: PopeQuestion, request: str) -> Question:
        name = str(question.cells["image"])
        split = question.splits[0]
        opener = file_opener(self.picture_file(name), f"question {question.id} of {split}")
        text = f"{question.cells['text']}\n{request}"
        return Question(question.unique_id, text, opener, name, question.id, {"category": split})
