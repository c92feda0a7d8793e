"""TextVQA: questions about text in pictures, soft accuracy over ten annotators."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import id_key
from mg_llava.evaluation.asking import ask_shortly
from mg_llava.evaluation.benchmark import BENCHMARKS, Question
from mg_llava.evaluation.families import short_answers
from mg_llava.evaluation.families.short_answers import NO_ANSWERS, AnsweredQuestion, ShortAnswers, load_answer_table
from mg_llava.evaluation.release import EVAL_ZIP, Release
from mg_llava.evaluation.scoring.answers import normalize_evalai, round_as_printed, soft_accuracy
from mg_llava.evaluation.scoring.figures import mean
from mg_llava.evaluation.scoring.files import TABLES, Records, find_file, find_files, read_json, read_json_lines, take
from mg_llava.evaluation.scoring.joining import Joined, Line, Lines, ScoreResult, join_predictions, join_repeated

_ANNOTATORS = 10


def textvqa_question(prompt: str) -> str | None:
    """The question in a TextVQA prompt, lowercased; None where the official script would stop with an error."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        match = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        return match.group(1).lower() if match else None
    if "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    return lines[0].lower() if len(lines) == 2 else None


def load_textvqa(paths: Sequence[Path]) -> list[AnsweredQuestion]:
    """Questions of ``TextVQA_0.5.1_val.json`` (those of the question jsonl only, if there is one), or of a TSV."""
    if find_files(paths, *TABLES):
        return load_answer_table(find_file(paths, "TextVQA table", *TABLES))
    path = find_file(paths, "TextVQA annotation file", "*.json")
    records: dict[str, list[AnsweredQuestion]] = defaultdict(list)
    for number, record in enumerate(take(read_json(path), "data", str(path)), start=1):
        where = f"{path}: entry {number} of data"
        picture, question = take(record, "image_id", where), take(record, "question", where)
        key = _join_key(picture, str(question).lower())
        records[key].append(AnsweredQuestion(record.get("question_id", picture), record.get("answers") or (), key=key))
    questions = [_key_of(line) for line in _question_lines(paths)]
    unknown = [key for key in questions if key not in records]
    if unknown:
        raise ValueError(f"{path}: no question {unknown[0]!r}, which the question file has ({len(unknown)} such)")
    wanted = Counter(questions or (key for key, some in records.items() for _ in some))
    # Of questions that are there twice, the answers of the last one count for both, as in LLaVA's script.
    return [replace(one, answers=some[-1].answers) for key, some in records.items() for one in some[: wanted[key]]]


def score_textvqa(annotations: Sequence[AnsweredQuestion], predictions: Lines, **options: Any) -> ScoreResult:
    """Soft accuracy after the EvalAI processor, joined by picture and question as LLaVA's script does.

    LLaVA's script averages over the predictions that are there; ``accuracy_over_all`` counts missing ones as wrong.
    """
    joined = _join(annotations, predictions)
    if not any(record.answers for record in annotations):
        return joined.result({}, [NO_ANSWERS])
    samples = []
    scores = []
    for record, text, line in joined.beside(annotations):
        answer = normalize_evalai(text)
        references = [normalize_evalai(str(reference)) for reference in record.answers]
        score = soft_accuracy(answer, references) if references and line is not None else 0.0
        scores += [] if line is None else [score]
        common = max(references, key=references.count, default="")
        samples.append({"id": record.id, "score": score, "parsed": answer, "answer": common})
    metrics = {
        "accuracy": mean(scores),
        "accuracy_over_all": sum(scores) / joined.n,
        "n_scored": len(scores),
        "rounded": {"accuracy": round_as_printed(100.0 * mean(scores))},
    }
    warnings = []
    if joined.n_missing:
        warnings.append("accuracy is over the questions with a prediction, as in the official script")
    odd = sum(len(record.answers) != _ANNOTATORS for record in annotations)
    if odd:
        warnings.append(f"{odd} questions have not {_ANNOTATORS} answers, which the official script would stop at")
    return joined.result({"official": (metrics, samples)}, warnings)


def _question_lines(paths: Sequence[Path]) -> Records:
    return [line for file in find_files(paths, "*.jsonl") for line in read_json_lines(file)]


def _join_key(picture: Any, question: str) -> str:
    return f"{id_key(picture)}: {question}"


def _key_of(line: Line) -> str:
    """What a line of the question file, or a prediction with its prompt, is joined on: picture and question."""
    prompt = str(line.get("prompt") or line.get("text") or "")
    question = textvqa_question(prompt)
    return _join_key(line.get("question_id"), prompt.split("\n")[0].lower() if question is None else question)


def _join(annotations: Sequence[AnsweredQuestion], predictions: Lines) -> Joined:
    if annotations and not annotations[0].key:
        return join_predictions(
            [record.id for record in annotations], predictions, short_answers.ID_FIELDS, short_answers.TEXT_FIELDS
        )
    aliases = {id_key(record.id): record.key for record in annotations}

    def key(line: Line) -> str:
        if line.get("prompt"):
            return _key_of(line)
        name = id_key(next((line[name] for name in short_answers.ID_FIELDS if name in line), None))
        return aliases.get(name, name)

    return join_repeated([record.key for record in annotations], predictions, key, ("text", "prediction"))


@BENCHMARKS.register
class TextVQA(ShortAnswers):
    """TextVQA from ``TextVQA_0.5.1_val.json`` and LLaVA's question jsonl, or from a TSV.

    Prompts: ``reference`` is the text of the jsonl, which has the OCR tokens of the picture in it; ``no_ocr`` leaves
    them out, as other tool kits do (some ten points less). Without the jsonl there is ``no_ocr`` only.
    """

    scorer = "textvqa"
    form = 'TextVQA_0.5.1_val.json and the question jsonl, or the TSV; lines {"question_id", "prompt", "text"}'
    load, rate = staticmethod(load_textvqa), staticmethod(score_textvqa)
    _files = ("textvqa/TextVQA_0.5.1_val.json", "textvqa/llava_textvqa_val_v051_ocr.jsonl")
    _get = (
        "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json and .../textvqa/images/"
        f"train_val_images.zip; the jsonl is in {EVAL_ZIP}"
    )
    _note = "the prompts hold OCR tokens, as the paper's do; toolkits that leave them out give 10 points less"
    releases = (Release("textvqa", _files, "textvqa/train_images", _get, "TextVQA", _note),)
    prompts = ("reference", "no_ocr")
    text_field = "text"

    def questions(self) -> Sequence[Question]:
        """Questions in the order of the jsonl, or else of the annotation file or the table."""
        if self.prompt == "reference" and (find_files(self.data, *TABLES) or not _question_lines(self.data)):
            raise ValueError(
                f"{self.name}: the prompt with OCR tokens needs llava_textvqa_val_v051_ocr.jsonl among the data; "
                "without it use prompt='no_ocr'"
            )
        return super().questions()

    def questions_of_json(self) -> Sequence[Question]:
        """Questions of the jsonl, or else of the annotation file."""
        ids: dict[str, list[Any]] = defaultdict(list)
        for record in load_textvqa(self.data):
            ids[record.key].append(record.id)
        questions = []
        for line in _question_lines(self.data) or self._records():
            same = ids[_key_of(line)]
            number = same.pop(0) if len(same) > 1 else same[0]
            text = line["text"] if self.prompt == "reference" else ask_shortly(line["text"].split("\n")[0])
            picture = line["question_id"]
            fields = {"question_id": picture, "prompt": text}
            questions.append(self.ask(number, text, line["image"], box_key=picture, fields=fields))
        return questions

    def _records(self) -> Records:
        """The annotations in the form of the jsonl."""
        path = find_file(self.data, "TextVQA annotation file", "*.json")
        return [
            {"question_id": one["image_id"], "image": f"{one['image_id']}.jpg", "text": ask_shortly(one["question"])}
            for one in take(read_json(path), "data", str(path))
        ]
