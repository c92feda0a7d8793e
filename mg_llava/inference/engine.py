"""Answers requests that come at any time: those that wait together are answered together, in one thread.

A lane is a batch that is being answered. Lanes take turns, a step of the LLM each, so that a request need not wait for
the longest answer of a batch before it. A request whose client has left ends with its next step.
"""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from mmengine.logging import print_log

from mg_llava.inference.answering import Answering
from mg_llava.inference.batching import Loaded, PictureGroup, PreparedRequest, joined
from mg_llava.inference.encoding import EncodedRequest
from mg_llava.inference.predictor import Predictor
from mg_llava.inference.reply import Reply, ScoredToken
from mg_llava.inference.requests import Answer, Request

_Result = TypeVar("_Result")

LANES = 2
"""Batches that are answered in turns."""


class Closed(RuntimeError):
    """The engine takes no requests any more."""


class Event(NamedTuple):
    """News of a job: a piece of its text, or its end with an answer or an error."""

    piece: str = ""
    scored: Sequence[ScoredToken] = ()
    answer: Answer | None = None
    error: Exception | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.answer is not None or self.error is not None


class Job:
    """A request on its way through an engine.

    Args:
        loaded: The request with its pictures.
        answering: With its arguments of generation.
        tell: Called with each event, by the engine's thread.
        streams: Whether pieces are told as they come; otherwise all come with the end.
        top: Number of likeliest ids to tell beside each new one; None for no log-probabilities.

    Attributes:
        kind: Equal for jobs that can be answered together.
        when_gone: Called when nobody waits for the answer any more, in any thread.
    """

    def __init__(
        self,
        loaded: Loaded,
        answering: Answering,
        tell: Callable[[Event], None],
        streams: bool = False,
        top: int | None = None,
    ) -> None:
        self.loaded, self.answering, self.tell, self.streams, self.top = loaded, answering, tell, streams, top
        self.is_gone = self.is_told = self.has_begun = False
        self.kind = replace(answering.decoding, limit=1)
        self.when_gone: Callable[[], Any] = lambda: None
        self._scored = 0
        self._reply: Reply | None = None

    def leave(self) -> None:
        """Say that nobody waits for the answer any more."""
        self.is_gone = True
        self.when_gone()

    def begin(self, one: EncodedRequest) -> Reply:
        """Its answer, with nothing in it yet."""
        self._reply = self.answering.new_reply(one, top=self.top, is_gone=lambda: self.is_gone)
        return self._reply

    def advance(self) -> None:
        """Tell what is new."""
        reply = self._reply
        if self.is_told or reply is None or not (self.streams or reply.is_done):
            return
        piece, scored = reply.piece(), reply.scored[self._scored :]
        self._scored += len(scored)
        self.is_told = reply.is_done
        if piece or scored or reply.is_done:
            self.has_begun = True
            self.tell(Event(piece, scored, reply.answer() if reply.is_done else None))

    def fail(self, error: Exception) -> None:
        """Tell that there is no answer, unless there was one."""
        if not self.is_told:
            self.is_told = True
            self.tell(Event(error=error))


class Engine:
    """Use it as a context: inside, it works.

    Args:
        predictor: Answers.
        batch_size: Requests that are answered together, at most.
    """

    exact = True
    """Whether greedy answers are to be independent of the batch; see ``Answering``."""

    def __init__(self, predictor: Predictor, batch_size: int = 8) -> None:
        self.predictor, self.batch_size = predictor, batch_size
        self._numbers = itertools.count()
        self._waiting: deque[Job] = deque()
        self._answered: list[Job] = []
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._is_open = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def __enter__(self) -> "Engine":
        self.predictor.model.eval()
        self._is_open = True
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_open = False
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Number of jobs that no batch has yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of jobs that are being answered."""
        return sum(not job.is_told for job in self._answered)

    def prepare(self, request: Request, generation: dict[str, Any], **options: Any) -> Job:
        """Check and tokenize a request, and decode its pictures; may be called in several threads.

        Args:
            request: The request.
            generation: Its arguments of generation.
            **options: As for :class:`Job`.

        Raises:
            PictureError: A picture cannot be read.
            ValueError: The request is wrong.
        """
        answering = self.predictor.answering(generation, self.batch_size, self.exact)
        prepared = PreparedRequest(self.predictor.front_end, next(self._numbers), request)
        group = PictureGroup([prepared])
        decoded = group.load()
        if isinstance(decoded, Exception):
            raise decoded
        _ = decoded.content  # by this thread, not by the engine's
        return Job((group, decoded), answering, **options)

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            Closed: The engine has ended.
        """
        with self._changed:
            if not self._is_open:
                raise Closed("the engine is not running")
            self._waiting.append(job)
            self._changed.notify()

    def call(self, work: Callable[[], _Result]) -> "Future[_Result]":
        """Let the engine's thread do other work with the model, between two steps.

        Raises:
            Closed: The engine has ended.
        """
        future: Future[_Result] = Future()
        with self._changed:
            if not self._is_open:
                raise Closed("the engine is not running")
            self._calls.append((future, work))
            self._changed.notify()
        return future

    # -- the engine's thread ------------------------------------------------------------------------------------

    def _work(self) -> None:
        lanes: list[tuple[list[Job], Iterator[None]]] = []
        while True:
            with self._changed:
                while self._is_open and not (lanes or self._waiting or self._calls):
                    self._changed.wait()
                if not self._is_open:
                    break
                batch = self._take() if len(lanes) < LANES else []
                call = self._calls.popleft() if self._calls else None
            if call is not None:
                _do(*call)
            if batch:
                lanes.append((batch, self._lane(batch)))
            lanes = [lane for lane in lanes if next(lane[1], self) is not self]
            self._answered = [job for jobs, _ in lanes for job in jobs]
        for job in [*self._answered, *self._waiting]:
            job.fail(Closed("the engine has ended"))
        for future, _ in self._calls:
            future.cancel()

    def _take(self) -> list[Job]:
        """The job that has waited longest, with others that can be answered with it."""
        waiting = [job for job in self._waiting if not job.is_gone]
        kind = waiting[0].kind if waiting else None
        batch = [job for job in waiting if job.kind == kind][: self.batch_size]
        self._waiting = deque(job for job in waiting if job not in batch)
        return batch

    def _lane(self, jobs: list[Job]) -> Iterator[None]:
        """Answer jobs together, a step with each yield; those of a batch that fails as a whole each on its own."""
        try:
            yield from self._answer(jobs)
        except Exception as error:  # such as memory that runs out; the engine outlives any one request
            print_log(f"{type(error).__name__}: {error}", logger="current", level=logging.ERROR)
            untold = [job for job in jobs if not job.is_told and not job.has_begun]
            for job in jobs:
                if job not in untold or len(jobs) == 1:
                    job.fail(error)
            if len(jobs) > 1:
                for job in untold:
                    yield from self._lane([job])

    def _begin(self, jobs: list[Job]) -> list[tuple[Job, Reply]]:
        """Encode the pictures of jobs together; those that can be answered, with their answers."""
        owners = {request.number: job for job in jobs for request in job.loaded[0].requests}
        failed: list[Any] = []
        encoded = jobs[0].answering.encoded(joined(job.loaded for job in jobs), failed)
        begun = [(owners[one.prepared.number], owners[one.prepared.number].begin(one)) for one in encoded]
        for number, error in failed:
            owners[number].fail(error)
        return begun

    def _answer(self, jobs: list[Job]) -> Iterator[None]:
        replies, answering = [reply for _, reply in self._begin(jobs)], jobs[0].answering
        prompt = answering.shared_prompt([reply.one for reply in replies])
        for _ in answering.run(replies, prompt) if replies else ():
            for job in jobs:
                job.advance()
            yield
        for job in jobs:
            job.advance()


def _do(future: "Future[Any]", work: Callable[[], Any]) -> None:
    """Do some work unless nobody waits for it any more."""
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
