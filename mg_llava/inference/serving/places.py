"""How much a server holds at a time: requests and their bytes, from the first byte read to the last one sent."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from sse_starlette import EventSourceResponse

from mg_llava.inference.serving.errors import RefusedRequest, RequestLimits


@dataclass
class Load:
    """Requests and bytes that a server holds."""

    requests: int = 0
    bytes: int = 0


class Place:
    """A request's place among those that a server holds.

    Attributes:
        leaving: What is done when it leaves. Where there is something its answer is sent as it comes.
    """

    def __init__(self, load: Load, limits: RequestLimits) -> None:
        if load.requests >= limits.requests:
            raise RefusedRequest(f"{load.requests} requests wait already; try later", None, "rate_limit_exceeded", 429)
        self.load, self.limits = load, limits
        self.bytes = 0
        self.leaving: list[Callable[[], None]] = []
        load.requests += 1

    def take(self, count: int) -> None:
        """Hold more bytes."""
        self.bytes += count
        self.load.bytes += count
        if self.bytes > self.limits.body:
            self.refuse_size()
        if self.load.bytes > self.limits.memory:
            raise RefusedRequest("the requests that wait are too large; try later", None, "overloaded", 503)

    def refuse_size(self) -> NoReturn:
        """Say how large a request may be."""
        raise RefusedRequest(f"a request has at most {self.limits.body} bytes", None, "request_too_large", 413)

    def leave(self) -> None:
        """Hold nothing any more."""
        self.load.requests -= 1
        self.load.bytes -= self.bytes
        for leave in self.leaving:
            leave()

    def leave_unless_streaming(self) -> None:
        """Leave, unless an answer is still to be sent."""
        if not self.leaving:
            self.leave()


class Stream(EventSourceResponse):
    """A streamed answer, which holds its place to its end, however it ends."""

    def __init__(self, chunks: AsyncIterator[dict[str, str]], place: Place) -> None:
        headers, patience = {"X-Accel-Buffering": "no"}, place.limits.patience
        super().__init__(chunks, sep="\n", headers=headers, send_timeout=patience)
        self._place = place

    async def __call__(self, *given: Any) -> None:
        """Send it."""
        try:
            await super().__call__(*given)
        finally:
            self._place.leave()
