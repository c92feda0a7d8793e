"""A small server with OpenAI's chat-completions interface over a predictor, for tools that speak to an endpoint.

Pictures come as ``data:`` URLs, one question at a time is answered, replies are not streamed. As an addition, the
``image_url`` of a picture may have ``boxes`` (with ``scores`` and ``labels``), xyxy in its pixels.
"""

import hmac
import json
import logging
import select
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Timer
from typing import Any
from urllib.parse import urlsplit

from mmengine.logging import print_log

from mg_llava.inference.chat_request import BadRequest, Limits, make_request, read_body
from mg_llava.inference.predictor import Predictor
from mg_llava.inference.requests import Answer

MAX_BODY = 64 << 20
"""Largest request in bytes."""

PATIENCE = 60.0
"""Seconds that a client may take to send a request."""

_COMPLETIONS, _MODELS, _HEALTH = "/v1/chat/completions", "/v1/models", "/health"


class Abandoned(Exception):
    """The client has hung up."""


def complete(
    predictor: Predictor, body: Any, model: str, limits: Limits, is_gone: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Answer a body of ``/v1/chat/completions``.

    Args:
        predictor: Answers.
        body: The body, parsed.
        model: Name of the model in the answer.
        limits: Of the body.
        is_gone: Asked before each step whether nobody waits for the answer any more.

    Raises:
        BadRequest: See :func:`make_request`; also for boxes and questions that the predictor refuses.
        Abandoned: Nobody waits.
    """
    if is_gone():
        raise Abandoned
    request, settings = make_request(body, limits)
    try:
        reply = predictor.answer(request, **settings)
        with closing(iter(reply)) as pieces:
            for _ in pieces:
                if is_gone():
                    raise Abandoned
    except ValueError as error:
        raise BadRequest(str(error), "messages") from error
    assert reply.whole is not None
    return _completion(reply.whole, model)


class ChatServer(ThreadingHTTPServer):
    """The server; ``serve_forever`` starts it.

    Args:
        predictor: Answers.
        address: Host and port to listen at; port 0 for any free one, which ``server_port`` then says.
        model: Name of the model in answers.
        api_key: What clients must send as bearer token; empty for none.
    """

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, predictor: Predictor, address: tuple[str, int], model: str, api_key: str) -> None:
        super().__init__(address, _Handler)
        self.predictor, self.model, self.api_key = predictor, model, api_key
        self.lock = Lock()
        context = getattr(predictor.model.llm.config, "max_position_embeddings", None)
        longest = max(map(len, predictor.front_end.tokenizer.get_vocab()))
        self.limits = Limits(context * longest) if context else Limits()  # no longer text fits, however it is cut


def make_server(
    predictor: Predictor, host: str = "127.0.0.1", port: int = 8000, model: str = "mg-llava", api_key: str = ""
) -> ChatServer:
    """A server; arguments as for :class:`ChatServer`."""
    return ChatServer(predictor, (host, port), model, api_key)


class _Handler(BaseHTTPRequestHandler):
    """One connection, request by request. Where a request was not read to its end, the connection closes."""

    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    server: ChatServer

    def do_GET(self) -> None:
        """Models and health."""
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # its body is not the next request
        path = self._place()
        if path == _HEALTH:
            self._send(200, {"status": "ok"})
        elif path != _MODELS:
            self._fail(404, f"{path} is unknown; there are {_MODELS}, {_COMPLETIONS} and {_HEALTH}")
        elif self._is_allowed():
            entry = {"id": self.server.model, "object": "model", "created": 0, "owned_by": "mg_llava"}
            self._send(200, {"object": "list", "data": [entry]})

    def do_POST(self) -> None:
        """Chat completions; the key is looked at before the body is read."""
        self.close_connection, keeps = True, not self.close_connection
        if not self._is_allowed():
            return
        if self._place() != _COMPLETIONS:
            self._fail(404, f"{self._place()} is unknown; there is {_COMPLETIONS}")
            return
        data = self._body()
        if data is None:
            return
        self.close_connection = not keeps
        try:
            with self.server.lock:
                server = self.server
                answer = complete(server.predictor, read_body(data), server.model, server.limits, self._is_gone)
        except Abandoned:
            self.close_connection = True
        except BadRequest as error:
            self._fail(400, str(error), error.param)
        except Exception as error:
            # a server outlives any one question
            print_log(f"{type(error).__name__}: {error}", logger="current", level=logging.ERROR)
            self._fail(500, "the server failed at this request; its log says why")
        else:
            self._send(200, answer)

    def _place(self) -> str:
        return urlsplit(self.path).path.rstrip("/") or "/"

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdecimal()):
            self._fail(411, "a request needs a Content-Length")
            return None
        if len(length) > 18 or int(length) > MAX_BODY:
            self._fail(413, f"a request has at most {MAX_BODY} bytes")
            return None
        timer = Timer(PATIENCE, self.connection.shutdown, [socket.SHUT_RD])  # a read that waits then ends
        timer.start()
        try:
            data = self.rfile.read(int(length))
        except OSError:
            data = b""
        finally:
            timer.cancel()
        if len(data) < int(length):
            self._fail(408, f"the request did not come whole within {PATIENCE:.0f} s")
            return None
        return data

    def _is_allowed(self) -> bool:
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if self.server.api_key and not hmac.compare_digest(sent.encode(), self.server.api_key.encode()):
            self._fail(401, "wrong API key")
            return False
        return True

    def _is_gone(self) -> bool:
        """Whether the client has closed the connection."""
        try:
            is_readable = bool(select.select([self.connection], [], [], 0)[0])
            return is_readable and not self.connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request of HTTP, in the form of all other refusals."""
        self.close_connection = True
        self._fail(code, message or self.responses[code][0])

    def _fail(self, status: int, message: str, param: str | None = None) -> None:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        code = {401: "invalid_api_key", 404: "unknown_url"}.get(status)
        self._send(status, {"error": {"message": message, "type": kind, "param": param, "code": code}})

    def _send(self, status: int, payload: Mapping[str, Any]) -> None:
        data = json.dumps(payload).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # the client did not wait

    def log_message(self, format: str, *args: Any) -> None:
        print_log(format % args, logger="current", level=logging.DEBUG)


def _completion(answer: Answer, model: str) -> dict[str, Any]:
    tokens, message = len(answer.token_ids), {"role": "assistant", "content": answer.text}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "length" if answer.truncated else "stop"}],
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": answer.prompt_tokens + tokens,
        },
    }
