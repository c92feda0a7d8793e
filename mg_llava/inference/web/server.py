"""The page's server as a process has it."""

from collections.abc import Sequence
from pathlib import Path

from mg_llava.inference.engine import Engine
from mg_llava.inference.predictor import Predictor
from mg_llava.inference.serving.errors import RequestLimits
from mg_llava.inference.serving.listening import HttpServer, fitting_limits
from mg_llava.inference.web.app import PageApp
from mg_llava.inference.web.guard import HOME


class PageServer(HttpServer):
    """Serves the page.

    Args:
        predictor: Answers, and finds boxes.
        host: Address to listen at; at one of another machine's view, all who reach it may ask.
        port: 0 for any free one.
        title: Of the page.
        examples: Pictures to choose from.
        limits: Of requests.

    Raises:
        OSError: The address cannot be used.
    """

    def __init__(
        self,
        predictor: Predictor,
        host: str = "127.0.0.1",
        port: int = 0,
        title: str = "MG-LLaVA",
        examples: Sequence[Path] = (),
        limits: RequestLimits | None = None,
    ) -> None:
        limits = fitting_limits(limits or RequestLimits(), predictor)
        self.app = PageApp(Engine(predictor), title, examples, limits)
        super().__init__(self.app.build(is_home=host in HOME), host, port, limits)
