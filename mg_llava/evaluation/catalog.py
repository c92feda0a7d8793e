"""Published data sets by the names that the command line takes: their files under a root, and what is missing there.

``tools/evaluate.py --list`` prints what is there, where to get the others, and what to know before comparing.
Names of files are those they are published under; a layout of your own works by giving the files themselves.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mg_llava.evaluation.benchmark import BENCHMARKS, KIND_PREFIX
from mg_llava.evaluation.release import PAPER_MODEL, Release

DEFAULT_ROOT = "data/eval"
BOX_SUFFIXES = (".safetensors", ".json", ".jsonl")


def find_release(name: str) -> Release:
    """A published data set.

    Raises:
        ValueError: The name is unknown; the message has the nearest and all known names.
    """
    known = BENCHMARKS.releases
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; is {near[0]!r} meant?" if near else ";"
        raise ValueError(f"benchmark {name!r} is unknown{hint} known are {', '.join(sorted(known))}")
    return known[name][1]


def benchmark_config(name: str, root: str | Path = DEFAULT_ROOT) -> dict[str, Any]:
    """Config of a benchmark for the ``BENCHMARKS`` registry, with its files under ``root``.

    Raises:
        ValueError: The name is unknown.
    """
    release = find_release(name)
    images = None if release.images is None else str(Path(root) / release.images)
    data = [str(Path(root) / item) for item in release.data]
    kind = f"{KIND_PREFIX}{BENCHMARKS.releases[name][0].__name__}"
    return {"type": kind, "data": data, "image_folder": images, "name": name, **release.settings}


def default_boxes(name: str, root: str | Path = DEFAULT_ROOT, folders: Sequence[str] = ("boxes",)) -> Path | None:
    """The box file of a benchmark, ``boxes/NAME.safetensors`` or ``.json`` under ``root``, if it is there."""
    files = (Path(root) / folder / f"{name}{suffix}" for folder in folders for suffix in BOX_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def missing_files(name: str, root: str | Path = DEFAULT_ROOT) -> list[Path]:
    """Files and folders of a benchmark that are not under ``root``."""
    release = find_release(name)
    wanted = [*release.data, *([release.images] if release.images else [])]
    return [Path(root) / item for item in wanted if not (Path(root) / item).exists()]


def format_list(root: str | Path = DEFAULT_ROOT, names: Sequence[str] | None = None) -> str:
    """What ``--list`` prints: which benchmarks are there, which boxes they have, and what others miss.

    Args:
        root: Folder of all data.
        names: The benchmarks to show; None for all.
    """
    there, missing = [], []
    for name in names or sorted(BENCHMARKS.releases):
        release, gone = find_release(name), missing_files(name, root)
        indent = f"\n  {'':<18} "
        caution = f"{indent}note: {release.caution}" if release.caution else ""
        if gone:
            paths = ", ".join(str(path.relative_to(root)) for path in gone)
            missing.append(f"  {name:<18} missing {paths}{indent}get {release.get}{caution}")
            continue
        boxes = default_boxes(name, root)
        paper = release.paper.get(PAPER_MODEL)
        number = "" if paper is None else f"; paper {paper} ({PAPER_MODEL})"
        there.append(f"  {name:<18} boxes: {boxes.name if boxes else 'none'}{number}{caution}")
    return "\n".join([f"there, under {root}:", *(there or ["  nothing"]), "", "missing:", *(missing or ["  nothing"])])
