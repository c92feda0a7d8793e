"""Who may ask the page's server, and what a browser may do with its answers."""

from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders

from mg_llava.inference.serving.errors import RefusedRequest

HOME = ("localhost", "127.0.0.1", "::1")
"""Names of this machine for itself."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Nothing is loaded from elsewhere, no text becomes a script, and no other page shows this one."""


class Guard:
    """Refuses requests of other web pages, and those that reach this machine by a name of elsewhere.

    Args:
        app: An ASGI application.
        is_home: Whether this machine alone may ask, by one of its own names.
    """

    def __init__(self, app: Any, is_home: bool) -> None:
        self.app, self.is_home = app, is_home

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        problem = self._problem(Headers(scope=scope))
        app = self.app if problem is None else JSONResponse(problem.body(), problem.status)
        await app(scope, receive, send_with_headers)

    def _problem(self, headers: Headers) -> RefusedRequest | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name, page = urlsplit(f"//{host}").hostname, origin and urlsplit(origin).netloc
        except ValueError:
            name, page = None, None
        if self.is_home and name not in HOME:
            return RefusedRequest(f"this page is at localhost, not at {host[:80]!r}", None, "forbidden", 403)
        if origin is not None and page != host:
            return RefusedRequest("other web pages may not ask this server", None, "forbidden", 403)
        return None
