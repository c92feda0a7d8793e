"""Numbers on command lines: those that make no sense are refused before anything is done."""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable


def whole(least: int = 1, most: float = math.inf) -> Callable[[str], int]:
    """The ``type`` of an argument that is a whole number of some range."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            limit = f"from {least} on" if most == math.inf else f"from {least} to {most}"
            raise ArgumentTypeError(f"{text!r} is no whole number {limit}")
        return number

    return read


def positive(text: str) -> float:
    """The ``type`` of an argument that is a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ArgumentTypeError(f"{text!r} is no number above 0")
    return number
