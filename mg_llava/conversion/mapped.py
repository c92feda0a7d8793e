"""Gives back memory that only copies a file: pages of mapped weights that were read and are not needed any more."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

_PAGEOUT = 21
"""Linux' ``MADV_PAGEOUT``: changes no content, so it is safe whatever a mapping is."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_MAPS = Path("/proc/self/maps")


def release_mapped_weights() -> None:
    """Let the system take the pages of mapped files of weights; they are read again when they are needed.

    Otherwise a process seems to hold whatever it has read of a mapped file, although the system could take it any
    time. Does nothing where the system cannot be told.
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    for begin, size in _mapped_weights():
        advise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _PAGEOUT)


def _mapped_weights() -> Iterator[tuple[int, int]]:
    """Address and bytes of each mapping of a file of weights."""
    for line in _MAPS.read_text().splitlines():
        span, *_, last = line.split(maxsplit=5)
        if last.endswith(_WEIGHTS):
            begin, end = (int(address, 16) for address in span.split("-"))
            yield begin, end - begin
