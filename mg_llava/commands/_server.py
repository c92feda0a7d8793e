"""How a command that serves begins and ends."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any


def serve_until_stopped(build: Callable[[], Any], extra: str, describe: Callable[[int], str]) -> int:
    """Build a server, say where it is, and run it until it is interrupted.

    Args:
        build: Makes the server, which has a ``port`` and a ``run``.
        extra: Extra of the package that it needs.
        describe: A line about the server at a port.

    Returns:
        Exit status: 0 stopped, 1 it cannot be built.
    """
    try:
        server = build()
    except ImportError as error:
        print(f"error: {error}; pip install 'mg_llava[{extra}]'", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(describe(server.port), flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # the usual end
        server.run()
    return 0
