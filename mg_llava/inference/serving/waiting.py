"""Requests of any route: their bodies, waiting for their work while the client waits too, and refusals."""

import asyncio
import json
import logging
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from mmengine.logging import print_log

from mg_llava.inference.engine import Closed, Event
from mg_llava.inference.serving.errors import RefusedRequest, RequestLimits
from mg_llava.inference.serving.places import Place

_Result = TypeVar("_Result")


class ClientLeft(Exception):
    """The client has left."""


async def read_body(request: Request, place: Place) -> bytes:
    """The body, counted while it comes.

    Raises:
        RefusedRequest: It is too large, or does not come in time.
    """
    limits = place.limits
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()) or len(length) > 18 or int(length) > limits.body:
        place.refuse_size()
    parts: list[bytes] = []

    async def read() -> None:
        async for part in request.stream():
            parts.append(part)
            place.take(len(part))

    try:
        await asyncio.wait_for(read(), limits.patience)
    except asyncio.TimeoutError:
        rule = f"the request did not come whole within {limits.patience:.0f} s"
        raise RefusedRequest(rule, None, "request_timeout", 408) from None
    return b"".join(parts)


async def wait_for(request: Request, work: Coroutine[Any, Any, _Result], due: float, limits: RequestLimits) -> _Result:
    """The result of some work.

    Raises:
        ClientLeft: Before there was one.
        RefusedRequest: There was none at the time ``due``.
    """
    task, leaving = asyncio.create_task(work), asyncio.create_task(_until_left(request))
    try:
        await asyncio.wait((task, leaving), timeout=due - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if leaving.done():
            raise ClientLeft
        raise too_late(limits)
    finally:
        task.cancel()
        leaving.cancel()


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def prepared(future: asyncio.Future[_Result]) -> _Result:
    """The result of reading a request.

    Raises:
        RefusedRequest: Boxes, pictures or conversation are wrong.
    """
    try:
        return await future
    except ValueError as error:
        raise RefusedRequest(str(error), "messages") from error


async def first_event(news: asyncio.Queue[Event]) -> Event:
    """The first news of a job.

    Raises:
        RefusedRequest: It failed.
    """
    event = await news.get()
    if event.error is not None:
        raise refusal(event.error)
    return event


def too_late(limits: RequestLimits) -> RefusedRequest:
    """Refuses an answer that took too long."""
    return RefusedRequest(f"the answer was not there within {limits.seconds:.0f} s", None, "timeout", 504)


def refusal(error: Exception | None) -> RefusedRequest:
    """Any fault in words for the client; those that are not its own go to the log."""
    if isinstance(error, RefusedRequest):
        return error
    if isinstance(error, Closed):
        return RefusedRequest("the server ends", None, "unavailable", 503)
    if isinstance(error, ValueError):
        is_long = "context" in str(error)
        return RefusedRequest(str(error), "messages", "context_length_exceeded" if is_long else "invalid_value")
    print_log(f"{type(error).__name__}: {error}", logger="current", level=logging.ERROR)
    return RefusedRequest("the server failed at this request; its log says why", None, None, 500)


def event_of(payload: dict[str, Any]) -> dict[str, str]:
    """An event of a stream."""
    return {"data": json.dumps(payload)}
