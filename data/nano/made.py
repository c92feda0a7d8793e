"""Folders of made data: which settings made them, so that a finished one is not made again and a cut one is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

META = "meta.json"


def is_made(out: Path, settings: Mapping[str, Any], force: bool | None = None) -> bool:
    """Tell whether a folder was made with these settings to its end, and say so; else it is there to be made.

    Args:
        out: The folder.
        settings: What it is made with.
        force: Of a command's ``--force``; None where it has none.
    """
    meta = out / META
    if not force and meta.is_file() and json.loads(meta.read_text()) == settings:
        hint = "" if force is None else " (--force makes it again)"
        print(f"{out} already holds this data; nothing to do{hint}")
        return True
    out.mkdir(parents=True, exist_ok=True)
    meta.unlink(missing_ok=True)
    return False


def finish(out: Path, settings: Mapping[str, Any]) -> None:
    """Note the settings of a folder that is whole."""
    (out / META).write_text(json.dumps(settings, indent=2) + "\n")
