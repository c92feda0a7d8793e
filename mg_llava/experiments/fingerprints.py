"""Fingerprints of a grid's steps: they change with what weights and results depend on, and with nothing else."""

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mg_llava.data.pictures.places import join_path
from mg_llava.experiments.grid import Grid, read_leaf

WATCHING = (
    *("default_hooks", "env_cfg", "launcher", "load_from", "log_level", "log_processor", "resume", "visualizer"),
    *("test_cfg", "test_dataloader", "test_evaluator", "work_dir"),
)
"""Keys of a config on which no weight depends; ``load_from`` counts where it names something."""
LOADING = ("num_workers", "persistent_workers", "pin_memory", "prefetch_factor")
"""Keys of a data loader on which no batch depends: draws go by seed, epoch and sample."""
WHOLE = 64 << 20
"""Files of more bytes count by their size and both ends."""
CROWDED = 10_000
"""Files in folders of more count by their names and sizes."""
_SETTLED = 3_000_000_000
"""Nanoseconds after which a change of a file has a time of its own, on every file system."""


def stage_fingerprint(
    leaf: str,
    options: Sequence[str],
    seed: int,
    before: str,
    train: Sequence[str] = Grid.train,
    processes: str = "1",
    read: Callable[[str, Sequence[str]], Any] = read_leaf,
) -> str:
    """Changes with what weights depend on: settings of the dumped config, the files they name, seed, stages before.

    Args:
        leaf: Config of the stage.
        options: Changes of it.
        seed: Of the run.
        before: Fingerprint of the stage before, empty for the first.
        train: The command that trains.
        processes: How many of them share a training.
        read: Gives the leaf with its changes; what it gives is left as it is.
    """
    config = read(leaf, options)
    settings = {key: value for key, value in config.to_dict().items() if key not in WATCHING}
    if before:
        settings.setdefault("model", {})["pretrained_pth"] = None  # it is the one of the stage before
    loader = settings.get("train_dataloader", {})
    for name in LOADING:
        loader.pop(name, None)
    for source in _sources(loader.get("dataset", {})):
        source.pop("caches", None)  # what is kept there does not change what is trained
    texts = (*_texts(settings), *_below_roots(loader.get("dataset")))
    files = {text: digest for text in texts if (digest := _digest_of(text))}
    unusual = _unusual(config.get("load_from"), train, processes)
    return _digest([settings, files, seed, before, *([unusual] if unusual else [])])


def command_fingerprint(command: Sequence[str], before: str) -> str:
    """Changes with a command, the files that it names, and the fingerprint of what it works on."""
    return _digest([*_command(command), before])


def _unusual(start: Any, train: Sequence[str], processes: str) -> dict[str, Any]:
    """What counts only where it is not as usual: all other runs keep their fingerprints."""
    found: dict[str, Any] = {}
    if start is not None:
        found["load_from"] = [str(start), _digest_of(str(start))]
    if tuple(train) != Grid.train:
        found["train"] = _command(train)
    if processes != "1":
        found["processes"] = processes
    return found


def _command(command: Sequence[str]) -> list[Any]:
    return [list(command), {part: _digest_of(part) for part in command}]


def _sources(dataset: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield dataset
    for source in dataset.get("sources", ()):
        yield from _sources(source)


def _texts(value: Any) -> Iterator[str]:
    """All strings of nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _below_roots(value: Any, root: Any = None) -> Iterator[str]:
    """All strings of a data set's settings below the ``data_root`` that holds for them: theirs, or one further out."""
    if isinstance(value, str):
        yield from [join_path(root, value)] if root and isinstance(root, str | Path) else []
    elif isinstance(value, Mapping):
        root = value.get("data_root", root)
        for item in value.values():
            yield from _below_roots(item, root)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _below_roots(item, root)


def _digest_of(text: str) -> str | None:
    """Of a file's content, or of the files in a folder, not those further below; None where a text names neither."""
    path = Path(text)
    try:
        if "\n" in text or not text or not path.exists():
            return None
    except (OSError, ValueError):  # too long for a name, or none
        return None
    if path.is_file():
        return _digest_file(path)
    if len(os.listdir(path)) > CROWDED:
        return _remembered(_digest_names, path)
    inside = sorted(path.iterdir())
    return _digest([(file.name, _digest_file(file) if file.is_file() else "") for file in inside])


def _digest_file(path: Path) -> str:
    return _remembered(_digest_content, path)


def _remembered(digest: Any, path: Path) -> str:
    """A digest of a file or folder, which is made once for all rows, seeds and stages while that does not change."""
    state = path.stat()
    if time.time_ns() - state.st_mtime_ns < _SETTLED:  # it may be changed once more without another time
        return digest.__wrapped__(str(path), 0, state.st_size)
    return digest(os.path.abspath(path), state.st_mtime_ns, state.st_size)


@functools.cache
def _digest_content(path: str, changed: int, size: int) -> str:
    with open(path, "rb") as file:
        if size <= WHOLE:
            return hashlib.sha256(file.read()).hexdigest()
        head = file.read(1 << 20)
        file.seek(-(1 << 20), 2)
        return hashlib.sha256(b"%d" % size + head + file.read()).hexdigest()


@functools.cache
def _digest_names(path: str, changed: int, size: int) -> str:
    with os.scandir(path) as found:
        return _digest(sorted((item.name, item.stat().st_size if item.is_file() else -1) for item in found))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
