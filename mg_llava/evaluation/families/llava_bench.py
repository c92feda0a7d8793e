"""LLaVA-Bench (in the wild): a judge's scores of the model's answers, relative to those of a reference."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import id_key
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.judging import verdicts
from mg_llava.evaluation.judging.protocol import JudgeProtocol, Messages, from_user
from mg_llava.evaluation.judging.verdicts import JudgedQuestion
from mg_llava.evaluation.release import HUGGING_FACE, JUDGED, Release
from mg_llava.evaluation.scoring import files
from mg_llava.evaluation.scoring.joining import Line, Lines, ScoreResult, join_predictions, name_ids, reply_text


def load_llava_bench(paths: Sequence[Path]) -> list[JudgedQuestion]:
    """Questions of ``questions.jsonl``, with ``context.jsonl`` and ``answers_gpt4.jsonl`` where they are given."""
    is_one_file = len(paths) == 1 and not paths[0].is_dir()
    path = paths[0] if is_one_file else files.find_file(paths, "question file", "*questions*.jsonl")
    contexts = {line.get("image"): line.get("caption") for line in _optional(paths, "*context*.jsonl")}
    answers = {id_key(line.get("question_id")): line.get("text", "") for line in _optional(paths, "*gpt4*.jsonl")}
    rules: dict[str, Any] = next((files.read_json(file) for file in files.find_files(paths, "rule*.json")), {})
    questions = []
    for number, line in enumerate(files.read_json_lines(path), start=1):
        name = files.take(line, "question_id", f"{path}: line {number}")
        category = f"llava_bench_{line['category']}" if "category" in line else ""
        context, rule = contexts.get(line.get("image")) or "", rules.get(category, {})
        context = "\n".join(context) if isinstance(context, list) else str(context)
        groups, answer = (category,) if category else (), str(answers.get(id_key(name), ""))
        text, image = (str(line.get(field, "")) for field in ("text", "image"))
        task = str(rule.get("prompt", "")), str(rule.get("role", "Assistant"))
        questions.append(JudgedQuestion(name, text, answer, groups, image, context, *task))
    files.check_unique((question.id for question in questions), path)
    return questions


def score_llava_bench(annotations: Sequence[JudgedQuestion], predictions: Lines, **options: Any) -> ScoreResult:
    """Mean score of the model over mean score of the reference, in all and for each category.

    Only reviews that are there count. A review without two scores counts as -1 and -1, as in the official script.
    """
    ids, texts = [question.id for question in annotations], ("tuple", *verdicts.REPLY_FIELDS, "text", "prediction")
    joined = join_predictions(ids, predictions, ("question_id", "id"), texts)
    pairs: dict[str, list[Sequence[float]]] = defaultdict(list)
    samples = []
    for question, _, line in joined.beside(annotations):
        pair, group = _score_pair(line), "".join(question.groups)
        if line is not None and pair is not None:
            pairs["all"].append(pair)
            if category := line.get("category", group):
                pairs[category].append(pair)
        ratio = pair[1] / pair[0] if pair and pair[0] > 0 else 0.0
        samples.append({"id": question.id, "score": ratio, "pair": pair, "category": group})
    if not pairs:
        return joined.result({}, [verdicts.needs_judge("llava_bench")])
    broken = [sample["id"] for sample in samples if list(sample["pair"] or ()) == [-1, -1]]
    if len(broken) == len(pairs["all"]):  # -1 over -1 would be 100 %
        return joined.result({}, [verdicts.unreadable("llava_bench", broken)])
    warnings = [
        *name_ids(broken, "reviews have not two scores: -1"),
        *name_ids((s["id"] for s in samples if s["pair"] is None), "questions have no review and are left out"),
    ]
    rules = {"official": (_llava_bench_metrics(pairs), samples)}
    return joined.result(rules, warnings, judge=verdicts.judge_names(joined.lines))


def parse_score_pair(review: str) -> tuple[float, float]:
    """The two scores of a review's first line; (-1, -1) if there are not exactly two numbers."""
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        first, second = map(float, parts)
    except ValueError:
        return -1, -1
    return first, second


def _score_pair(line: Line | None) -> Sequence[float] | None:
    if line is None:
        return None
    if isinstance(line.get("tuple"), list) and len(line["tuple"]) == 2:
        return line["tuple"]
    reply = verdicts.find_judge_reply(line)
    return None if reply is None else parse_score_pair(reply_text(reply))


def _llava_bench_metrics(pairs: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    metrics: dict[str, Any] = {"reference_mean": {}, "model_mean": {}, "n": {}}
    rounded = {}
    for name, some in sorted(pairs.items()):
        reference, model = (sum(pair[side] for pair in some) / len(some) for side in (0, 1))
        metrics["reference_mean"][name], metrics["model_mean"][name] = reference, model
        metrics["n"][name] = len(some)
        if reference:
            metrics[name] = model / reference
        if round(reference, 3):
            # The script rounds the means before it divides them.
            rounded[name] = round(round(model, 3) / round(reference, 3) * 100, 1)
    return {**metrics, "rounded": rounded}


def _optional(paths: Sequence[Path], pattern: str) -> files.Records:
    return [line for file in files.find_files(paths, pattern)[:1] for line in files.read_json_lines(file)]


_INSTRUCTION = (
    "Compare the two answers to the question above. The context describes the picture that the question is about. "
    "Score each answer from 1 to 10 for how helpful, relevant, accurate and detailed it is; more is better. Write the "
    "scores of the first and of the second answer, separated by a space, as the first line and nothing else in it. "
    "Explain them in the lines below, and do not let the order of the answers count."
)


def _load_for_judge(paths: Sequence[Path]) -> list[JudgedQuestion]:
    """Questions with all that a judge compares: answers of the reference, and contexts where they are given."""
    questions = load_llava_bench(paths)
    unanswered = name_ids(
        (question.id for question in questions if not question.answer),
        "questions have no answer of the reference to compare with; give answers_gpt4.jsonl too, or the whole folder",
    )
    lacking = [question.id for question in questions if not question.context]
    if len(lacking) == len(questions):
        lacking = []
    undescribed = name_ids(
        lacking, "questions have no description of their picture in context.jsonl; download it again"
    )
    for problem in (*unanswered, *undescribed):
        raise ValueError(f"{files.listing(paths)}: {problem}")
    return questions


def _ask(question: JudgedQuestion, text: str) -> Messages:
    role = question.role
    content = (
        f"[Context]\n{question.context}\n\n[Question]\n{question.text}\n\n"
        f"[{role} 1]\n{question.answer}\n\n[End of {role} 1]\n\n[{role} 2]\n{text}\n\n[End of {role} 2]\n\n"
        f"[System]\n{question.instruction or _INSTRUCTION}\n\n"
    )
    return from_user(content, system="You check carefully and exactly how good answers are.")


@BENCHMARKS.register
class LLaVABench(Benchmark):
    """LLaVA-Bench (in the wild) from its folder or ``questions.jsonl``; ``tools/judge.py`` adds judge's replies."""

    scorer = "llava_bench"
    form = "the official files; judge replies"
    load, rate = staticmethod(load_llava_bench), staticmethod(score_llava_bench)
    # The script counts what it cannot read as -1 and does not ask again.
    judge = JudgeProtocol(
        "llava_bench-1", _load_for_judge, _ask, lambda reply: True, max_tokens=1024, temperature=0.2, attempts=1
    )
    _folder = "llava-bench-in-the-wild"
    _get = f"{HUGGING_FACE}liuhaotian/{_folder}, the whole folder; rule.json is in LLaVA's repository"
    releases = (Release("llava_bench", (_folder,), f"{_folder}/images", _get, "LLaVA-W", JUDGED),)
    id_field, text_field = "question_id", "text"
    headline = ("official", "all")
    max_new_tokens = 1024

    def questions(self) -> Sequence[Question]:
        """All questions."""
        return [
            self.ask(one.id, one.text, one.image, "images", fields={"prompt": one.text})
            for one in load_llava_bench(self.data)
        ]
