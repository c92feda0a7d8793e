"""The miniature's benchmarks: its seven kinds of questions, and the MMBench and POPE files that are made of them.

The files are made of ``heldout.jsonl`` alone, with random numbers of their own, so that they change nothing else. The
small LLM has never seen the requests that the public benchmarks add to a question, so its prompts do without.
"""

from __future__ import annotations

import base64
import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.families.multiple_choice import MMBench
from mg_llava.evaluation.families.pope import POPE
from mg_llava.evaluation.release import Release
from mg_llava.evaluation.scoring.choice_table import CIRCULAR_STEP, options_of
from mg_llava.evaluation.scoring.figures import group_by, mean_score
from mg_llava.evaluation.scoring.joining import ScoreResult, join_predictions
from mg_llava.work.atomic import replacing

GENERATED = Path(__file__).resolve().parent / "generated"
NAMES = ("nano", "mmbench_nano", "pope_nano")
MMBENCH_FILE = "mmbench_nano.tsv"
POPE_FOLDER = "pope"
COLUMNS = (
    *("index", "question", "hint", "A", "B", "C", "D", "answer"),
    *("category", "image", "source", "l2-category", "comment", "split"),
)
LETTERS = "ABCD"
SPLITS = ("random", "popular", "adversarial")
MAKE = "it with `python data/nano/make_data.py`"
Line = dict[str, str]


def load_lines(paths: Sequence[Path]) -> list[Line]:
    """The lines of ``heldout.jsonl``: id, picture, image, question, answer, kind."""
    return [json.loads(line) for line in paths[0].read_text().splitlines()]


def score_kinds(lines: Sequence[Line], predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
    """Exact match of the stripped text, of all and by kind; missing replies are wrong."""
    joined = join_predictions([line["id"] for line in lines], predictions, "id")
    samples = [
        {
            "id": line["id"],
            "score": float(text.strip() == line["answer"].strip()),
            "parsed": text,
            "answer": line["answer"],
            "category": line["kind"],
        }
        for line, text, _ in joined.beside(lines)
    ]
    result = joined.result({"exact": ({"accuracy": mean_score(samples)}, samples)})
    kinds = group_by(samples, lambda sample: sample["category"])
    result["rules"]["exact"]["metrics"]["kinds"] = {kind: mean_score(some) for kind, some in kinds.items()}
    return result


@BENCHMARKS.register
class NanoKinds(Benchmark):
    """``heldout.jsonl``: exact match by kind of question; pictures are in ``images/`` beside it."""

    scorer = "nano"
    form = 'heldout.jsonl; lines {"id", "prediction"}'
    load, rate = staticmethod(load_lines), staticmethod(score_kinds)
    releases = (Release("nano", ("heldout.jsonl",), "images", MAKE),)
    prompts = ("nano",)
    id_field = "id"
    headline = ("exact", "accuracy")
    max_new_tokens = 24

    def questions(self) -> Sequence[Question]:
        """One question of each kind for each picture."""
        return [self._question(line) for line in load_lines(self.data)]

    def _question(self, line: Line) -> Question:
        return self.ask(line["id"], line["question"], line["image"], "images", box_key=line["picture"])


@BENCHMARKS.register
class NanoMMBench(MMBench):
    """The choice questions as an MMBench table, four rows each."""

    releases = (Release("mmbench_nano", (MMBENCH_FILE,), "images", MAKE),)
    prompts = ("nano",)
    max_new_tokens = 24

    def _question(self, row: Any, pictures: Any) -> Question:
        text = "\n".join([row["question"], *(f"{letter}. {option}" for letter, option in options_of(row).items())])
        return replace(super()._question(row, pictures), text=text, box_key=row["source"])


@BENCHMARKS.register
class NanoPOPE(POPE):
    """The presence questions as POPE's three files."""

    releases = (Release("pope_nano", (POPE_FOLDER,), "images", MAKE),)
    prompts = ("nano",)
    max_new_tokens = 24

    def _question(self, question: Any, request: str) -> Question:
        built = super()._question(question, request)
        name = Path(str(question.cells["image"]))
        return replace(built, text=str(question.cells["text"]), box_key=f"{name.parent.name}-{name.stem}")


def write_benchmark_files(folder: Path) -> None:
    """Write the table and the three files of questions beside ``heldout.jsonl``."""
    lines = load_lines([folder / "heldout.jsonl"])
    _write_mmbench(folder, [line for line in lines if line["kind"] == "choice"])
    _write_pope(folder, [line for line in lines if line["kind"] == "list"])


def _write_mmbench(folder: Path, choices: Sequence[Line]) -> None:
    """The choice questions as a table with circular copies: four rows a question, its options rotated.

    The picture is in the first row of a question; the others name that row, as published tables do.
    """
    with replacing(folder / MMBENCH_FILE, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n", restval="")
        writer.writeheader()
        for turn in range(len(LETTERS)):
            writer.writerows(_mmbench_row(folder, number, turn, line) for number, line in enumerate(choices))


def _mmbench_row(folder: Path, number: int, turn: int, line: Line) -> dict[str, object]:
    question, *options = line["question"].splitlines()
    texts = [option.partition(". ")[2] for option in options]
    texts = texts[turn:] + texts[:turn]
    picture = base64.b64encode((folder / "images" / line["image"]).read_bytes()).decode() if turn == 0 else number
    return {
        "index": number + turn * CIRCULAR_STEP,
        "question": question,
        **dict(zip(LETTERS, texts, strict=True)),
        "answer": LETTERS[(LETTERS.index(line["answer"]) - turn) % len(LETTERS)],
        "category": "object_recognition",
        "l2-category": "perception",
        "image": picture,
        "source": line["picture"],  # where the box files have its boxes
        "split": "dev",
    }


def _write_pope(folder: Path, lists: Sequence[Line]) -> None:
    """One digit of each picture and one that is not in it, in each of POPE's three ways to choose the latter.

    ``random``: any digit; ``popular``: the most frequent one in all pictures; ``adversarial``: the one that is most
    often together with a digit of the picture.
    """
    there = [[int(digit) for digit in line["answer"].split(", ")] for line in lists]
    frequency = Counter(digit for digits in there for digit in digits)
    together = Counter((a, b) for digits in there for a in digits for b in digits if a != b)
    rng = np.random.default_rng(0)
    questions: dict[str, list[str]] = {split: [] for split in SPLITS}
    for line, digits in zip(lists, there, strict=True):
        absent = [digit for digit in range(10) if digit not in digits]
        chosen = int(rng.choice(digits))
        others = {
            "random": int(rng.choice(absent)),
            "popular": max(absent, key=lambda digit: frequency[digit]),
            "adversarial": max(absent, key=lambda digit: sum(together[digit, other] for other in digits)),
        }
        for split, other in others.items():
            for digit, label in ((chosen, "yes"), (other, "no")):
                number, text = len(questions[split]) + 1, f"Is there a {digit} in the picture?"
                row = {"question_id": number, "image": line["image"], "text": text, "label": label}
                questions[split].append(json.dumps(row) + "\n")
    (folder / POPE_FOLDER).mkdir(exist_ok=True)
    for split, rows in questions.items():
        _pope_file(folder, split).write_text("".join(rows))


def _pope_file(folder: Path, split: str) -> Path:
    return folder / POPE_FOLDER / f"coco_pope_{split}.json"
