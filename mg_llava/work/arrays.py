"""Files of named arrays, written at once or not at all, and read whole or not at all: checksums find flipped bits."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.work.atomic import replacing

_NAMES = "_names"
"""Array of all names: a damaged directory may lack some of them."""


def save_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    """Write arrays to a file, which is replaced.

    Raises:
        NoRoomError: They do not fit on the disk; what was there before is unchanged.
    """
    named: dict[str, Any] = {**arrays, _NAMES: np.array(sorted(arrays))}
    with replacing(path) as file:
        np.savez(file, **named)


def load_arrays(path: str | Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None where there is none, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, SyntaxError, NotImplementedError, RuntimeError):
        return None
    except (zipfile.BadZipFile, zlib.error):
        return None
    names = found.pop(_NAMES, None)
    return found if names is not None and sorted(found) == names.tolist() else None
