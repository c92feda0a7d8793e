"""Pictures of a request: all is counted before it is decoded, and nothing is fetched unless its host was allowed."""

import base64
import http.client
import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from PIL import Image, UnidentifiedImageError

from mg_llava.inference.serving.errors import RefusedRequest, RequestLimits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_PORTS = {"http": 80, "https": 443}


def open_pictures(urls: Sequence[tuple[str, str]], limits: RequestLimits, hosts: Collection[str]) -> list[Image.Image]:
    """The decoded pictures; the headers of all are read before.

    Args:
        urls: Of each picture the field that names it, and its URL.
        limits: Of all together.
        hosts: Names of hosts from which pictures may be fetched.

    Raises:
        RefusedRequest: A URL is not allowed, a picture cannot be read, or the pictures are too large.
    """
    return decode_pictures(((param, _read(param, url, limits, hosts)) for param, url in urls), limits)


def decode_pictures(files: Iterable[tuple[str, bytes]], limits: RequestLimits) -> list[Image.Image]:
    """The decoded pictures of files, each with the field that names it; the headers of all are read before.

    Raises:
        RefusedRequest: A picture cannot be read, or the pictures are too large.
    """
    images: list[tuple[str, Image.Image]] = []
    pixels = 0
    for param, data in files:
        image = _tried(param, Image.open, io.BytesIO(data), formats=FORMATS)
        pixels += image.width * image.height
        images.append((param, image))
    if pixels > limits.pixels:
        raise RefusedRequest(
            f"the pictures have {pixels} pixels together; at most {limits.pixels} are allowed", "messages"
        )
    for param, image in images:
        _tried(param, image.load)
    return [image for _, image in images]


def _read(param: str, url: str, limits: RequestLimits, hosts: Collection[str]) -> bytes:
    """The bytes of a picture file."""
    head, comma, _ = url[:200].partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        return _tried(param, base64.b64decode, url[len(head) + 1 :], validate=True)
    try:
        parts = urlsplit(url)
        is_allowed = parts.scheme in _PORTS and (parts.hostname or "") in hosts and parts.username is None
        if not is_allowed or parts.port not in (None, _PORTS[parts.scheme]) or any(ord(char) <= 32 for char in url):
            raise ValueError
    except ValueError:
        allowed = f"http or https URLs of {', '.join(sorted(hosts))}" if hosts else "nothing is fetched from elsewhere"
        raise RefusedRequest(f"pictures must be data: URLs in base64; {allowed}", param, "invalid_image_url") from None
    try:
        return fetch(parts, limits.body, limits.patience)
    except (OSError, http.client.HTTPException, ValueError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise RefusedRequest(f"a picture cannot be fetched ({detail})", param, "invalid_image_url") from error


def fetch(url: SplitResult, most: int, patience: float) -> bytes:
    """The file at an http or https URL, of a public address; redirections are not followed.

    Raises:
        OSError: The host has no public address, or does not answer in time.
        ValueError: It answers with another status than 200, or more than ``most`` bytes.
    """
    host = url.hostname or ""
    address = public_address(host, _PORTS[url.scheme])
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(host, timeout=patience)
    plain = socket.create_connection(address, timeout=patience)  # the one that was checked
    try:
        secure = url.scheme == "https"
        connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if secure else plain
        connection.request("GET", f"{url.path or '/'}{'?' if url.query else ''}{url.query}")
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"{host} answered with status {answer.status}")
        data, due = b"", time.monotonic() + patience
        while (part := answer.read1(1 << 16)) and len(data) <= most:
            data += part
            if time.monotonic() > due:
                raise TimeoutError(f"{host} did not send the file within {patience:.0f} s")
    finally:
        connection.close()
        plain.close()
    if len(data) > most:
        raise ValueError(f"the file has more than {most} bytes")
    return data


def public_address(host: str, port: int) -> tuple[str, int]:
    """An address of a host.

    Raises:
        OSError: It has none, or one that is not public: loopback, link-local, private, multicast or reserved.
    """
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        parsed = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(parsed, "ipv4_mapped", None) or parsed
        if not mapped.is_global or mapped.is_multicast or mapped.is_reserved:
            raise OSError(f"{host} has the address {address}, which is not public")
    return found[0], port


def _tried(param: str, decode: Callable[..., Any], *given: Any, **named: Any) -> Any:
    try:
        return decode(*given, **named)
    except UnidentifiedImageError as error:
        detail = f"it is no picture, or none of {', '.join(FORMATS)}"
        raise RefusedRequest(f"a picture cannot be decoded: {detail}", param, "invalid_image") from error
    except Exception as error:  # decoders raise anything on damaged files
        raise RefusedRequest(f"a picture cannot be decoded ({str(error)[:200]})", param, "invalid_image") from error
