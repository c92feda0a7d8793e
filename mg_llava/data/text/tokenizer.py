"""Building a tokenizer from a config, with one clear message where its files are missing."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "*.tiktoken",
    "*.spm",
)


class TokenizerError(ValueError):
    """A folder that a tokenizer cannot be loaded from."""


def build_tokenizer(spec: Any) -> Any:
    """Make a tokenizer.

    Args:
        spec: A transformers tokenizer (returned as it is); a folder or hub name; or a dict with ``type``, a
            callable or its dotted path such as ``AutoTokenizer.from_pretrained``, and its arguments.

    Raises:
        TokenizerError: The folder does not exist, holds no tokenizer files, or they cannot be loaded.
        TypeError: ``spec`` is none of these.
    """
    if hasattr(spec, "bos_token_id"):
        return spec
    if isinstance(spec, str | os.PathLike):
        spec = {"pretrained_model_name_or_path": os.fspath(spec)}
    if not isinstance(spec, Mapping):
        raise TypeError(f"tokenizer is a {type(spec).__name__}; allowed: a tokenizer, a folder, a dict with type")
    arguments = dict(spec)
    loader = _find_loader(arguments.pop("type", None))
    name = arguments.get("pretrained_model_name_or_path")
    if name is not None:
        _check_folder(os.fspath(name))
    try:
        return loader(**arguments)
    except Exception as error:  # the tokenizers library raises nothing more precise
        raise TokenizerError(f"no tokenizer can be loaded from {name!r} ({type(error).__name__}: {error})") from error


def _find_loader(kind: Any) -> Callable[..., Any]:
    if kind is None:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained
    if isinstance(kind, str):
        from mmengine.utils import get_object_from_string

        found = get_object_from_string(kind)
        if found is None:
            raise TokenizerError(f"tokenizer type {kind!r} cannot be imported; transformers' are transformers.<class>")
        kind = found
    return getattr(kind, "from_pretrained", kind)


def _check_folder(name: str) -> None:
    """Refuse local folders without a tokenizer; names of the hub pass."""
    folder = Path(name)
    if not folder.exists():
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise TokenizerError(f"tokenizer folder {name} does not exist; check the path of the LLM")
        return
    if folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in _VOCABULARY_FILES):
        found = sorted(path.name for path in folder.iterdir())[:10]
        raise TokenizerError(
            f"LLM folder {name} holds no tokenizer: found {', '.join(found) or 'nothing'}; one of "
            f"{', '.join(_VOCABULARY_FILES)} is needed; copy the tokenizer files of the LLM there"
        )
