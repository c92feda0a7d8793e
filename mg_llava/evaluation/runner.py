"""Runs a benchmark: questions to replies to scores, resumable, in one process or several.

Questions are grouped by picture, so that each picture is opened and encoded once. Every batch of replies is on disk
before the next one starts; processes share what is left, picture by picture.
"""

import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from mg_llava.data.records.schema import BoxRecord
from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.box_source import BoxSource, FoundBoxes, build_box_source
from mg_llava.evaluation.identity import run_identity
from mg_llava.evaluation.replies import Replies, ReplyLine, line_of
from mg_llava.evaluation.results import RunResult, score
from mg_llava.evaluation.scoring.files import naming_files
from mg_llava.inference import Predictor, Request
from mg_llava.inference.answering import Answered
from mg_llava.inference.predictor import CACHE_MB, Progress
from mg_llava.work.processes import Processes

BadSamples = Literal["report", "raise"]


@dataclass(frozen=True)
class Asking:
    """How questions are asked; replies do not depend on it.

    Attributes:
        batch_size: Questions at a time.
        limit: Only the first so many questions; a later run may ask more.
        bad_samples: ``report`` counts questions whose picture cannot be read or that are too long, and leaves them
            without prediction; a later run tries them again. ``raise`` ends with the first of them.
        fresh: Throw away earlier replies in the folder.
        workers: Threads that decode pictures.
        cache_mb: Limit of the encoded pictures that are kept at a time.
    """

    batch_size: int = 32
    limit: int | None = None
    bad_samples: BadSamples = "report"
    fresh: bool = False
    workers: int = 2
    cache_mb: int = CACHE_MB


def run_benchmark(
    benchmark: Benchmark,
    predictor: Predictor,
    out_dir: str | Path,
    boxes: BoxSource | None = None,
    asking: Asking | None = None,
    *,
    processes: Processes | None = None,
    score_options: Mapping[str, Any] | None = None,
    **more: Any,
) -> RunResult | None:
    """Answer the questions of a benchmark and score the replies: :func:`answer`, then ``results.score``.

    Arguments are those of :func:`answer`, and ``score_options`` of the scorer.

    Returns:
        The result, in the main process; None in the others.
    """
    processes, asking = processes or Processes(), asking or Asking()
    replies = answer(benchmark, predictor, out_dir, boxes, asking, processes=processes, **more)
    return score(benchmark, replies, asking.limit, score_options) if processes.is_main else None


def answer(
    benchmark: Benchmark,
    predictor: Predictor,
    out_dir: str | Path,
    boxes: BoxSource | None = None,
    asking: Asking | None = None,
    *,
    model_identity: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
    **generation: Any,
) -> Replies:
    """Answer the questions of a benchmark that have no reply yet; gives the replies of all processes.

    Args:
        benchmark: The benchmark.
        predictor: The model with all it needs.
        out_dir: Folder of results; the benchmark's own folder in it has its name.
        boxes: Where boxes come from; None for no boxes.
        asking: How questions are asked.
        model_identity: What tells this model from others, such as hashes of config and checkpoint; a checksum of
            the weights by default.
        progress: Called after each batch, for the questions of this process.
        processes: The processes that share the work; those of ``torchrun`` by default.
        **generation: Overrides arguments of ``generate``; ``max_new_tokens`` is the benchmark's by default.

    Raises:
        OtherRunError: The folder holds replies of another model, prompt, generation, box source or data file.
        PictureError: A picture cannot be read, and ``asking.bad_samples`` is ``raise``.
        ValueError: A data file is malformed.
    """
    processes, asking = processes or Processes(), asking or Asking()
    source = boxes if boxes is not None else build_box_source("none")
    generation = {"max_new_tokens": benchmark.max_new_tokens, **generation}
    benchmark.follow(predictor.front_end.picture_processor)
    with naming_files(benchmark.data, benchmark.form):
        questions = benchmark.questions()
    asked = questions[: asking.limit]
    replies = Replies(Path(out_dir) / benchmark.name, processes.rank)

    def prepare() -> None:
        described = source.describe()
        identity = run_identity(benchmark, questions, predictor, described, generation, model_identity)
        replies.prepare(identity, asking.fresh, {"boxes": described})

    processes.on_main(prepare)
    known, _ = replies.read(asked)
    processes.gather()  # nobody writes before all have read
    replies.resumed = len(known)
    begin = time.monotonic()
    share = _share(asked, known, processes)
    found: dict[int, FoundBoxes] = {}
    requests = (_request(benchmark.name, n, asked[n], source, found) for n in share)
    stream = predictor.stream(requests, asking.batch_size, asking.workers, asking.cache_mb, **generation)
    with closing(replies):
        _write(stream, share, asked, found, replies, asking.bad_samples, progress)
    replies.seconds = time.monotonic() - begin
    processes.gather()
    processes.on_main(lambda: _check_complete(replies, asked))
    return replies


def _share(asked: Sequence[Question], known: Mapping[int, ReplyLine], processes: Processes) -> list[int]:
    """Numbers of the questions that this process answers: those about every n-th picture, of n processes."""
    pictures: dict[Hashable, list[int]] = {}
    for n, question in enumerate(asked):
        if n not in known:
            pictures.setdefault(n if question.picture_key is None else question.picture_key, []).append(n)
    return [n for group in list(pictures.values())[processes.rank :: processes.size] for n in group]


def _request(name: str, n: int, question: Question, source: BoxSource, found: dict[int, FoundBoxes]) -> Request:
    """A request whose boxes are looked up when its pictures are open, and kept in ``found``."""
    owner = f"{name} {question.id}"
    if question.picture is None:
        return Request(question.text, id=owner)

    def look_up(images: Sequence[Image.Image]) -> list[BoxRecord]:
        found[n] = source.look_up(question, images)
        return list(found[n].boxes)

    frames = question.frames or 1
    shown = question.picture, look_up, owner, question.picture_key, frames
    return Request(question.text, *shown, objects=question.objects)


def _write(
    stream: Iterable[Answered],
    share: Sequence[int],
    asked: Sequence[Question],
    found: dict[int, FoundBoxes],
    replies: Replies,
    bad_samples: BadSamples,
    progress: Progress | None,
) -> None:
    """Write each batch of answers, and of errors in their place, before the next is asked for."""
    answered = 0
    for batch in stream:
        lines = []
        for place, given in batch:
            n = share[place]
            boxes = found.pop(n, None)
            lines.append(line_of(n, asked[n], given, None if boxes is None else boxes.counts))
        replies.append(lines)
        errors = [given for _, given in batch if isinstance(given, Exception)]
        if errors and bad_samples == "raise":
            raise errors[0]
        answered += len(batch)
        if progress is not None:
            progress(answered, len(share))


def _check_complete(replies: Replies, asked: Sequence[Question]) -> None:
    lines, failures = replies.read(asked)
    missing = len(asked) - len(lines) - len(failures)
    if missing:
        raise RuntimeError(
            f"{missing} replies of other processes are not in {replies.folder}; all processes need to see the same "
            "folder"
        )
