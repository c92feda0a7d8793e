"""The server of chat completions: an engine, its routes, and a socket."""

from dataclasses import replace

from mg_llava.inference.engine import Engine
from mg_llava.inference.predictor import Predictor
from mg_llava.inference.serving.app import ChatApp, Settings
from mg_llava.inference.serving.listening import HttpServer, fitting_limits


class ChatServer(HttpServer):
    """Serves chat completions.

    Args:
        predictor: Answers.
        host: Address to listen at.
        port: 0 for any free one.
        batch_size: Requests that are answered together.
        settings: See there; texts are limited to what fits into the LLM's context, however it is cut into tokens.
        engine: Answers in place of one of the predictor's own.

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
        engine: Engine | None = None,
    ) -> None:
        settings = settings or Settings()
        settings = replace(settings, limits=fitting_limits(settings.limits, predictor))
        self.app = ChatApp(engine or Engine(predictor, batch_size), settings)
        super().__init__(self.app.build(), host, port, settings.limits)
