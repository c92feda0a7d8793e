"""A toy predictor behind a page, and requests to it."""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from mg_llava.inference import Predictor
from mg_llava.inference.serving.errors import RequestLimits
from mg_llava.inference.web.server import PageServer
from tests.inference.serving_toys import make_predictor

FOUND = {"boxes": [[4.0, 6.0, 24.0, 24.0], [30.0, 10.0, 60.0, 44.0]], "scores": [0.9, 0.4], "labels": ["a", "b"]}


def finding_predictor(paths: dict[str, str], **given: Any) -> Predictor:
    """A toy predictor that finds the same boxes in every picture."""
    return make_predictor(paths, proposer=lambda image: FOUND, **given)


@contextmanager
def page_of(predictor: Predictor, examples: list[Path], **limits: Any) -> Iterator[PageServer]:
    server = PageServer(predictor, title="<b>toy</b>", examples=examples, limits=RequestLimits(**limits))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


def visitor_of(server: PageServer) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60)


def png_of(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def ask(visitor: httpx.Client, key: str, question: str, *sides: str) -> list[dict]:
    """The events of a stream of answers."""
    given = {"question": question, "sides": list(sides or ("with", "without"))}
    with visitor.stream("POST", f"/boards/{key}/ask", json=given) as answer:
        assert answer.status_code == 200, answer.read()
        return [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: ")]


def answers_of(events: list[dict]) -> dict[str, str]:
    """The answer of each conversation, which its pieces are equal to."""
    found = {event["side"]: event["answer"] for event in events if "answer" in event}
    for side, text in found.items():
        assert "".join(event.get("piece", "") for event in events if event["side"] == side) == text
    return found
