"""What the server counts, for Prometheus."""

from collections.abc import Callable
from functools import partial
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mg_llava.inference.engine import Engine
from mg_llava.inference.requests import Answer

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class ServerMetrics:
    """Counts of one server.

    Args:
        engine: Asked for its state.
    """

    def __init__(self, engine: Engine) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter("mg_llava_requests", "Chat completions by status of HTTP", ["status"], registry=own)
        self.seconds = Histogram("mg_llava_request_seconds", "Answered requests", buckets=_SECONDS, registry=own)
        self.first = Histogram("mg_llava_first_token_seconds", "First pieces", buckets=_SECONDS, registry=own)
        self._prompt = Counter("mg_llava_prompt_tokens", "Tokens that the LLM read", registry=own)
        self._new = Counter("mg_llava_generated_tokens", "Tokens of answers", registry=own)
        self._gauge("waiting_requests", "Requests without a batch", lambda: engine.waiting)
        self._gauge("running_requests", "Requests in batches", lambda: engine.running)
        for name in ("steps", "rows", "pictures"):
            read = attrgetter(f"predictor.statistics.{name}")
            self._gauge(name, f"{name.capitalize()} of the LLM and the encoders", partial(read, engine))

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(f"mg_llava_{name}", text, registry=self._registry).set_function(read)

    def count(self, answer: Answer, seconds: float) -> None:
        """Count an answer."""
        self._prompt.inc(answer.prompt_tokens)
        self._new.inc(len(answer.token_ids))
        self.seconds.observe(seconds)

    def text(self) -> bytes:
        """All counts, in Prometheus's text format."""
        return generate_latest(self._registry)
