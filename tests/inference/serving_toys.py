"""A toy predictor behind a real server, and clients of it."""

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from openai import OpenAI
from PIL import Image

from mg_llava.inference import Predictor
from mg_llava.inference.engine import Engine
from mg_llava.inference.serving.app import Settings
from mg_llava.inference.serving.server import ChatServer
from tests import toy

BOXES = [[4.0, 6.0, 40.0, 30.0]]
KEY = "secret"


def make_predictor(paths: dict[str, str], **given: Any) -> Predictor:
    processor = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS}
    return Predictor(toy.build_model(paths), paths["llm"], "vicuna", processor, **{"max_new_tokens": 6, **given})


@contextmanager
def serving(
    predictor: Predictor, batch_size: int = 8, engine: Engine | None = None, **settings: Any
) -> Iterator[ChatServer]:
    settings = {"name": "toy", "api_key": KEY, **settings}
    server = ChatServer(predictor, port=0, batch_size=batch_size, settings=Settings(**settings), engine=engine)
    with running(server):
        yield server


@contextmanager
def running(server: ChatServer) -> Iterator[None]:
    """A server whose socket listens already, while it answers."""
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join()


def url_of(server: ChatServer) -> str:
    return f"http://127.0.0.1:{server.port}"


def client_of(server: ChatServer, **given: Any) -> OpenAI:
    return OpenAI(**{"base_url": url_of(server) + "/v1", "api_key": KEY, "max_retries": 0, "timeout": 60, **given})


def post(server: ChatServer, body: Any, key: str = KEY, **headers: str) -> tuple[int, dict]:
    """Status and parsed answer to a body of any kind."""
    given = {"content": body} if isinstance(body, bytes) else {"json": body}
    headers = {"Authorization": f"Bearer {key}", **headers}
    answer = httpx.post(f"{url_of(server)}/v1/chat/completions", headers=headers, timeout=60, **given)
    return answer.status_code, answer.json()


def a_picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3)).astype(np.uint8))


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def text(content: str) -> dict:
    return {"type": "text", "text": content}


def image(picture: Image.Image, **extra: Any) -> dict:
    return {"type": "image_url", "image_url": {"url": data_url(picture), **extra}}


def user(*parts: dict | str) -> list[dict]:
    return [{"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}]
