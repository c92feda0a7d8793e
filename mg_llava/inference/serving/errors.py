"""Refusals in OpenAI's form, and the limits that lead to them."""

from dataclasses import dataclass
from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True)
class RequestLimits:
    """Most that the server takes.

    Attributes:
        body: Bytes of a request.
        memory: Bytes of all requests that are being read or wait.
        requests: Requests at a time; more are refused with status 429.
        characters: Of all texts of a request.
        pictures: Of a request.
        pixels: Of all pictures of a request.
        boxes: Of a picture.
        patience: Seconds that a client may take to send a request, or another server a picture.
        seconds: That an answer may take.
    """

    body: int = 64 << 20
    memory: int = 512 << 20
    requests: int = 256
    characters: int = 1 << 20
    pictures: int = 16
    pixels: int = 64_000_000
    boxes: int = 1000
    patience: float = 60.0
    seconds: float = 600.0


class RefusedRequest(Exception):
    """A request that is not answered; the message goes back to the client.

    Args:
        message: The fault.
        param: The field with it, such as ``messages[0].content``.
        code: OpenAI's short name of the fault.
        status: Of HTTP.
    """

    def __init__(
        self, message: str, param: str | None = None, code: str | None = "invalid_value", status: int = 400
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}
