"""Questions about short videos, MSVD-QA and MSRVTT-QA: a judge's verdicts by the protocol of Video-ChatGPT."""

import ast
import os
import posixpath
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.judging import verdicts
from mg_llava.evaluation.judging.protocol import JudgeProtocol, Messages, from_user
from mg_llava.evaluation.judging.verdicts import JudgedQuestion
from mg_llava.evaluation.release import JUDGED, Release
from mg_llava.evaluation.scoring.figures import share
from mg_llava.evaluation.scoring.files import check_unique, find_file, find_files, listing, read_json, take
from mg_llava.evaluation.scoring.joining import Line, Lines, ScoreResult, join_predictions, name_ids, reply_text
from mg_llava.tokens import VIDEO_PLACEHOLDER
from mg_llava.work.json_text import parse_json

_MISSING = object()
_QUESTIONS = ("*_q.json", "*_q_*.json", "*question*.json")
_ANSWERS = ("*_a.json", "*_a_*.json", "*answer*.json")
_HIGHEST = 5


def load_video_qa(paths: Sequence[Path]) -> list[JudgedQuestion]:
    """Questions of ``test_q.json`` with the answers at the same places of ``test_a.json``."""
    question_path, answer_files = _find(paths)
    questions = read_json(question_path)
    answers = read_json(answer_files[0]) if answer_files else [{} for _ in questions]
    if len(answers) != len(questions):
        raise ValueError(
            f"{answer_files[0]} has {len(answers)} answers for {len(questions)} questions of {question_path}; they "
            "belong together by position, so both files must be whole"
        )
    loaded = []
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
        where = f"{question_path}: entry {number}"
        name, text = take(question, "question_id", where), take(question, "question", where)
        video, truth = reply_text(question.get("video_name")), reply_text(answer.get("answer"))
        loaded.append(JudgedQuestion(name, str(text), truth, image=video))
    check_unique((question.id for question in loaded), question_path)
    return loaded


def _load_for_judge(paths: Sequence[Path]) -> list[JudgedQuestion]:
    """Questions with their true answers, which a judge compares with."""
    questions = load_video_qa(paths)
    unanswered = (question.id for question in questions if not question.answer)
    for problem in name_ids(unanswered, "questions have no true answer to compare with; give the answer file too"):
        raise ValueError(f"{listing(paths)}: {problem}")
    return questions


def score_video_qa(annotations: Sequence[JudgedQuestion], predictions: Lines, **options: Any) -> ScoreResult:
    """Accuracy (yes of yes and no) and mean score 0 to 5 of the Video-ChatGPT protocol, over the replies judged.

    Beside it, and where there is no judge, the share of answers that hold the true one, mostly a word, in their words.
    Predictions are the judge's combined file (``{id: [verdict, ...]}``), or lines with the judge's reply.
    """
    ids = [question.id for question in annotations]
    texts = (*verdicts.REPLY_FIELDS, "score", "pred", "prediction", "text")
    joined = join_predictions(ids, predictions, ("id", "question_id"), texts)
    counts = {"yes": 0, "no": 0}
    samples, replied, unread, unclear, beyond = [], [], [], [], []
    for name, _, line in joined.beside(ids):
        verdict = _verdict(line)
        score, answer = _read_verdict(verdict)
        replied += [] if verdicts.find_judge_reply(line) is None else [name]
        beyond += [] if 0 <= score <= _HIGHEST else [name]
        if verdict is _MISSING:
            unread += [] if line is None else [name]
        elif answer is None:
            unclear.append(name)
        else:
            counts[answer] += 1
        samples.append({"id": name, "score": float(answer == "yes"), "judge_score": score, "parsed": answer or ""})
    judged = len(ids) - len(unread) - joined.n_missing
    contained = _contained(annotations, joined)
    if not judged:
        about = "msvd_qa or msrvtt_qa"
        return joined.result(
            contained, [verdicts.unreadable(about, replied) if replied else verdicts.needs_judge(about)]
        )
    warnings = [
        *name_ids(unread, "predictions have no readable verdict and are left out"),
        *name_ids(unclear, "verdicts are neither yes nor no, or have no score; they are left out of the accuracy"),
        *name_ids(beyond, f"verdicts have a score that is not from 0 to {_HIGHEST}; the mean score has them too"),
    ]
    metrics: dict[str, Any] = {}
    if sum(counts.values()):
        metrics["accuracy"] = counts["yes"] / sum(counts.values())
    else:
        warnings.append("no verdict is yes or no: there is no accuracy")
    metrics |= {
        "score": sum(sample["judge_score"] for sample in samples) / judged,
        "accuracy_over_all": share(counts["yes"], joined.n),
        "n_judged": judged,
        **counts,
    }
    return joined.result(
        {"official": (metrics, samples), **contained}, warnings, judge=verdicts.judge_names(joined.lines)
    )


def _contained(annotations: Sequence[JudgedQuestion], joined: Any) -> dict[str, Any]:
    """The rule ``containment``, over questions that have a true answer; nothing where no predicted one is there."""
    texts = {question.id: _text(line) for question, _, line in joined.beside(annotations)}
    known = [question for question in annotations if question.answer]
    if not known or all(text is None for text in texts.values()):
        return {}
    right = {question.id: _holds(texts[question.id] or "", question.answer) for question in known}
    samples = [{"id": name, "score": float(held), "parsed": texts[name] or ""} for name, held in right.items()]
    answered = sum(texts[name] is not None for name in right)
    metrics: dict[str, Any] = {"accuracy": share(sum(right.values()), len(known)), "n_answered": answered}
    left_out = len(annotations) - len(known)
    return {"containment": (metrics | ({"n_without_true_answer": left_out} if left_out else {}), samples)}


def _text(line: Line | None) -> str | None:
    """The answer of a prediction line, which may have a verdict beside it."""
    if line is None:
        return None
    combined = line.get("prediction")
    if isinstance(combined, list):  # a value of the official combined file
        line = combined[1] if len(combined) > 1 and isinstance(combined[1], Mapping) else {}
    elif verdicts.find_judge_reply(line) is None and "score" in line:
        return None  # its "pred" is the verdict
    return next((line[name] for name in ("pred", "prediction", "text") if isinstance(line.get(name), str)), None)


def _holds(text: str, answer: str) -> bool:
    words, wanted = (re.findall(r"\w+", part.lower()) for part in (text, answer))
    return bool(wanted) and any(words[at : at + len(wanted)] == wanted for at in range(len(words)))


def _find(paths: Sequence[Path]) -> tuple[Path, list[Path]]:
    """The question file and, in a list, the answer file: by their names, else by the order they are given in."""
    answers, named = find_files(paths, *_ANSWERS), find_files(paths, *_ANSWERS, *_QUESTIONS)
    if not named and len(paths) <= 2 and all(path.is_file() for path in paths):
        return paths[0], list(paths[1:])
    unknown = [path for path in paths if path.is_file() and path not in named]
    if unknown:
        raise ValueError(
            f"{listing(unknown)}: questions or answers? The names do not say (looked for "
            f"{', '.join((*_QUESTIONS, *_ANSWERS))}); leave out what is neither, or rename it"
        )
    if answers:
        answers = [find_file(paths, "answer file", *_ANSWERS)]
    return find_file(paths, "question file", *_QUESTIONS), answers


def parse_verdict(reply: str) -> Any:
    """The Python literal that a judge replied with; raises ``ValueError`` where the script would ask again."""
    try:
        return ast.literal_eval(reply)
    except (SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise ValueError(f"not a Python literal: {reply!r}") from error


def _verdict(line: Line | None) -> Any:
    if line is None:
        return _MISSING
    reply = verdicts.find_judge_reply(line)
    if reply is None and isinstance(line.get("prediction"), list) and line["prediction"]:
        reply = line["prediction"][0]  # a value of the official combined file: [verdict, question and answer]
    if reply is None and "score" in line and "pred" in line:
        reply = {"pred": line["pred"], "score": line["score"]}
    if reply is None:
        return _MISSING
    if not isinstance(reply, str):
        return reply
    try:
        return parse_verdict(reply)
    except ValueError:
        return _MISSING


def _read_verdict(verdict: Any) -> tuple[int, str | None]:
    """Score and answer as the script reads them: the answer is read only where there is a whole score."""
    if not isinstance(verdict, Mapping):
        return 0, None
    try:
        score = int(verdict["score"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0, None
    answer = verdict.get("pred")
    if not isinstance(answer, str):
        return score, None
    lowered = answer.lower()
    return score, "yes" if "yes" in lowered else "no" if "no" in lowered else None


_SYSTEM = (
    "You decide whether an answer to a question about a video means the same as the true answer. Other words with the "
    "same meaning are right."
)


def _ask(question: JudgedQuestion, text: str) -> Messages:
    content = (
        f"Question: {question.text}\nTrue answer: {question.answer}\nGiven answer: {text}\n\n"
        "Reply with a Python dictionary and nothing else. Its key 'pred' has the string 'yes' if the given answer is "
        "right, else 'no'; its key 'score' has an integer from 0 (no relation) to 5 (the same meaning). "
        "Example: {'pred': 'yes', 'score': 4}"
    )
    return from_user(content, system=_SYSTEM)


def _plain_verdict(reply: str) -> str:
    """The dictionary of a reply, which may be JSON or amid words, as the scorer reads it; else the reply."""
    text = reply[reply.find("{") : reply.rfind("}") + 1]
    for read in (parse_verdict, parse_json):
        try:
            found = read(text)
        except ValueError:
            continue
        if isinstance(found, dict):
            return text if read is parse_verdict else repr(found)
    return reply


def _accepts(reply: str) -> bool:
    """Whether the scorer makes a yes or no and a score of the scale of a reply."""
    try:
        score, answer = _read_verdict(parse_verdict(reply))
    except ValueError:
        return False
    return answer is not None and 0 <= score <= _HIGHEST


class _VideoQA(Benchmark):
    """Questions of ``test_q.json`` and ``test_a.json`` about videos in ``image_folder``, without any suffix.

    The videos' frames come first, then the question. ``tools/judge.py`` adds the judge's replies.

    Args:
        frames: Number of frames, sampled uniformly from the first to the last; as many as the model was trained with
            by default.
        **arguments: As of ``Benchmark``.
    """

    form = "test_q.json and test_a.json; JSON list with judge replies"
    load, rate = staticmethod(load_video_qa), staticmethod(score_video_qa)
    judge = JudgeProtocol(
        "video_qa-1",
        _load_for_judge,
        _ask,
        _accepts,
        ("id", "question_id"),
        warmer=0.5,
        hint="\nThe dictionary alone: ",
        tidy=_plain_verdict,
    )
    id_field, text_field = "id", "pred"
    headline = ("official", "accuracy")

    def __init__(self, *args: Any, frames: int | None = None, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.frames, self.has_open_frames = frames, frames is None

    @property
    def identity(self) -> dict[str, Any]:
        """As of every benchmark, and the number of frames."""
        return {**super().identity, "frames": self.frames}

    def questions(self) -> Sequence[Question]:
        """All questions; names of videos in a folder or in tar files may come without their ending."""
        found = load_video_qa(self.data)
        nameless = (question.id for question in found if not question.image)
        for problem in name_ids(nameless, "questions have no 'video_name', so that nothing says which video to show"):
            raise ValueError(f"{listing(self.data)}: {problem}")
        folder = self.picture_folder("videos")
        endings = _find_videos(folder, {question.image for question in found})
        return [self._question(question, folder, endings.get(question.image, question.image)) for question in found]

    def _question(self, question: JudgedQuestion, folder: str, name: str) -> Question:
        from mg_llava.data.pictures.video import FrameUse

        frames = self.frames or FrameUse.frames  # no model has said how many
        opener = partial(_read_frames, folder, name, frames, f"question {question.id}")
        text, fields = f"{VIDEO_PLACEHOLDER}\n{question.text}", {"question": question.text, "answer": question.answer}
        return Question(question.id, text, opener, name, question.image, fields, frames=frames)


def _find_videos(folder: str, asked: Collection[str]) -> dict[str, str]:
    """Names of the videos in a folder or in tar files by what they are without their ending; none of those at a URL.

    Raises:
        ValueError: Two of them have a name that is asked for.
    """
    from mg_llava.data.pictures.video import is_video
    from mg_llava.work.tar_files import is_tar, open_tars
    from mg_llava.work.urls import is_url, without_scheme

    place, names = without_scheme(folder), []
    if is_tar(place):
        names = [posixpath.normpath(name) for name, _ in open_tars(place).list_members()]
    elif not is_url(place) and os.path.isdir(place):
        names = os.listdir(place)
    stems = {name: os.path.splitext(name)[0] for name in sorted(filter(is_video, names))}
    endings = {stem: name for name, stem in stems.items()}
    twice = [name for name, stem in stems.items() if stem in asked and endings[stem] != name]
    if twice:
        raise ValueError(
            f"{folder}: {twice[0]} and {endings[stems[twice[0]]]} may both be the video of a question "
            f"({len(twice)} such); leave one of them there"
        )
    return endings


def _read_frames(folder: str, name: str, frames: int, owner: str) -> Any:
    from mg_llava.data.pictures.files import picture_path
    from mg_llava.data.pictures.video import read_frames

    return read_frames(picture_path(folder, name, owner), frames, owner)


def _release(name: str, column: str) -> Release:
    get = (
        "test_q.json and test_a.json of the Video-LLaVA release (https://github.com/PKU-YuanGroup/Video-LLaVA, "
        f"zero-shot QA), and the videos to {name}/videos; needs the extra 'video'"
    )
    return Release(name, (f"{name}/test_q.json", f"{name}/test_a.json"), f"{name}/videos", get, column, JUDGED)


@BENCHMARKS.register
class MSVDQA(_VideoQA):
    """MSVD-QA."""

    scorer = "msvd_qa"
    releases = (_release("msvd_qa", "MSVD-QA"),)


@BENCHMARKS.register
class MSRVTTQA(_VideoQA):
    """MSRVTT-QA."""

    scorer = "msrvtt_qa"
    releases = (_release("msrvtt_qa", "MSRVTT-QA"),)
