"""POPE: yes or no to whether an object is in the picture, in three splits (random, popular, adversarial).

Metrics: ``SPLIT/accuracy``, ``precision``, ``recall``, ``f1``, ``yes_ratio`` and the counts ``TP``, ``FP``, ``TN``,
``FN`` of each split, ``*_rounded`` as LLaVA's script prints them (three decimals), and their means over the splits
without a prefix (``f1`` of ``official`` is the figure of the LLaVA-1.5 paper; also as ``average_f1``). ``vlmevalkit``
(tables only) pools the splits instead: ``Overall`` is F1.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import Row, cell_or_none, id_key, plain_id
from mg_llava.evaluation.asking import SHORT_ANSWER_REQUEST, YES_NO_REQUEST, table_questions
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import COCO_VAL, Release
from mg_llava.evaluation.scoring.figures import mean
from mg_llava.evaluation.scoring.files import listing, read_json_lines, read_rows
from mg_llava.evaluation.scoring.joining import Joined, Line, Lines, Rule, ScoreResult, join_predictions
from mg_llava.evaluation.scoring.yes_no import Confusion, pope_yes_no, read_label, reference_yes_no

ID_STEP = 10_000_000
OFFSETS = {"adversarial": 0, "random": 1, "popular": 2}
"""In LLaVA's question file ids of a split start after this many ``ID_STEP``."""
_IDS = ("question_id", "index", "id")
_TEXTS = ("text", "prediction", "answer")
_FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


@dataclass(frozen=True)
class PopeQuestion:
    """A question, of which a table has one line for all splits; predictions are joined by ``key``."""

    key: str
    id: int | str
    label: bool
    splits: tuple[str, ...]
    cells: Line

    @property
    def unique_id(self) -> int | str:
        """The id that LLaVA's question file has, unique over the splits; that of a table as it is."""
        if isinstance(self.cells, Row) or not isinstance(self.id, int) or self.id >= ID_STEP:
            return self.id
        return self.id + OFFSETS.get(self.splits[0], 0) * ID_STEP


@dataclass(frozen=True)
class PopeData:
    """The questions of the label files, or of a table."""

    questions: Sequence[PopeQuestion]
    splits: Sequence[str]
    is_table: bool
    warnings: Sequence[str]


def load_pope(paths: Sequence[Path]) -> PopeData:
    """Read label files (or the folder with them), or a table; raises ``ValueError`` that names file and line."""
    if len(paths) == 1 and paths[0].suffix.lower() in (".tsv", ".csv"):
        return _load_table(paths[0])
    files = [file for path in paths for file in (_label_files(path) if path.is_dir() else [path])]
    if not files:
        raise ValueError(f"{listing(paths)}: no coco_pope_*.json there")
    questions: dict[str, PopeQuestion] = {}
    warnings = []
    for file in files:
        split = split_of(file)
        for number, line in enumerate(read_json_lines(file), start=1):
            label = read_label(line.get("label", ""), f"{file}: line {number} has the label")
            question_id = line.get("question_id", number)
            key = f"{split}:{_place(question_id)[1]}"
            if key in questions:
                warnings.append(f"{file}: line {number} repeats question_id {question_id}; it was left out")
            else:
                questions[key] = PopeQuestion(key, question_id, label, (split,), line)
    return PopeData(list(questions.values()), list(dict.fromkeys(map(split_of, files))), False, warnings)


def split_of(file: Path) -> str:
    """``random`` of ``coco_pope_random.json``; the name of the file where it has no such part."""
    found = re.fullmatch(r".*pope_(.+)", file.stem)
    return found.group(1) if found else file.stem


def score_pope(data: PopeData, predictions: Lines, **options: Any) -> ScoreResult:
    """Score by the rules ``official`` (POPE's and LLaVA's script) and ``reference`` (MG-LLaVA).

    The scripts go by position in the files; here lines are joined by id. A question without a prediction counts as
    answered wrongly.
    """
    key = None if data.is_table else _key_of(data, predictions)
    joined = join_predictions([question.key for question in data.questions], predictions, _IDS, _TEXTS, key)
    warnings = dict.fromkeys(data.warnings)
    rules = {
        "official": _rule(data, joined, pope_yes_no, warnings),
        "reference": _rule(data, joined, reference_yes_no, warnings),
    }
    if data.is_table:
        rules["vlmevalkit"] = _pooled(data, joined)
    return joined.result(rules, list(warnings))


def _label_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("coco_pope_*.json")) or sorted(folder.glob("*pope_*.json"))
    return [file for file in files if file.is_file()]


def _load_table(path: Path) -> PopeData:
    rows, warnings = read_rows(path, "question", "answer")
    questions = []
    for row in rows:
        label = read_label(row["answer"], f"{path}: row {row.number} has the answer")
        splits = tuple(name for name in (cell_or_none(row, "category") or "all").split(",") if name)
        questions.append(PopeQuestion(id_key(row["index"]), plain_id(row["index"]), label, splits, row))
    return PopeData(questions, sorted({name for one in questions for name in one.splits}), True, warnings)


def _place(question_id: Any) -> tuple[int, str]:
    """The range that an id is in, and the id without the offset of that range."""
    name = id_key(question_id)
    if not name.isdigit():
        return 0, name
    offset, local = divmod(int(name), ID_STEP)
    return offset, str(local)


def _key_of(data: PopeData, predictions: Lines) -> Callable[[Line], str]:
    """Gives split and id of a prediction line, from its category, else from the range of its id."""

    def place(line: Line) -> tuple[int, str]:
        return _place(next((line[name] for name in _IDS if name in line), None))

    is_one_range = all(place(line)[0] == 0 for line in predictions)
    by_range = {offset: split for split, offset in OFFSETS.items()}

    def key(line: Line) -> str:
        offset, local = place(line)
        split = str(line.get("category") or "").removeprefix("coco_pope_")
        if not split:
            split = data.splits[0] if len(data.splits) == 1 and is_one_range else by_range.get(offset, "")
        return f"{split}:{local}"

    return key


def _rule(data: PopeData, joined: Joined, read: Callable[[str], str], warnings: dict[str, None]) -> Rule:
    samples = _samples(data, joined, read)
    metrics: dict[str, float] = {}
    for split in data.splits:
        part = [n for n, question in enumerate(data.questions) if split in question.splits]
        confusion = _confusion(data, samples, part)
        given = [str(samples[n]["parsed"]).lower() == "yes" for n in part if joined.lines[n] is not None]
        figures = {**confusion.figures, "yes_ratio": mean(given)}
        rounded = {f"{name}_rounded": round(value, 3) for name, value in figures.items()}
        metrics |= {f"{split}/{name}": value for name, value in {**figures, **confusion.counts, **rounded}.items()}
        if confusion.undefined:
            undefined = ", ".join(confusion.undefined)
            warnings[f"{split}: {undefined} would divide by zero in the script; taken as 0"] = None
    metrics |= {name: mean(metrics[f"{split}/{name}"] for split in data.splits) for name in _FIGURES}
    return {**metrics, "average_f1": metrics["f1"]}, samples


def _samples(data: PopeData, joined: Joined, read: Callable[[str], str]) -> list[dict[str, Any]]:
    """Right is a reply that counts as yes where yes is right, and as anything else where no is."""
    samples = []
    for question, text, line in joined.beside(data.questions):
        parsed = read(text) if line is not None else None
        right = parsed is not None and (parsed.lower() == "yes") == question.label
        answer = "yes" if question.label else "no"
        facts = {"category": ",".join(question.splits), "score": float(right), "parsed": parsed, "answer": answer}
        samples.append({"id": question.unique_id, **facts})
    return samples


def _confusion(data: PopeData, samples: Lines, part: Sequence[int]) -> Confusion:
    labels = [data.questions[n].label for n in part]
    return Confusion.of([label == (samples[n]["score"] == 1) for n, label in zip(part, labels, strict=True)], labels)


def _pooled(data: PopeData, joined: Joined) -> Rule:
    """VLMEvalKit's figures: a question counts once for each of its splits; an unclear reply is no to F1 but wrong."""
    samples = _samples(data, joined, reference_yes_no)
    strict = [{**sample, "score": float(str(sample["parsed"]).lower() == sample["answer"])} for sample in samples]
    metrics: dict[str, float] = {}
    for split in (None, *data.splits):
        part = [n for n, one in enumerate(data.questions) for name in one.splits if split in (None, name)]
        figures = _confusion(data, samples, part).figures
        shown = {"Overall": figures["f1"], "acc": mean(strict[n]["score"] for n in part)}
        shown |= {name: figures[name] for name in ("precision", "recall")}
        metrics |= {f"{split}/{name}" if split else name: value for name, value in shown.items()}
    return {**metrics, "f1": metrics["Overall"], "accuracy": metrics["acc"]}, strict


@BENCHMARKS.register
class POPE(Benchmark):
    """POPE; arguments as of ``Benchmark``.

    Ids are those of LLaVA's question file, which are unique over the splits. Boxes are looked up by the id of the
    label file; in the version with 2910 random questions that id means another picture than in the other splits.

    Prompts: ``reference`` is MG-LLaVA's, ``llava`` asks for a single word or phrase.
    """

    scorer = "pope"
    form = 'folder with coco_pope_*.json; lines {"question_id", "category", "text"} (TSV: {"index", "prediction"})'
    load, rate = staticmethod(load_pope), staticmethod(score_pope)
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
    id_field, text_field = "question_id", "text"
    headline = ("official", "f1")

    def questions(self) -> Sequence[Question]:
        """The questions of all splits, split by split."""
        data = load_pope(self.data)
        request = YES_NO_REQUEST if self.prompt == "reference" else SHORT_ANSWER_REQUEST
        if not data.is_table:
            return [self._question(question, request) for question in data.questions]
        rows = [question.cells for question in data.questions if isinstance(question.cells, Row)]
        return table_questions(rows, self.data[0], self.image_folder, lambda row: f"{row['question']}\n{request}")

    def _question(self, question: PopeQuestion, request: str) -> Question:
        (split,), cells = question.splits, question.cells
        owner, fields = f"question {question.id} of {split}", {"category": split}
        text = f"{cells['text']}\n{request}"
        return self.ask(question.unique_id, text, str(cells["image"]), owner=owner, box_key=question.id, fields=fields)
