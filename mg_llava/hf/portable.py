"""Files of a folder as releases 4 and 5 of transformers both read them, whichever writes them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LONG = "longrope"


def portable_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config, and those in it, by the names that transformers 5 still reads and 4 knows alone.

    Without them 4 would take its defaults in silence, such as another base of the rotary positions.
    """
    found = {key: portable_config(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    if "dtype" in found:
        found.setdefault("torch_dtype", found.pop("dtype"))
    rotary = found.get("rope_parameters")
    if isinstance(rotary, dict) and "rope_theta" in rotary:  # else one for each kind of layers, which 4 knows not
        found |= _rotary(found.pop("rope_parameters"))
    return found


def _rotary(rotary: dict[str, Any]) -> dict[str, Any]:
    rest = dict(rotary)
    found: dict[str, Any] = {name: rest.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rest}
    kind = rest.pop("rope_type", rest.pop("type", "default"))
    if kind == "default":
        return {**found, "rope_scaling": None}
    if kind == _LONG:
        return {**found, "rope_scaling": {"type": kind, **{n: rest[n] for n in ("short_factor", "long_factor")}}}
    rest.pop("type", None)
    return {**found, "rope_scaling": {"rope_type": kind, **rest}}


def complete_processor(folder: Path, processor: Any) -> None:
    """Write the files of a processor as transformers 4 has them where transformers 5 has written its own."""
    with _edited(folder / "processor_config.json") as settings:
        if settings.pop("image_processor", None) is None:
            return
    processor.image_processor.save_pretrained(folder)
    with _edited(folder / "chat_template.json") as settings:
        settings["chat_template"] = processor.chat_template
    with _edited(folder / "tokenizer_config.json") as settings:
        if settings.get("tokenizer_class") == "TokenizersBackend":
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(further := settings.get("extra_special_tokens"), list):
            settings["additional_special_tokens"] = further
            del settings["extra_special_tokens"]
        for name in ("is_local", "local_files_only"):  # how it was read here
            settings.pop(name, None)


@contextmanager
def _edited(file: Path) -> Iterator[dict[str, Any]]:
    """The content of a JSON file, to be changed."""
    text = file.read_text() if file.is_file() else "{}"
    settings = json.loads(text)
    yield settings
    if settings != json.loads(text):
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
