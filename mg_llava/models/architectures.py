"""Sizes of a model without its weights: from its folder, the hub's cache, or the sizes of published models.

``published/NAME.json`` says what the publisher's ``config.json`` (or ``open_clip_config.json``) says about shapes, for
the model whose path ends in NAME.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mg_llava.work.json_text import load_object

CONFIG_FILES = {"transformers": "config.json", "open_clip": "open_clip_config.json"}
EncoderLibrary = Literal["transformers", "open_clip"]

_PUBLISHED = Path(__file__).parent / "published"
_FOLDERS: ContextVar[tuple[Path, ...]] = ContextVar("folders of published sizes", default=(_PUBLISHED,))

_EQUIVALENT = {"internlm2": "llama"}
"""Architectures that only come with code of their own, and those with weights of the same number and width."""

_OWN_CODE = ("auto_map", "architectures", "rope_scaling", "bias", "attn_implementation")


class ArchitectureError(FileNotFoundError, ValueError):
    """Nothing says how large a model is."""


@dataclass(frozen=True)
class Architecture:
    """Where the numbers of a model come from.

    Attributes:
        path: Path or hub name of the model, as in the config.
        config: Content of its ``config.json`` or ``open_clip_config.json``.
        source: Where that was found, for reports.
        note: What is not quite as in the model itself, if anything.
    """

    path: str
    config: dict[str, Any]
    source: str
    note: str = ""

    def write(self, folder: str | Path, kind: EncoderLibrary) -> str:
        """Write the config into a new folder below ``folder``; returns its path."""
        target = Path(tempfile.mkdtemp(dir=folder))
        (target / CONFIG_FILES[kind]).write_text(json.dumps(self.config))
        return str(target)


@contextmanager
def sizes_from(folder: str | Path | None) -> Iterator[None]:
    """Inside, look for sizes of models that are not here in a folder as well; None changes nothing."""
    token = _FOLDERS.set(_FOLDERS.get() if folder is None else (Path(folder), *_FOLDERS.get()))
    try:
        yield
    finally:
        _FOLDERS.reset(token)


def find_architecture(path: str, kind: EncoderLibrary) -> Architecture:
    """The sizes of a model.

    Args:
        path: Folder, hub name, or model name of open_clip.
        kind: Which library reads it.

    Raises:
        ArchitectureError: They are found nowhere; says where they were looked for.
    """
    file = CONFIG_FILES[kind]
    local = Path(path) / file
    if local.is_file():
        return _architecture(path, _read(local), str(local))
    cached = _cached(path, file)
    if cached is not None:
        return _architecture(path, _read(cached), "the hub's cache")
    if kind == "open_clip" and not Path(path).exists():
        import open_clip

        known = open_clip.get_model_config(path) if "/" not in path else None
        if known is not None:
            return Architecture(path, {"model_cfg": known}, "open_clip's list of models")
    name = f"{Path(path).name}.json"
    for folder in _FOLDERS.get():
        if (folder / name).is_file():
            return _architecture(path, _read(folder / name), _place(folder / name))
    tried = ", ".join([str(local), "the hub's cache", *(_place(folder / name) for folder in _FOLDERS.get())])
    raise ArchitectureError(
        f"nothing says how large {path} is (looked for {tried}); put its {file} into one of these places"
    )


def _architecture(path: str, config: dict[str, Any], source: str) -> Architecture:
    kind = config.get("model_type")
    if kind not in _EQUIVALENT:
        return Architecture(path, config, source)
    same = {key: value for key, value in config.items() if key not in _OWN_CODE} | {"model_type": _EQUIVALENT[kind]}
    note = f"{kind} is counted as {_EQUIVALENT[kind]} of the same widths; its weights have other names"
    return Architecture(path, same, source, note)


def _cached(path: str, file: str) -> Path | None:
    """A file of a hub model that was downloaded before."""
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, file)
    return Path(found) if isinstance(found, str) else None


def _read(file: Path) -> dict[str, Any]:
    try:
        return load_object(file)
    except ValueError as error:
        raise ArchitectureError(f"{file} is no JSON of a model's sizes: {error}") from error


def _place(file: Path) -> str:
    """A file of sizes in messages."""
    return f"the published sizes of {file.stem}" if file.parent == _PUBLISHED else str(file)
