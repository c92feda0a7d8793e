"""Puts the safe reader in the place of ``torch.load``, for libraries that open files of weights by themselves."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

from mg_llava.models.weights.archive import CheckpointError, read_archive

_lock = threading.Lock()
_theirs: list[Any] = []
"""``torch.load`` as it was, once for each use that the safe one is in."""


def guard_torch_load() -> None:
    """Give ``torch.load`` the safe reader for the rest of this process; see :func:`safe_torch_load`."""
    with _lock:
        _theirs.append(_theirs[-1] if _theirs else torch.load)
        torch.load = torch.serialization.load = _load


@contextlib.contextmanager
def safe_torch_load() -> Iterator[None]:
    """While it lasts ``torch.load`` reads tensors, plain values and what training resumes from, and refuses others.

    Raises:
        CheckpointError: A library met a file that is refused or damaged, however it wrapped the error.
    """
    guard_torch_load()
    try:
        yield
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None or refusal is error:
            raise
        raise refusal from None
    finally:
        with _lock:
            theirs = _theirs.pop()
            if not _theirs:
                torch.load = torch.serialization.load = theirs


def _refusal(error: BaseException | None) -> CheckpointError | None:
    while error is not None and not isinstance(error, CheckpointError):
        error = error.__cause__ or error.__context__
    return error


def _load(f: Any, map_location: Any = None, pickle_module: Any = None, *, mmap: bool | None = None, **_: Any) -> Any:
    """``torch.load`` with its arguments; those that would let code run have no effect."""
    restore = torch.serialization._get_restore_location(map_location)  # type: ignore[attr-defined]
    return read_archive(f, "refuse", bool(mmap), restore)
