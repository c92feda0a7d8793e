"""MME: two yes-or-no questions about each picture, in ten tasks of perception and four of cognition.

Metrics: the score of each task by its name (accuracy * 100 + accuracy+ * 100, accuracy+ being the share of pictures
with both questions right), their sums ``perception``, ``cognition`` and ``total``; of ``official`` also
``TASK/acc``, ``acc_plus``, ``precision``, ``recall``, ``f1``, ``TP``, ``FN``, ``TN``, ``FP`` and ``other_num`` as in
the script (``precision`` and ``recall`` leave replies that are neither out). ``reference`` calls cognition
``reasoning`` too.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import Row, TablePictures, cell_or_none, id_key, plain_id
from mg_llava.evaluation.asking import SHORT_ANSWER_REQUEST, picture_question
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question, open_in_folder
from mg_llava.evaluation.release import published_table
from mg_llava.evaluation.scoring.figures import group_by, mean, mean_score
from mg_llava.evaluation.scoring.files import only_path, read_rows
from mg_llava.evaluation.scoring.joining import Joined, Line, Lines, ScoreResult, join_predictions
from mg_llava.evaluation.scoring.yes_no import Confusion, mme_yes_no, read_label, reference_yes_no

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork"),
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SENTENCE = "Please answer yes or no."
REFERENCE_SENTENCE = "Please answer the question only a single word yes or no."
_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
_QUESTIONS_OF_A_PICTURE = 2


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
        row: Row of the table; None in the release folder.
    """

    id: int | str
    task: str
    picture: str
    text: str
    label: bool
    file: Path | None = None
    row: Row | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Task and picture."""
        return self.task, self.picture


@dataclass(frozen=True)
class MmeData:
    """All questions; those of a picture in the order of the data."""

    questions: Sequence[MmeQuestion]
    warnings: Sequence[str] = ()


def load_mme(paths: Sequence[Path]) -> MmeData:
    """Read the table or the release folder; raises ``ValueError`` that names file and row if it is malformed."""
    path = only_path(paths, "mme takes one table or folder")
    return _load_folder(path) if path.is_dir() else _load_table(path)


def score_mme(data: MmeData, predictions: Lines, **options: Any) -> ScoreResult:
    """Score by the rules ``official`` (MME's calculation script) and ``reference`` (MG-LLaVA).

    Lines are joined by ``index``, or by the picture in ``question_id`` and the question (``question`` or ``prompt``,
    in any of the usual wordings of the request for yes or no); the script goes by position. A question without a
    prediction counts as ``other``.
    """
    finder, texts = _Finder(data), ("text", "prediction", "response")
    joined = join_predictions([one.id for one in data.questions], predictions, text_field=texts, key=finder.find)
    warnings = [*data.warnings, *finder.warnings]
    pairs = Counter(question.place for question in data.questions)
    odd = [f"{task}/{picture}" for (task, picture), count in pairs.items() if count != _QUESTIONS_OF_A_PICTURE]
    if odd:
        warnings.append(
            f"{len(odd)} pictures have not two questions, on which the script fails; accuracy+ counts those with all "
            f"questions right ({', '.join(odd[:5])})"
        )
    absent = [task for task in (*PERCEPTION, *COGNITION) if task not in {task for task, _ in pairs}]
    if absent:
        warnings.append(f"the data lacks the tasks {', '.join(absent)}; the sums are over the others")
    official, details, samples = _rule(data, joined, mme_yes_no)
    reference, _, reference_samples = _rule(data, joined, reference_yes_no)
    undefined = [name for name, value in details.items() if name.endswith(("/precision", "/recall")) and value == 0]
    if undefined:
        warnings.append(f"{', '.join(undefined)}: 0, also where the script has nothing to divide by")
    reference["reasoning"] = reference["cognition"]
    rules = {"official": ({**official, **details}, samples), "reference": (reference, reference_samples)}
    return joined.result(rules, warnings)


class _Finder:
    """Finds the question of a prediction line."""

    def __init__(self, data: MmeData) -> None:
        self._by_text = {(*one.place, _bare(one.text)): one.id for one in reversed(data.questions)}
        self._by_picture = group_by(data.questions, lambda one: one.place)
        self._passed: Counter[tuple[str, str]] = Counter()
        self._ids = {id_key(question.id) for question in data.questions}
        self.warnings: list[str] = []

    def find(self, line: Line) -> int | str | None:
        """Id of the question; None if there is no such one."""
        if "index" in line:
            return line["index"]
        name = str(line.get("question_id", line.get("id", "")))
        if id_key(name) in self._ids:
            return name
        place = (str(line.get("category") or name.split("/")[0]), _stem(name))
        question = next((str(line[key]) for key in ("question", "prompt") if line.get(key)), None)
        if question is not None:
            return self._by_text.get((*place, _bare(question)))
        self.warnings = ["predictions without their question were taken in the order of a picture's questions"]
        asked, number = self._by_picture.get(place, []), self._passed[place]
        self._passed[place] += 1
        return asked[number].id if number < len(asked) else None


def _bare(question: str) -> str:
    """A question without the request for yes or no, in lower case and with single spaces."""
    for sentence in (REFERENCE_SENTENCE, SHORT_ANSWER_REQUEST, SENTENCE, "<image>"):
        question = question.replace(sentence, " ")
    return " ".join(question.lower().split())


def _stem(path: str) -> str:
    """``0001`` of ``artwork/images/0001.jpg``."""
    return re.split(r"[/\\]", path)[-1].split(".")[0]


def _load_table(path: Path) -> MmeData:
    rows, warnings = read_rows(path, "question", "answer", "category")
    questions = []
    for number, row in enumerate(rows):
        picture = cell_or_none(row, "image_path")
        name = _stem(picture) if picture else row.fingerprint or f"pair {number // _QUESTIONS_OF_A_PICTURE}"
        label = read_label(row["answer"], f"{path}: row {row.number} has the answer")
        index, task = plain_id(row["index"]), row["category"]
        questions.append(MmeQuestion(index, task, name, row["question"], label, row=row))
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
                label = read_label(answer, f"{file}: line {number} has the answer")
                picture = file.name.split(".")[0]
                name = f"{task.name}/{picture}#{number}"
                questions.append(MmeQuestion(name, task.name, picture, question, label, files.get(file.stem)))
    if not questions:
        raise ValueError(f"{folder}: no questions there; expected a folder for each task with texts of the questions")
    return MmeData(questions)


def _rule(
    data: MmeData, joined: Joined, read: Callable[[str], str]
) -> tuple[dict[str, float], dict[str, float], list[dict[str, Any]]]:
    """Points, further figures of each task, and samples."""
    samples: list[dict[str, Any]] = []
    for question, text, line in joined.beside(data.questions):
        parsed = read(text).lower() if line is not None else "other"
        answer = "yes" if question.label else "no"
        facts = {"score": float(parsed == answer), "parsed": parsed, "answer": answer}
        samples.append({"id": question.id, "category": question.task, **facts})
    points: dict[str, float] = {}
    details: dict[str, float] = {}
    pairs = zip(samples, data.questions, strict=True)
    for task, some in group_by(pairs, lambda pair: pair[1].task).items():
        figures = _figures([sample for sample, _ in some], [question.picture for _, question in some])
        points[task] = figures["acc"] * 100 + figures["acc_plus"] * 100
        details |= {f"{task}/{name}": value for name, value in figures.items()}
    perception, cognition = (sum(points.get(task, 0) for task in tasks) for tasks in (PERCEPTION, COGNITION))
    sums = {"perception": perception, "cognition": cognition, "total": perception + cognition}
    return {**points, **sums, "accuracy": mean_score(samples)}, details, samples


def _figures(samples: Lines, pictures: Sequence[str]) -> dict[str, float]:
    pairs = group_by(zip(samples, pictures, strict=True), lambda pair: pair[1]).values()
    clear = [sample for sample in samples if sample["parsed"] in ("yes", "no")]
    confusion = Confusion.of([s["parsed"] == "yes" for s in clear], [s["answer"] == "yes" for s in clear])
    return {
        "acc": mean_score(samples),
        "acc_plus": mean(min(sample["score"] for sample, _ in pair) for pair in pairs),
        **{name: value for name, value in confusion.figures.items() if name != "accuracy"},
        **confusion.counts,
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
    load, rate = staticmethod(load_mme), staticmethod(score_mme)
    _note = "sums of points, up to 2000 and 800; the release folder may be given as the data"
    releases = (published_table("mme", "MME", caution=_note),)
    prompts = ("reference", "llava", "plain")
    headline = ("official", "total")

    def questions(self) -> Sequence[Question]:
        """All questions; the two about a picture one after the other."""
        data = load_mme(self.data)
        rows = [question.row for question in data.questions if question.row is not None]
        pictures = TablePictures(rows, self.image_folder, str(self.data[0]))
        return [self._question(question, pictures) for question in data.questions]

    def _question(self, question: MmeQuestion, pictures: TablePictures) -> Question:
        text = question.text
        if self.prompt == "reference":
            text = text.replace(SENTENCE, REFERENCE_SENTENCE)
        elif self.prompt == "llava":
            text = text.replace(f" {SENTENCE}", f"\n{SHORT_ANSWER_REQUEST}")
        fields = {"category": question.task, "question": question.text}
        if question.row is not None:
            return picture_question(question.row, text, pictures, **fields)
        number, file = question.id, question.file
        if file is None:
            opener = partial(_no_picture, f"{self.data[0]}: {number}")
        else:
            opener = partial(open_in_folder, file.parent, file.name, f"question {number}")
        return Question(number, text, opener, str(file or number), number, fields)


def _no_picture(owner: str) -> Any:
    from mg_llava.data.pictures.files import PictureError

    raise PictureError(f"{owner} has no picture beside it; download the release again", "missing")
