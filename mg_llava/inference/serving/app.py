"""The routes of the server: who may ask, how much is read, and how answers go back.

The key is looked at before a body is read, places and bytes are counted while it is, and a request whose client leaves
or whose time is over ends in the engine with its next step.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mg_llava.inference.engine import Closed, Engine, Event, Job
from mg_llava.inference.serving.completion import Completion
from mg_llava.inference.serving.errors import RefusedRequest, RequestLimits
from mg_llava.inference.serving.metrics import ServerMetrics
from mg_llava.inference.serving.places import Load, Place, Stream
from mg_llava.inference.serving.question import ChatQuestion, read_question
from mg_llava.inference.serving.waiting import (
    ClientLeft,
    event_of,
    first_event,
    prepared,
    read_body,
    refusal,
    too_late,
    wait_for,
)

_COMPLETIONS, _MODELS, _HEALTH, _METRICS = "/v1/chat/completions", "/v1/models", "/health", "/metrics"
_LEFT = 499
"""Status of a request whose client has left; nobody reads it."""


@dataclass(frozen=True)
class Settings:
    """How a server behaves.

    Attributes:
        name: Of the model in answers.
        api_key: What clients must send as bearer token; empty for none.
        hosts: Names of hosts from which pictures may be fetched.
        origins: Of web pages that may ask.
        workers: Threads that read requests and decode pictures.
        limits: See there.
    """

    name: str = "mg-llava"
    api_key: str = field(default="", repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    workers: int = 2
    limits: RequestLimits = field(default_factory=RequestLimits)


class ChatApp:
    """The handlers.

    Args:
        engine: Answers.
        settings: See there.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings, self.limits = engine, settings, settings.limits
        self.metrics = ServerMetrics(engine)
        self.load = Load()
        self._pool = ThreadPoolExecutor(settings.workers, "requests")

    def build(self) -> FastAPI:
        """The application; its start and end are those of the engine."""
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=self._lifespan)
        app.add_api_route(_COMPLETIONS, self.complete, methods=["POST"], response_model=None)
        app.add_api_route(_MODELS, self.models, response_model=None)
        app.add_api_route(_MODELS + "/{name:path}", self.model, response_model=None)
        app.add_api_route(_HEALTH, self.health, response_model=None)
        app.add_api_route(_METRICS, self.counts, response_model=None)
        app.add_exception_handler(RefusedRequest, self._refuse)  # type: ignore[arg-type]
        app.add_exception_handler(HTTPException, self._refuse)  # type: ignore[arg-type]
        app.add_exception_handler(Exception, self._refuse)
        if self.settings.origins:
            origins = list(self.settings.origins)
            app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
        return app

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        with self.engine, self._pool:
            yield

    # -- handlers -----------------------------------------------------------------------------------------------

    async def health(self) -> Response:
        """Whether the server lives."""
        return JSONResponse({"status": "ok"})

    async def counts(self, request: Request) -> Response:
        """Counts for Prometheus."""
        self._check(request)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """The one model."""
        self._check(request)
        return JSONResponse({"object": "list", "data": [self._entry()]})

    async def model(self, request: Request, name: str) -> Response:
        """The one model, by name."""
        self._check(request)
        if name != self.settings.name:
            raise RefusedRequest(
                f"no model {name[:80]!r}; there is {self.settings.name!r}", "model", "model_not_found", 404
            )
        return JSONResponse(self._entry())

    async def complete(self, request: Request) -> Response:
        """Answer a conversation."""
        status = 500
        try:
            self._check(request)
            place = Place(self.load, self.limits)
            try:
                response = await self._complete(request, await read_body(request, place), place)
            finally:
                place.leave_unless_streaming()
            status = response.status_code
        except RefusedRequest as error:
            status = error.status
            raise
        except (ClientLeft, ClientDisconnect):
            status = _LEFT
            response = Response(status_code=_LEFT)
        finally:
            self.metrics.requests.labels(status).inc()
        return response

    def _entry(self) -> dict[str, Any]:
        return {"id": self.settings.name, "object": "model", "created": 0, "owned_by": "mg_llava"}

    def _check(self, request: Request) -> None:
        """Refuse who may not ask: without the key, or from a web page of elsewhere."""
        origin = request.headers.get("origin")
        if origin is not None and origin not in self.settings.origins and "*" not in self.settings.origins:
            raise RefusedRequest(
                "web pages may not ask this server; --allow-origin allows them", None, "forbidden", 403
            )
        sent = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self.settings.api_key and not hmac.compare_digest(sent.encode(), self.settings.api_key.encode()):
            raise RefusedRequest("wrong API key", None, "invalid_api_key", 401)

    # -- requests -----------------------------------------------------------------------------------------------

    async def _complete(self, request: Request, data: bytes, place: Place) -> Response:
        start, due = time.monotonic(), time.monotonic() + self.limits.seconds
        news: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(news.put_nowait, event)

        def prepare() -> tuple[ChatQuestion, Job]:
            question = read_question(data, self.limits)
            fields = question.fields
            top = (fields.top_logprobs or 0) if fields.logprobs else None
            asked = question.request(self.limits, self.settings.hosts)
            options = {"tell": tell, "streams": bool(fields.stream), "top": top}
            return question, self.engine.prepare(asked, fields.generation(), **options)

        question, job = await wait_for(request, prepared(loop.run_in_executor(self._pool, prepare)), due, self.limits)
        try:
            self.engine.submit(job)
            event = await wait_for(request, first_event(news), due, self.limits)
        except Closed as error:
            raise RefusedRequest("the server ends", None, "unavailable", 503) from error
        except BaseException:
            job.leave()
            raise
        self.metrics.first.observe(time.monotonic() - start)
        fields = question.fields
        has_usage = bool(fields.stream_options and fields.stream_options.include_usage)
        tokenizer = self.engine.predictor.front_end.tokenizer
        completion = Completion(self.settings.name, tokenizer, bool(fields.logprobs), has_usage)
        if fields.stream:
            place.leaving.append(job.leave)
            return Stream(self._chunks(completion, event, news, start), place)
        assert event.answer is not None
        self.metrics.count(event.answer, time.monotonic() - start)
        return JSONResponse(completion.whole(event.answer, event.scored))

    async def _chunks(
        self, completion: Completion, event: Event, news: asyncio.Queue[Event], start: float
    ) -> AsyncIterator[dict[str, str]]:
        """The events of a stream."""
        yield event_of(completion.begin())
        while True:
            if event.piece or event.scored:
                yield event_of(completion.piece(event.piece, event.scored))
            if event.is_last:
                break
            try:
                event = await asyncio.wait_for(news.get(), start + self.limits.seconds - time.monotonic())
            except asyncio.TimeoutError:
                event = Event(error=too_late(self.limits))
        if event.answer is None:
            yield event_of(refusal(event.error).body())
            return
        self.metrics.count(event.answer, time.monotonic() - start)
        for chunk in completion.end(event.answer):
            yield event_of(chunk)
        yield {"data": "[DONE]"}

    async def _refuse(self, request: Request, error: Exception) -> Response:
        """Any fault in OpenAI's form."""
        if isinstance(error, HTTPException):
            known = ", ".join((_MODELS, _COMPLETIONS, _HEALTH, _METRICS))
            message = f"{request.method} {request.url.path[:80]} is unknown; there are {known}"
            error = RefusedRequest(message, None, "unknown_url", error.status_code)
        refused = refusal(error)
        headers = {"Retry-After": "1"} if refused.status in (429, 503) else {}
        return JSONResponse(refused.body(), refused.status, headers)
