"""An engine whose language model runs in another process: pictures, boxes and splice here, the LLM's steps there.

Ends, stop words, limits and texts are settled here, by the ids that come back.
"""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import httpx

from mg_llava.inference.engine import Closed, Engine, Job
from mg_llava.inference.predictor import Predictor
from mg_llava.inference.reply import Reply
from mg_llava.inference.requests import Request
from mg_llava.inference.serving.errors import RefusedRequest
from mg_llava.inference.serving.far_side import FarSide

STREAMS = 64
"""Answers that the other side works on at a time."""


class RemoteEngine(Engine):
    """Use it as a context: inside, it works.

    Args:
        predictor: Prepares and encodes requests; of its LLM the word embeddings are enough.
        far: The server of the LLM; asked once, whether it takes prompt embeddings.
        batch_size: Requests whose pictures are encoded together, at most.

    Raises:
        OSError: The server cannot be reached.
        ValueError: It is no such server, or the system needs more of an LLM than embeddings.
    """

    exact = False

    def __init__(self, predictor: Predictor, far: FarSide, batch_size: int = 8) -> None:
        super().__init__(predictor, batch_size)
        if predictor.model.adapter is not None:
            kind = type(predictor.model.adapter).__name__
            raise ValueError(f"{kind} puts prompts into the LLM's layers, which embeddings cannot; leave out --engine")
        self.far = far
        probe = self.prepare(Request("?"), {}, tell=lambda _: None)
        ((_, reply),) = self._begin([probe])
        self.far = far.connect(probe.answering.embeds(reply.one))
        self._loop = asyncio.new_event_loop()
        self._loop_thread = threading.Thread(target=self._loop.run_forever, name="far side", daemon=True)
        self._asked: dict[Job, asyncio.Task[None]] = {}
        self._client = httpx.AsyncClient(**self.far.options)
        self._places = asyncio.Semaphore(STREAMS)

    def __enter__(self) -> "RemoteEngine":
        self._loop_thread.start()
        super().__enter__()
        return self

    def __exit__(self, *given: object) -> None:
        super().__exit__(*given)
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._loop_thread.join()
        self._loop.close()

    @property
    def running(self) -> int:
        """Number of jobs that are being answered."""
        return len(self._asked)

    def prepare(self, request: Request, generation: Mapping[str, Any], **options: Any) -> Job:
        """As of an engine; a prompt has to fit into the other side's context."""
        job = super().prepare(request, dict(generation), **options)
        limits = [limit for limit in (job.answering.context, self.far.context) if limit is not None]
        job.answering.context = min(limits, default=None)
        return job

    def _answer(self, jobs: list[Job]) -> Iterator[None]:
        for job, reply in self._begin(jobs):
            self.predictor.statistics.rows += 1
            prompt = job.answering.embeds(reply.one)
            make_body = partial(self.far.body, prompt, job.answering.decoding, reply.limit, reply.top)
            self._loop.call_soon_threadsafe(self._start, job, reply, make_body)
        yield from ()

    # -- the thread of the event loop ---------------------------------------------------------------------------

    def _start(self, job: Job, reply: Reply, make_body: Any) -> None:
        task = self._loop.create_task(self._ask(job, reply, make_body))
        self._asked[job] = task
        task.add_done_callback(lambda _: self._asked.pop(job))
        job.when_gone = lambda: self._loop.call_soon_threadsafe(task.cancel)
        if job.is_gone:
            task.cancel()

    async def _ask(self, job: Job, reply: Reply, make_body: Any) -> None:
        try:
            async with self._places:
                await self._follow(job, reply, await asyncio.to_thread(make_body))
            job.advance()
        except asyncio.CancelledError:
            job.fail(Closed("the engine has ended"))
        except Exception as error:
            job.fail(error)

    async def _follow(self, job: Job, reply: Reply, body: Mapping[str, Any]) -> None:
        """Take ids until the answer ends, here or there."""
        stream, finish = self.far.stream(self._client, body), None
        try:
            async for new in stream:
                finish = new.finish
                for place, token in enumerate(new.ids):
                    reply.take(token, _end_of(reply, token, job), new.scored[place] if new.scored else None)
                    if reply.is_done:
                        return
                job.advance()
        finally:
            await stream.aclose()  # type: ignore[attr-defined]
        if finish not in ("length", "stop"):
            raise RefusedRequest("the language model's server broke off", None, "engine_error", 502)
        reply.ended = "limit" if finish == "length" else "end"

    async def _end(self) -> None:
        tasks = list(self._asked.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()


def _end_of(reply: Reply, token: int, job: Job) -> Any:
    """Why an answer ends with a new id, if it does."""
    ids = [*reply.ids, token]
    if token in job.answering.decoding.ends:
        return "end"
    if reply.ends_with(ids):
        return "stop"
    return "limit" if len(ids) >= reply.limit else ""
