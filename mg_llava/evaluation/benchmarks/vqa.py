"""Questions with short answers: TextVQA, DocVQA, InfographicVQA, OCR-VQA, ChartQA, VQAv2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mg_llava.data.records.tables import TablePictures, read_table, require_columns
from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.benchmarks.multiple_choice import picture_question
from mg_llava.evaluation.benchmarks.yes_no import file_opener
from mg_llava.evaluation.scorers.files import find_file, find_files, read_json, read_json_lines, take
from mg_llava.evaluation.scorers.joining import ScoreResult
from mg_llava.evaluation.scorers.vqa_text import load_textvqa, textvqa_key
from mg_llava.registry import BENCHMARKS

SHORT_ANSWER_REQUEST = "Answer the question using a single word or phrase."


def ask_shortly(question: str) -> str:
    """A question with the request for a short answer."""
    return f"{question}\n{SHORT_ANSWER_REQUEST}"


def table_questions(path: Path, image_folder: Path | None) -> list[Question]:
    """Questions of a TSV with columns ``index`` and ``question`` and pictures in its cells or in the folder."""
    rows = require_columns(path, read_table(path), ["index", "question"])
    pictures = TablePictures(rows, image_folder, str(path))
    return [picture_question(row, ask_shortly(row["question"]), pictures) for row in rows]


@BENCHMARKS.register_module()
class TextVQA(Benchmark):
    """TextVQA from ``TextVQA_0.5.1_val.json`` and LLaVA's question jsonl, or from a TSV.

    Prompts: ``reference`` is the text of the jsonl, which has the OCR tokens of the picture in it; ``no_ocr`` leaves
    them out, as other tool kits do (some ten points less). Without the jsonl there is ``no_ocr`` only.
    """

    scorer: ClassVar[str] = "textvqa"
    prompts: ClassVar[tuple[str, ...]] = ("reference", "no_ocr")
    text_field: ClassVar[str] = "text"
    headline: ClassVar[tuple[str, str]] = ("official", "accuracy")

    def questions(self) -> Sequence[Question]:
        """Questions in the order of the jsonl, or else of the annotation file or the table."""
        if find_files(self.data, "*.tsv", "*.csv"):
            self._needs_ocr(False)
            return table_questions(find_file(self.data, "TextVQA table", "*.tsv", "*.csv"), self.image_folder)
        return list(self._annotated())

    def _annotated(self) -> Iterator[Question]:
        lines = [line for file in find_files(self.data, "*.jsonl") for line in read_json_lines(file)]
        self._needs_ocr(bool(lines))
        ids: dict[str, list[Any]] = {}
        for record in load_textvqa(self.data):
            ids.setdefault(record.key, []).append(record.id)
        for line in lines or self._records():
            same = ids[textvqa_key(line)]
            question_id = same.pop(0) if len(same) > 1 else same[0]
            text = line["text"] if self.prompt == "reference" else ask_shortly(line["text"].split("\n")[0])
            picture, name = line["question_id"], line["image"]
            opener = file_opener((self.image_folder or self.data[0].parent) / name, f"question {question_id}")
            yield Question(question_id, text, opener, name, picture, {"question_id": picture, "prompt": text})

    def _records(self) -> list[dict[str, Any]]:
        """The annotations in the form of the jsonl."""
        path = find_file(self.data, "TextVQA annotation file", "*.json")
        return [
            {"question_id": one["image_id"], "image": f"{one['image_id']}.jpg", "text": ask_shortly(one["question"])}
            for one in take(read_json(path), "data", str(path))
        ]

    def _needs_ocr(self, there: bool) -> None:
        if self.prompt == "reference" and not there:
            raise ValueError(
                f"{self.name}: the prompt with OCR tokens needs llava_textvqa_val_v051_ocr.jsonl among the data; "
                "without it use prompt='no_ocr'"
            )


@BENCHMARKS.register_module()
class DocVQA(Benchmark):
    """DocVQA from the official JSON with its pictures in ``image_folder``, or from a TSV."""

    scorer: ClassVar[str] = "docvqa"
    headline: ClassVar[tuple[str, str]] = ("official", "anls")

    def questions(self) -> Sequence[Question]:
        """All questions."""
        path = find_file(self.data, "question file (official JSON, or TSV)", "*.json", "*.tsv", "*.csv")
        if path.suffix != ".json":
            return table_questions(path, self.image_folder)
        return [self._question(record, path) for record in take(read_json(path), "data", str(path))]

    def _question(self, record: Mapping[str, Any], path: Path) -> Question:
        name = str(record.get("image") or record["image_local_name"])
        number = record["questionId"]
        opener = file_opener((self.image_folder or path.parent) / name, f"question {number}")
        return Question(number, ask_shortly(record["question"]), opener, name, number)


@BENCHMARKS.register_module()
class InfoVQA(DocVQA):
    """InfographicVQA, in the forms of DocVQA."""

    scorer: ClassVar[str] = "infovqa"


@BENCHMARKS.register_module()
class OCRVQA(Benchmark):
    """OCR-VQA from a TSV."""

    scorer: ClassVar[str] = "ocrvqa"
    headline: ClassVar[tuple[str, str]] = ("official", "accuracy")

    def questions(self) -> Sequence[Question]:
        """All rows."""
        return table_questions(find_file(self.data, "question table", "*.tsv", "*.csv"), self.image_folder)


@BENCHMARKS.register_module()
class ChartQA(Benchmark):
    """ChartQA from a TSV, or from ``test_human.json`` and ``test_augmented.json`` with a folder of pictures."""

    scorer: ClassVar[str] = "chartqa"
    headline: ClassVar[tuple[str, str]] = ("official", "mean_of_splits")

    def questions(self) -> Sequence[Question]:
        """All questions; ids are ``test_human/0``, ... where the files have none."""
        if find_files(self.data, "*.tsv", "*.csv"):
            return table_questions(find_file(self.data, "question table", "*.tsv", "*.csv"), self.image_folder)
        questions = []
        for path in find_files(self.data, "*.json"):
            for number, record in enumerate(read_json(path)):
                name, number_there = str(record["imgname"]), f"{path.stem}/{number}"
                opener = file_opener((self.image_folder or path.parent) / name, f"question {number_there}")
                questions.append(Question(number_there, ask_shortly(record["query"]), opener, name, number_there))
        return questions


@BENCHMARKS.register_module()
class VQAv2(Benchmark):
    """VQAv2 from the official question JSON (with annotations, to be scored) or from LLaVA's jsonl.

    Args:
        submission: All questions of the test split (``llava_vqav2_mscoco_test2015.jsonl``): ``score`` then writes the
            test server's list instead of an accuracy.
        **arguments: As of ``Benchmark``.
    """

    scorer: ClassVar[str] = "vqav2"
    id_field: ClassVar[str] = "question_id"
    text_field: ClassVar[str] = "text"
    headline: ClassVar[tuple[str, str]] = ("official_processed", "accuracy")

    def __init__(self, *args: Any, submission: str | Path | None = None, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.submission = None if submission is None else Path(submission)

    def questions(self) -> Sequence[Question]:
        """All questions of the jsonl, or else of the question JSON."""
        for path in find_files(self.data, "*.jsonl"):
            return [self._question(line["question_id"], line["text"], line["image"]) for line in read_json_lines(path)]
        for path in find_files(self.data, "*.json"):
            content = read_json(path)
            if isinstance(content, dict) and "questions" in content:
                split = content.get("data_subtype", "val2014")
                return [
                    self._question(
                        one["question_id"],
                        ask_shortly(one["question"]),
                        f"COCO_{split}_{int(one['image_id']):012d}.jpg",
                    )
                    for one in content["questions"]
                ]
        raise ValueError(f"{self.name}: no questions among {', '.join(map(str, self.data))}")

    def score(self, predictions: Sequence[Mapping[str, Any]], **options: Any) -> ScoreResult:
        """As of ``Benchmark``; the list for the test server where ``submission`` is given."""
        if self.submission is None:
            return super().score(list(map(dict, predictions)), **options)
        from mg_llava.evaluation.scorers import score_predictions

        return score_predictions("vqav2_submission", [self.submission], predictions, **options)

    def _question(self, number: int, text: str, name: str) -> Question:
        opener = file_opener((self.image_folder or self.data[0].parent) / name, f"question {number}")
        return Question(number, text, opener, name, number)
