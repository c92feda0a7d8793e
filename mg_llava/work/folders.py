"""The files below a folder; data sets are often links to where there is room for them."""

import os
from collections.abc import Iterator
from pathlib import Path


def walk_files(folder: str | Path) -> Iterator[str]:
    """Relative paths of all files below a folder, with those below links to folders; always in the same order."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        own = os.path.join(os.path.realpath(parent), "")
        # A link to a folder that it lies in leads to files that were found already, and has no end.
        folders[:] = sorted(one for one in folders if not own.startswith(f"{os.path.realpath(f'{parent}/{one}')}/"))
        yield from (Path(parent, name).relative_to(folder).as_posix() for name in sorted(names))
