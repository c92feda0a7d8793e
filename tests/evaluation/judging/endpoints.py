"""Endpoints of chat completions that answer as a test says, and keep what they were asked."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Body = dict[str, Any]
Answer = Callable[[Body], tuple[Any, ...]]
"""From a request to status and content, and to further headers where there are some."""
CUT_OFF = {"Content-Length": "9999"}


def reply(content: str | None, end: str = "stop", **message: Any) -> tuple[int, Body]:
    return 200, {"choices": [{"message": {"content": content, **message}, "finish_reason": end}]}


def error(message: str, status: int = 400, **more: Any) -> tuple[int, Body]:
    return status, {"error": {"message": message, **more}}


@contextmanager
def endpoints() -> Iterator[Callable[[Answer], tuple[str, list[Body]]]]:
    servers = []

    def start(answer: Answer) -> tuple[str, list[Body]]:
        seen: list[Body] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                seen.append(body)
                status, content, *more = answer(body)
                data = json.dumps(content).encode()
                self.send_response(status)
                for header in {"Content-Length": str(len(data)), **(more[0] if more else {})}.items():
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1", seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
