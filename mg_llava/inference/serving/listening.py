"""A server as a process has it: a socket, and uvicorn between it and the application."""

import asyncio
import socket
from dataclasses import replace

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from mg_llava.inference.predictor import Predictor
from mg_llava.inference.serving.errors import RequestLimits

_GRACE = 5
"""Seconds that answers have to end after the server was told to."""

_KEPT = 30
"""Seconds that a connection without a request stays open: longer than clients keep theirs (httpx and OpenAI's: five),
or the server would close just those on which a request is on its way."""


class _Connection(H11Protocol):
    """A connection, closed where it waits longer than its patience for the whole head of a request."""

    patience = 60.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        # as asyncio does for sockets that it makes itself; else the last part of an answer and each token of a stream
        # wait for the other side's acknowledgement of the part before, which comes 40 ms late
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._waiting: asyncio.TimerHandle | None = None
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Wait no longer where these bytes end a head."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next head."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._waiting is None and not self.transport.is_closing():
            self._waiting = self.loop.call_later(self.patience, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class HttpServer:
    """A server that listens; :meth:`run` answers.

    Args:
        app: Answers requests.
        host: Address to listen at.
        port: 0 for any free one.
        limits: Of its requests.

    Raises:
        OSError: The address cannot be used.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, limits: RequestLimits) -> None:
        self._socket = socket.create_server((host, port), backlog=1024, family=_family(host))
        config = uvicorn.Config(
            app,
            http=type("Connection", (_Connection,), {"patience": limits.patience}),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=4 * limits.requests + 64,  # connections, idle ones as well
            timeout_graceful_shutdown=_GRACE,
            timeout_keep_alive=_KEPT,
        )
        self._server = uvicorn.Server(config)

    @property
    def port(self) -> int:
        """The port it listens at."""
        return self._socket.getsockname()[1]

    def run(self) -> None:
        """Answer until :meth:`stop` or a signal."""
        with self._socket:
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """End; answers that are being given have some seconds."""
        self._server.should_exit = True


def fitting_limits(limits: RequestLimits, predictor: Predictor) -> RequestLimits:
    """Limits that take no more text than the LLM's context has room for, however it is cut into tokens."""
    context = getattr(predictor.model.llm.config, "max_position_embeddings", None)
    if context is None:
        return limits
    longest = max(map(len, predictor.front_end.tokenizer.get_vocab()))
    return replace(limits, characters=min(limits.characters, context * longest))


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
