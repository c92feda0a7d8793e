"""Clients of a chat server, in a process of their own: so many connections, each asking one question at a time."""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

PATH = "/v1/chat/completions"
_HEAD = {"Content-Type": "application/json"}


def ask(port: int, file: str, connections: int) -> dict[str, Any]:
    """Send all bodies of a JSON file; the answers in their order, and the seconds that they took together."""
    bodies = [json.dumps(body).encode() for body in json.loads(Path(file).read_text())]
    texts: list[str] = [""] * len(bodies)
    numbers = count()
    opened = [http.client.HTTPConnection("127.0.0.1", port) for _ in range(connections)]

    def work(connection: http.client.HTTPConnection) -> None:
        while (number := next(numbers)) < len(bodies):
            connection.request("POST", PATH, bodies[number], _HEAD)
            answer = json.loads(connection.getresponse().read())
            texts[number] = answer["choices"][0]["message"]["content"]

    start = time.perf_counter()
    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(work, opened))
    return {"seconds": time.perf_counter() - start, "texts": texts}
