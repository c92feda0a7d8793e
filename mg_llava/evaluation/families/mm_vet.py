"""MM-Vet: a judge's grades from 0 to 1, averaged over questions, capabilities and their combinations."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import id_key
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.judging import verdicts
from mg_llava.evaluation.judging.protocol import JudgeProtocol, Messages, from_user
from mg_llava.evaluation.judging.verdicts import JudgedQuestion
from mg_llava.evaluation.release import JUDGED, Release
from mg_llava.evaluation.scoring.answers import round_as_numpy
from mg_llava.evaluation.scoring.figures import group_by, mean
from mg_llava.evaluation.scoring.files import find_file, find_files, read_json, take
from mg_llava.evaluation.scoring.joining import Line, Lines, ScoreResult, join_predictions, name_ids, reply_text


def load_mm_vet(paths: Sequence[Path]) -> list[JudgedQuestion]:
    """Questions with answers and capabilities of ``mm-vet.json``."""
    patterns = ("mm-vet*.json",) if find_files(paths, "mm-vet*.json") else ("*.json",)
    path = find_file(paths, "file with MM-Vet's answers (mm-vet.json)", *patterns)
    questions = []
    for name, record in read_json(path).items():
        capabilities = tuple(sorted(set(take(record, "capability", f"{path}: question {name}"))))
        text, answer, picture = (record.get(field, "") for field in ("question", "answer", "imagename"))
        questions.append(JudgedQuestion(name, text, answer, capabilities, picture))
    return questions


def score_mm_vet(annotations: Sequence[JudgedQuestion], predictions: Lines, **options: Any) -> ScoreResult:
    """Mean grade, in all and for each capability and combination of them; several runs of the judge are averaged.

    Predictions are the official grade file (``{"v1_0": {"score": [...]}}``), or lines with ``score`` or a judge's
    reply; lines that differ in ``run`` only are runs.
    """
    ids = [question.id for question in annotations]
    texts = (*verdicts.REPLY_FIELDS, "score", "text", "prediction")
    joined = join_predictions(ids, _merged_runs(predictions), text_field=texts, key=_id_of)
    read = [_grades(line) for line in joined.lines]
    if not any(read):
        return joined.result({}, [verdicts.needs_judge("mm_vet")])
    broken = [name for name, some in zip(ids, read, strict=True) if None in some]
    if all(grade is None for some in read for grade in some):
        return joined.result({}, [verdicts.unreadable("mm_vet", broken)])
    runs = max(map(len, read))
    short = [name for name, some, line in zip(ids, read, joined.lines, strict=True) if line and len(some) < runs]
    warnings = [
        *name_ids(short, f"replies have fewer than {runs} grades; the missing ones count as 0"),
        *name_ids(broken, "questions have a judge's reply that is no grade from 0 to 1; it counts as 0"),
    ]
    samples, filled = [], []
    for question, some in zip(annotations, read, strict=True):
        grades = [grade or 0.0 for grade in some]
        filled.append([*grades, *[0.0] * (runs - len(grades))])
        score = sum(filled[-1]) / runs
        samples.append({"id": question.id, "score": score, "grades": grades, "category": list(question.groups)})
    metrics = _mm_vet_metrics(annotations, filled, runs)
    return joined.result({"official": (metrics, samples)}, warnings, judge=verdicts.judge_names(joined.lines))


def parse_grade(reply: str) -> float | None:
    """The grade 0 to 1 at the start of a judge's reply; None where the script would ask again."""
    try:
        grade = float(reply.split(" ")[0].strip())
    except ValueError:
        return None
    return grade if 0.0 <= grade <= 1.0 else None


def mm_vet_id(value: Any) -> str:
    """The id of a question in ``mm-vet.json`` (``v1_7``), also where LLaVA's question file has the number alone."""
    name = id_key(value)
    return f"v1_{name}" if name.isdigit() else name


def _id_of(line: Line) -> str:
    return mm_vet_id(next((line[name] for name in ("question_id", "id", "index") if name in line), None))


def _merged_runs(lines: Iterable[Line]) -> list[Line]:
    """Lines without ``run`` as they are; those with it, one for each id with all of its runs' replies."""
    lines = list(lines)
    merged = [line for line in lines if line.get("run") is None]
    runs = (line for line in lines if line.get("run") is not None)
    for some in group_by(runs, lambda line: id_key(line.get("question_id", line.get("id")))).values():
        last = {line["run"]: line for line in some}
        ordered = [last[run] for run in sorted(last, key=id_key)]
        merged.append({**ordered[-1], "judge": [verdicts.find_judge_reply(line) for line in ordered]})
    return merged


def _grades(line: Line | None) -> list[float | None]:
    """Grades of a line; None for a reply without one, which the script takes for 0 after five attempts."""
    if line is None:
        return []
    if line.get("score") is not None:
        values = line["score"] if isinstance(line["score"], list) else [line["score"]]
        return [float(value) for value in values]
    reply = verdicts.find_judge_reply(line)
    replies = reply if isinstance(reply, list) else [reply]
    return [parse_grade(reply_text(one)) for one in replies if one is not None]


def _mm_vet_metrics(
    questions: Sequence[JudgedQuestion], grades: Sequence[Sequence[float]], runs: int
) -> dict[str, Any]:
    members = [
        (name, some)
        for question, some in zip(questions, grades, strict=True)
        for name in (*question.groups, "total", "_".join(question.groups) + "\n")
    ]
    means = {
        name: [mean(grade[run] for _, grade in group) for run in range(runs)]
        for name, group in group_by(members, lambda member: member[0]).items()
    }
    percents = {name: [value * 100 for value in values] for name, values in means.items()}
    single = {name: sum(values) / runs for name, values in means.items()}
    rounded = {name: round_as_numpy(sum(values) / runs, 1) for name, values in percents.items()}
    middle = sum(percents["total"]) / runs
    deviation = (sum((value - middle) ** 2 for value in percents["total"]) / runs) ** 0.5

    def split(values: Mapping[str, float]) -> dict[str, Any]:
        alone = {name: value for name, value in values.items() if not name.endswith("\n")}
        return {**alone, "combinations": {name[:-1]: value for name, value in values.items() if name.endswith("\n")}}

    runs_rounded = [round_as_numpy(value, 1) for value in percents["total"]]
    shown = {**split(rounded), "std": round_as_numpy(deviation, 1), "runs": runs_rounded}
    return {**split(single), "std": deviation / 100, "runs": means["total"], "rounded": shown}


# A grade from 0.0 to 1.0, completed at the end of a table
_TABLE = """You grade answers. The last column of the table is how right the given answer is, from 0.0 (nothing is \
right) in steps of 0.1 to 1.0 (everything is right). <AND> in the true answer joins parts that are all needed; <OR> \
separates alternatives of which one is enough. Write the number that is missing in the last row, nothing else.

Question | True answer | Given answer | Grade
--- | --- | --- | ---
Which animals are there? | cat <AND> dog | There is a horse. | 0.0
Which animals are there? | cat <AND> dog | I see a cat. | 0.5
Which animals are there? | cat <AND> dog | A dog is lying beside a cat. | 1.0
What color is the bag? | red <OR> maroon | It is maroon. | 1.0
What does the sign ask for? | to keep the door shut, because the cat runs away | The door has to be closed. | 0.6
"""


def _ask(question: JudgedQuestion, text: str) -> Messages:
    answer = question.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return from_user(_TABLE + " | ".join([question.text, answer, text, ""]))


@BENCHMARKS.register
class MMVet(Benchmark):
    """MM-Vet from ``mm-vet.json``; ``tools/judge.py`` adds the judge's replies."""

    scorer = "mm_vet"
    form = "mm-vet.json; judge replies"
    load, rate = staticmethod(load_mm_vet), staticmethod(score_mm_vet)
    judge = JudgeProtocol(
        "mm_vet-1",
        load_mm_vet,
        _ask,
        lambda reply: parse_grade(reply) is not None,
        max_tokens=3,
        warmer=0.5,
        hint="\nThe grade as a number: ",
        key=mm_vet_id,
    )
    _get = "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip"
    releases = (Release("mm_vet", ("mm-vet/mm-vet.json",), "mm-vet/images", _get, "MM-Vet", JUDGED),)
    id_field, text_field = "question_id", "text"
    headline = ("official", "total")
    max_new_tokens = 1024

    def questions(self) -> Sequence[Question]:
        """All questions."""
        return [
            self.ask(one.id, one.text, one.image, "images", fields={"prompt": one.text})
            for one in load_mm_vet(self.data)
        ]
