"""Ctrl-C in a tool: one line and status 130, in place of the tracebacks of every process."""

import sys
from collections.abc import Callable

INTERRUPTED = 130
"""Exit status of a program that was interrupted, as shells have it."""


def run_main(main: Callable[[], int], after: str = "the same command starts again") -> int:
    """The exit status of a tool's ``main``; an interrupted one says ``after``, which is what to do next."""
    try:
        return main()
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; {after}\n")
        return INTERRUPTED
