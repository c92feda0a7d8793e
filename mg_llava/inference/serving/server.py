"""The server as a process has it: a socket, an engine, and uvicorn between them."""

import socket
from dataclasses import replace

import uvicorn

from mg_llava.inference.engine import Engine
from mg_llava.inference.predictor import Predictor
from mg_llava.inference.serving.app import ChatApp, Settings

_GRACE = 5
"""Seconds that answers have to end after the server was told to."""


class ChatServer:
    """A server that listens; :meth:`run` answers.

    Args:
        predictor: Answers.
        host: Address to listen at.
        port: 0 for any free one.
        batch_size: Requests that are answered together.
        settings: See there; texts are limited to what fits into the LLM's context, however it is cut into tokens.

    Raises:
        OSError: The address cannot be used.
    """

    def __init__(
        self,
        predictor: Predictor,
        host: str = "127.0.0.1",
        port: int = 8000,
        batch_size: int = 8,
        settings: Settings | None = None,
    ) -> None:
        settings = settings or Settings()
        context = getattr(predictor.model.llm.config, "max_position_embeddings", None)
        if context is not None:
            longest = max(map(len, predictor.front_end.tokenizer.get_vocab()))
            characters = min(settings.limits.characters, context * longest)
            settings = replace(settings, limits=replace(settings.limits, characters=characters))
        self.app = ChatApp(Engine(predictor, batch_size), settings)
        self._socket = socket.create_server((host, port), backlog=1024, family=_family(host))
        config = uvicorn.Config(
            self.app.build(),
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=4 * settings.limits.requests + 64,  # connections, idle ones as well
            timeout_graceful_shutdown=_GRACE,
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


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
