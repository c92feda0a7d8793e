"""A small server with OpenAI's chat-completions interface over a predictor, for tools that speak to an endpoint.

Pictures come as ``data:`` URLs, one question at a time is answered, replies are not streamed. As an addition, the
``image_url`` of a picture may have ``boxes`` (with ``scores`` and ``labels``), xyxy in its pixels.
"""

import base64
import binascii
import hmac
import io
import json
import logging
import time
import uuid
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

from mmengine.logging import print_log
from PIL import Image

from mg_llava.data.records.schema import Turn
from mg_llava.inference.predictor import Predictor
from mg_llava.inference.requests import Answer, Request
from mg_llava.tokens import IMAGE_PLACEHOLDER

MAX_BODY = 64 << 20
"""Largest request in bytes."""
_ROLES = {"user": "human", "assistant": "gpt"}


class BadRequest(ValueError):
    """A request that cannot be answered; the message goes back to the client."""


def make_request(body: Any) -> tuple[Request, dict[str, Any]]:
    """What a body of ``/v1/chat/completions`` asks.

    Returns:
        The request and arguments of ``predict``.

    Raises:
        BadRequest: The body is malformed, or asks for what this server does not do.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("messages"), list) or not body["messages"]:
        raise BadRequest("the body must be an object with 'messages', a list of {'role', 'content'}")
    if body.get("stream"):
        raise BadRequest("streaming is not supported; leave out 'stream'")
    if body.get("n") not in (None, 1):
        raise BadRequest("only n=1 is supported")
    system, turns, pictures, boxes = "", [], [], []
    for number, message in enumerate(body["messages"]):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in (*_ROLES, "system", "developer"):
            raise BadRequest(f"messages[{number}] has role {role!r}; allowed: system, user, assistant")
        text, seen = _read_content(message.get("content"), f"messages[{number}]")
        if role in _ROLES:
            turns.append(Turn(_ROLES[role], text))  # type: ignore[arg-type]
            pictures += [image for image, _ in seen]
            boxes += [found for _, found in seen]
        else:
            system += text
    found = (boxes[0] if len(boxes) == 1 else boxes) if pictures else None
    return Request(turns, pictures or None, found, system=system or None), _generation(body)


def complete(predictor: Predictor, body: Any, model: str) -> dict[str, Any]:
    """Answer a body of ``/v1/chat/completions``.

    Raises:
        BadRequest: See :func:`make_request`; also for boxes and questions that the predictor refuses.
    """
    request, generation = make_request(body)
    try:
        answer = predictor.predict_many([request], **generation)[0]
    except ValueError as error:
        raise BadRequest(str(error)) from error
    return _completion(answer, model)


def make_server(
    predictor: Predictor, host: str = "127.0.0.1", port: int = 8000, model: str = "mg-llava", api_key: str = ""
) -> ThreadingHTTPServer:
    """A server; ``serve_forever`` starts it.

    Args:
        predictor: Answers.
        host: Address to listen at.
        port: Port; 0 for any free one, which ``server_port`` then says.
        model: Name of the model in answers.
        api_key: What clients must send as bearer token; empty for none.
    """
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path.rstrip("/") == "/v1/models" and self._is_allowed():
                entry = {"id": model, "object": "model", "created": 0, "owned_by": "mg_llava"}
                self._send(200, {"object": "list", "data": [entry]})
            elif self.path == "/health":
                self._send(200, {"status": "ok"})
            else:
                self._fail(404, f"{self.path} is unknown; there are /v1/models, /v1/chat/completions and /health")

        def do_POST(self) -> None:
            body = self._body()
            if body is None or not self._is_allowed():
                return
            if self.path.rstrip("/") != "/v1/chat/completions":
                self._fail(404, f"{self.path} is unknown; there is /v1/chat/completions")
                return
            try:
                with lock:
                    answer = complete(predictor, json.loads(body), model)
            except (BadRequest, json.JSONDecodeError, UnicodeDecodeError) as error:
                self._fail(400, str(error))
            except Exception as error:
                # a server outlives any one question
                print_log(f"{type(error).__name__}: {error}", logger="current", level=logging.ERROR)
                self._fail(500, f"{type(error).__name__}: {error}")
            else:
                self._send(200, answer)

        def _body(self) -> bytes | None:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > MAX_BODY:
                self.close_connection = True  # what follows was not read
                self._fail(413, f"a request needs a Content-Length of at most {MAX_BODY} bytes")
                return None
            return self.rfile.read(int(length))

        def _is_allowed(self) -> bool:
            sent = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
            if api_key and not hmac.compare_digest(sent.encode(), api_key.encode()):
                self._fail(401, "wrong API key")
                return False
            return True

        def _fail(self, status: int, message: str) -> None:
            self._send(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}})

        def _send(self, status: int, payload: Mapping[str, Any]) -> None:
            data = json.dumps(payload).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            print_log(format % args, logger="current", level=logging.DEBUG)

    return ThreadingHTTPServer((host, port), Handler)


def _read_content(content: Any, owner: str) -> tuple[str, list[tuple[Image.Image, Any]]]:
    """Text of a message with a placeholder for each picture, and the pictures with their boxes."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise BadRequest(f"{owner}: content must be a text or a list of parts")
    text, seen = "", []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"].replace(IMAGE_PLACEHOLDER, "")  # pictures have parts of their own
        elif kind == "image_url" and isinstance(part.get("image_url"), Mapping):
            seen.append(_read_picture(part["image_url"], owner))
            text += f"{IMAGE_PLACEHOLDER}\n"
        else:
            raise BadRequest(f"{owner}: a part is {{'type': 'text', 'text'}} or {{'type': 'image_url', 'image_url'}}")
    return text, seen


def _read_picture(source: Mapping[str, Any], owner: str) -> tuple[Image.Image, Any]:
    head, _, data = str(source.get("url", "")).partition(",")
    if not (head.startswith("data:") and head.endswith(";base64")):
        raise BadRequest(f"{owner}: pictures must be data: URLs in base64; nothing is fetched from elsewhere")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        image.load()
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadRequest(f"{owner}: the picture cannot be decoded ({error})") from error
    boxes = {name: source[name] for name in ("boxes", "scores", "labels") if name in source}
    return image, boxes if "boxes" in boxes else None


def _generation(body: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is not None:
        if not isinstance(limit, int) or limit < 1:
            raise BadRequest(f"max_tokens is {limit!r}, must be a positive integer")
        settings["max_new_tokens"] = limit
    temperature, top_p = body.get("temperature") or 0, body.get("top_p")
    if not isinstance(temperature, int | float) or temperature < 0:
        raise BadRequest(f"temperature is {temperature!r}, must be a number of at least 0")
    if temperature > 0:
        settings |= {"do_sample": True, "temperature": float(temperature)}
        settings |= {} if top_p is None else {"top_p": top_p}
    stop = body.get("stop") or []
    return settings | {"stop": [stop] if isinstance(stop, str) else stop}


def _completion(answer: Answer, model: str) -> dict[str, Any]:
    reason, tokens = "length" if answer.truncated else "stop", len(answer.token_ids)
    message = {"role": "assistant", "content": answer.text}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": answer.prompt_tokens + tokens,
        },
    }
