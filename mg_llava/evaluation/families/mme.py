"""MME: two yes-or-no questions about each picture, in ten tasks of perception and four of cognition.

Metrics: the score of each task by its name (accuracy * 100 + accuracy+ * 100, accuracy+ being the share of pictures
with both questions right), their sums ``perception``, ``cognition`` and ``total``; of ``official`` also
``TASK/acc``, ``acc_plus``, ``precision``, ``recall``, ``f1``, ``TP``, ``FN``, ``TN``, ``FP`` and ``other_num`` as in
the script (``precision`` and ``recall`` leave replies that are neither out). ``reference`` calls cognition
``reasoning`` too.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import (
    TablePictures,
    cell_or_none,
    id_key,
    plain_id,
    read_table,
    require_columns,
    unique_rows,
)
from mg_llava.evaluation.asking import SHORT_ANSWER_REQUEST, file_opener, picture_question
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import published_table
from mg_llava.evaluation.scoring.joining import Joined, ScoreResult, join_predictions, make_result, share
from mg_llava.evaluation.scoring.yes_no import Confusion, mme_yes_no, reference_yes_no

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork"),
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SENTENCE = "Please answer yes or no."
REFERENCE_SENTENCE = "Please answer the question only a single word yes or no."
_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
_QUESTIONS_OF_A_PICTURE = 2
_TEXTS = ("text", "prediction", "response")


@dataclass(frozen=True)
class MmeQuestion:
    """A question.

    Attributes:
        id: The index of the table; in the release folder ``task/picture#number``.
        task: Its task.
        picture: Name of its picture without folder and extension.
        text: The question as the data has it.
        label: Whether yes is right.
        file: The picture's file; None for a table.
        cells: Row of the table.
    """

    id: int | str
    task: str
    picture: str
    text: str
    label: bool
    file: Path | None = None
    cells: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class MmeData:
    """All questions; those of a picture in the order of the data."""

    questions: Sequence[MmeQuestion]
    warnings: Sequence[str] = ()


def load_mme(paths: Sequence[Path]) -> MmeData:
    """Read the table or the release folder.

    Raises:
        ValueError: If the data is malformed; the message names file and row.
    """
    if len(paths) != 1:
        raise ValueError(f"mme takes one table or folder, got {len(paths)}")
    return _load_folder(paths[0]) if paths[0].is_dir() else _load_table(paths[0])


def score_mme(data: MmeData, predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
    """Score by the rules ``official`` (MME's calculation script) and ``reference`` (MG-LLaVA).

    Lines are joined by ``index``, or by the picture in ``question_id`` and the question (``question`` or ``prompt``,
    in any of the usual wordings of the request for yes or no); the script goes by position. A question without a
    prediction counts as ``other``.
    """
    finder = _Finder(data)
    joined = join_predictions([q.id for q in data.questions], predictions, text_field=_TEXTS, key=finder.find)
    warnings = [*data.warnings, *finder.warnings]
    pairs = Counter((question.task, question.picture) for question in data.questions)
    odd = [f"{task}/{picture}" for (task, picture), count in pairs.items() if count != _QUESTIONS_OF_A_PICTURE]
    if odd:
        warnings.append(
            f"{len(odd)} pictures have not two questions, on which the script fails; accuracy+ counts those with all "
            f"questions right ({', '.join(odd[:5])})"
        )
    absent = [task for task in (*PERCEPTION, *COGNITION) if task not in {task for task, _ in pairs}]
    if absent:
        warnings.append(f"the data lacks the tasks {', '.join(absent)}; the sums are over the others")
    rules = {
        "official": _rule(data, joined, mme_yes_no, with_details=True),
        "reference": _rule(data, joined, reference_yes_no, with_details=False),
    }
    metrics = rules["reference"]["metrics"]
    metrics["reasoning"] = metrics["cognition"]
    undefined = [
        name
        for name, value in rules["official"]["metrics"].items()
        if name.endswith(("/precision", "/recall")) and value == 0
    ]
    if undefined:
        warnings.append(f"{', '.join(undefined)}: 0, also where the script has nothing to divide by")
    return make_result(joined, rules, warnings)


class _Finder:
    """Finds the question of a prediction line."""

    def __init__(self, data: MmeData) -> None:
        self._by_text = {(q.task, q.picture, _bare(q.text)): q.id for q in reversed(data.questions)}
        self._by_picture: dict[tuple[str, str], list[int | str]] = defaultdict(list)
        for question in data.questions:
            self._by_picture[question.task, question.picture].append(question.id)
        self._passed: Counter[tuple[str, str]] = Counter()
        self._ids = {id_key(question.id) for question in data.questions}
        self.warnings: list[str] = []

    def find(self, line: Mapping[str, Any]) -> int | str | None:
        """Id of the question; None if there is no such one."""
        if "index" in line:
            return line["index"]
        name = str(line.get("question_id", line.get("id", "")))
        if id_key(name) in self._ids:
            return name
        task = str(line.get("category") or name.split("/")[0])
        place = (task, _stem(name))
        question = next((str(line[key]) for key in ("question", "prompt") if line.get(key)), None)
        if question is not None:
            return self._by_text.get((*place, _bare(question)))
        number = self._passed[place]
        self._passed[place] += 1
        if not self.warnings:
            self.warnings.append("predictions without their question were taken in the order of a picture's questions")
        ids = self._by_picture.get(place, [])
        return ids[number] if number < len(ids) else None


def _bare(question: str) -> str:
    """A question without the request for yes or no, in lower case and with single spaces."""
    for sentence in (REFERENCE_SENTENCE, SHORT_ANSWER_REQUEST, SENTENCE, "<image>"):
        question = question.replace(sentence, " ")
    return " ".join(question.lower().split())


def _stem(path: str) -> str:
    """``0001`` of ``artwork/images/0001.jpg``."""
    return re.split(r"[/\\]", path)[-1].split(".")[0]


def _load_table(path: Path) -> MmeData:
    rows, warnings = unique_rows(
        path, require_columns(path, read_table(path), ("index", "question", "answer", "category"))
    )
    questions = []
    for number, row in enumerate(rows):
        picture = cell_or_none(row, "image_path")
        name = _stem(picture) if picture else row.fingerprint or f"pair {number // _QUESTIONS_OF_A_PICTURE}"
        label = _label(row["answer"], f"{path}: row {row.number}")
        questions.append(MmeQuestion(plain_id(row["index"]), row["category"], name, row["question"], label, None, row))
    return MmeData(questions, warnings)


def _load_folder(folder: Path) -> MmeData:
    """The release: a folder for each task, with texts beside the pictures or in a folder of their own."""
    questions = []
    for task in sorted(path for path in folder.iterdir() if path.is_dir()):
        texts = task / "questions_answers_YN" if (task / "questions_answers_YN").is_dir() else task
        pictures = task / "images" if (task / "images").is_dir() else task
        files = {file.stem: file for file in sorted(pictures.iterdir()) if file.suffix.lower() in _PICTURE_SUFFIXES}
        for file in sorted(texts.glob("*.txt")):
            for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
                if not line.strip():
                    continue
                question, _, answer = line.strip().rpartition("\t")
                label = _label(answer, f"{file}: line {number}")
                picture = file.name.split(".")[0]
                name = f"{task.name}/{picture}#{number}"
                questions.append(MmeQuestion(name, task.name, picture, question, label, files.get(file.stem)))
    if not questions:
        raise ValueError(f"{folder}: no questions there; expected a folder for each task with texts of the questions")
    return MmeData(questions)


def _label(answer: str, where: str) -> bool:
    value = answer.strip().lower()
    if value not in ("yes", "no"):
        raise ValueError(f"{where} has the answer {answer!r}, expected Yes or No")
    return value == "yes"


def _rule(data: MmeData, joined: Joined, read: Callable[[str], str], with_details: bool) -> dict[str, Any]:
    samples: list[dict[str, Any]] = []
    tasks: dict[str, list[int]] = defaultdict(list)
    for number, (question, text, line) in enumerate(zip(data.questions, joined.texts, joined.lines, strict=True)):
        parsed = read(text).lower() if line is not None else "other"
        answer = "yes" if question.label else "no"
        samples.append(
            {
                "id": question.id,
                "category": question.task,
                "score": float(parsed == answer),
                "parsed": parsed,
                "answer": answer,
            }
        )
        tasks[question.task].append(number)
    metrics: dict[str, float] = {}
    for task, numbers in tasks.items():
        figures = _figures([samples[n] for n in numbers], [data.questions[n].picture for n in numbers])
        metrics[task] = figures["acc"] * 100 + figures["acc_plus"] * 100
        if with_details:
            metrics |= {f"{task}/{name}": value for name, value in figures.items()}
    perception = sum(metrics[task] for task in PERCEPTION if task in tasks)
    cognition = sum(metrics[task] for task in COGNITION if task in tasks)
    metrics |= {"perception": perception, "cognition": cognition, "total": perception + cognition}
    metrics["accuracy"] = share(sum(sample["score"] for sample in samples), len(samples))
    return {"metrics": metrics, "per_sample": samples}


def _figures(samples: Sequence[Mapping[str, Any]], pictures: Sequence[str]) -> dict[str, float]:
    by_picture: dict[str, list[float]] = defaultdict(list)
    for sample, picture in zip(samples, pictures, strict=True):
        by_picture[picture].append(sample["score"])
    clear = [sample for sample in samples if sample["parsed"] in ("yes", "no")]
    confusion = Confusion.of([s["parsed"] == "yes" for s in clear], [s["answer"] == "yes" for s in clear])
    return {
        "acc": share(sum(sample["score"] for sample in samples), len(samples)),
        "acc_plus": share(sum(min(scores) for scores in by_picture.values()), len(by_picture)),
        "precision": confusion.precision,
        "recall": confusion.recall,
        "f1": confusion.f1,
        "TP": confusion.tp,
        "FN": confusion.fn,
        "TN": confusion.tn,
        "FP": confusion.fp,
        "other_num": len(samples) - len(clear),
    }


@BENCHMARKS.register
class MME(Benchmark):
    """MME from the table or the release folder; arguments as of ``Benchmark``.

    Prompts: ``reference`` is MG-LLaVA's wording of the request for yes or no, ``llava`` asks for a single word or
    phrase, ``plain`` leaves the question as it is.
    """

    scorer = "mme"
    form = (
        'TSV, or the release folder; lines {"question_id", "category", "question", "text"} or {"index", "prediction"}'
    )
    load = staticmethod(load_mme)
    rate = staticmethod(score_mme)
    releases = (
        published_table(
            "mme", "MME", caution="sums of points, up to 2000 and 800; the release folder may be given as the data"
        ),
    )
    prompts = ("reference", "llava", "plain")
    headline = ("official", "total")

    def questions(self) -> Sequence[Question]:
        """All questions; the two about a picture one after the other."""
        data = load_mme(self.data)
        rows = [question.cells for question in data.questions if question.cells is not None]
        pictures = TablePictures(rows, self.image_folder, str(self.data[0]))
        return [self._question(question, pictures) for question in data.questions]

    def _question(self, question: MmeQuestion, pictures: TablePictures) -> Question:
        text = question.text
        if self.prompt == "reference":
            text = text.replace(SENTENCE, REFERENCE_SENTENCE)
        elif self.prompt == "llava":
            text = text.replace(f" {SENTENCE}", f"\n{SHORT_ANSWER_REQUEST}")
        fields = {"category": question.task, "question": question.text}
        if question.cells is not None:
            return picture_question(question.cells, text, pictures, **fields)
        if question.file is None:
            missing = partial(_no_picture, f"{self.data[0]}: {question.id}")
            return Question(question.id, text, missing, str(question.id), question.id, fields)
        opener = file_opener(question.file, f"question {question.id}")
        return Question(question.id, text, opener, str(question.file), question.id, fields)


def _no_picture(owner: str) -> Any:
    from mg_llava.data.pictures.files import PictureError

    raise PictureError(f"{owner} has no picture beside it; download the release again", "missing")
