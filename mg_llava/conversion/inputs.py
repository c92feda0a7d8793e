"""Opens a checkpoint of any kind and brings its tensors under the model's names."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mg_llava.conversion.adapters import split_adapters
from mg_llava.conversion.expected import expected_parts, keys_of, parts_of
from mg_llava.conversion.files import ConversionError, check_files, read_manifest
from mg_llava.conversion.lyrics import is_published_lyrics, name_published_lyrics
from mg_llava.conversion.settings import ModelSettings, stored_settings
from mg_llava.conversion.types import Checkpoint
from mg_llava.models.parts import kind_of
from mg_llava.models.weights.archive import CheckpointError
from mg_llava.models.weights.checkpoint import newest_checkpoint, open_training_checkpoint
from mg_llava.models.weights.deepspeed import MODEL_STATES
from mg_llava.models.weights.folders import map_folder, read_folder_config
from mg_llava.models.weights.stored import TensorMap, map_weights, nonfinite_message, nonfinite_names
from mg_llava.work.json_text import load_object

VISION_FILE = "vision_part.safetensors"
LLM_FOLDER = "llm"
PROJECT_KEY = "mg_llava"
"""Entry of a file's meta data that says that this project wrote it."""


def open_checkpoint(
    path: str | Path, lora: Mapping[str, Any] | None = None, settings: ModelSettings | None = None
) -> Checkpoint:
    """Find out what is at ``path`` and open it.

    Args:
        path: A file or folder of any kind that :mod:`mg_llava.conversion` names, or a run's work directory.
        lora: Arguments of ``peft.LoraConfig`` that differ from those of the settings.
        settings: Of its training; without them those that are stored in the checkpoint.

    Raises:
        FileNotFoundError: Nothing is there.
        CheckpointError: It is damaged or of another kind.
        ConversionError: Its adapters cannot be used.
    """
    path = newest_checkpoint(Path(path))
    if path.is_dir() and not any(path.glob(MODEL_STATES)):
        if (path / "adapter_config.json").is_file():
            return _open_adapter(path, settings)
        if read_manifest(path).get("layout") == "parts":
            check_files(path)
            llm = path / LLM_FOLDER
            tensors = map_weights(path / VISION_FILE)[0] | _prefixed(map_folder(llm))
            return name_tensors(path, "LLM folder with vision part", tensors, settings, llm_folder=llm)
        config = read_folder_config(path)
        if config.get("model_type") == "mg_llava":
            return _open_whole(path, settings)
        if config.get("model_type") == "blip-2":
            return name_tensors(path, "folder of Lyrics", map_folder(path), settings)
        if any("CausalLM" in name for name in config.get("architectures") or ()):
            return name_tensors(path, "LLM folder", _prefixed(map_folder(path)), settings, llm_folder=path)
    found = open_training_checkpoint(path)
    stored = found.extra.get("meta")
    meta = {
        key: value
        for key, value in (stored.items() if isinstance(stored, dict) else ())
        if isinstance(key, str) and isinstance(value, str | int | float)
    }
    settings = settings or stored_settings(str(meta.get("cfg", "")), str(path))
    kind = found.kind
    if kind in ("mmengine .pth", "state dict") and path.suffix == ".pth":
        kind = "mmengine .pth" if PROJECT_KEY in meta or PROJECT_KEY in str(meta.get("cfg", "")) else "reference .pth"
    known = (settings.lora if settings else {}) | dict(lora or {})
    return name_tensors(path, kind, found.tensors, settings, known, meta=meta)


def name_tensors(
    path: Path,
    kind: str,
    tensors: TensorMap,
    settings: ModelSettings | None,
    lora: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Checkpoint:
    """A checkpoint from tensors under any of the known names.

    Args:
        path: Where they come from, for messages.
        kind: What that is, in words.
        tensors: All of them.
        settings: Of its training, as far as they are known.
        lora: Arguments of ``peft.LoraConfig``.
        **rest: Further fields of :class:`Checkpoint`.

    Raises:
        CheckpointError: None of them belongs to a model of this kind.
        ConversionError: Adapters among them cannot be used.
    """
    model = settings.model if settings else None
    unknown: list[str] = []
    ignored: list[str] = []
    if is_published_lyrics(tensors):
        if model is None:
            raise ConversionError(
                f"{path} has weights of Lyrics; give its config, one of configs/lyrics, with --config"
            )
        tensors, ignored = name_published_lyrics(tensors)
    encoders, own = keys_of(parts_of(model), "encoder"), expected_parts(model)
    left_behind = () if model is None else kind_of(model).left_behind
    kept: TensorMap = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("module.")
        part = name.split(".", 1)[0]
        if name.endswith("rotary_emb.inv_freq") or part in left_behind or (part in encoders and part not in own):
            ignored.append(name)
        elif part not in own:
            unknown.append(name)
        else:
            kept[name] = tensor
    kept, adapter = split_adapters(kept, lora or {}, str(path))
    if not kept and adapter is None:
        raise CheckpointError(
            f"{path} has no key of {', '.join(own)}; its keys are {', '.join(list(tensors)[:4])}. It is a "
            "checkpoint of another model"
        )
    return Checkpoint(path, kind, kept, adapter, unknown=unknown, ignored=ignored, settings=settings, **rest)


def _prefixed(llm: TensorMap) -> TensorMap:
    return {f"llm.{key}": tensor for key, tensor in llm.items()}


def _open_adapter(folder: Path, settings: ModelSettings | None) -> Checkpoint:
    file = folder / "adapter_config.json"
    try:
        lora = load_object(file)
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if lora.get("peft_type", "LORA") != "LORA":
        raise ConversionError(f"{folder} holds {lora['peft_type']} adapters; only LoRA can be merged")
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return name_tensors(
                folder, "PEFT adapter folder", _prefixed(map_weights(folder / name)[0]), settings, lora
            )
    raise CheckpointError(f"{folder} has adapter_config.json but no adapter_model.safetensors or .bin; copy it again")


def _open_whole(folder: Path, settings: ModelSettings | None) -> Checkpoint:
    from mg_llava.hf.keys import own_key

    check_files(folder)
    try:
        tensors = {own_key(name): tensor for name, tensor in map_folder(folder).items()}
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    model = settings.model if settings else None
    frozen = set(keys_of(parts_of(model), "encoder")) - set(expected_parts(model))
    encoders = {key: tensor for key, tensor in tensors.items() if key.split(".", 1)[0] in frozen}
    rest = {key: tensor for key, tensor in tensors.items() if key not in encoders}
    return name_tensors(folder, "Hugging Face folder", rest, settings, llm_folder=folder, encoders=encoders)


def verify(checkpoint: Checkpoint) -> None:
    """Read every byte of a checkpoint, compare it with the checksums it carries, and look for nan and inf.

    Raises:
        ConversionError: Naming the damaged file, or the tensors that are not finite.
    """
    if checkpoint.path.is_dir():
        check_files(checkpoint.path, hashes=True)
    for file in checkpoint.files:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
            if damaged:
                raise ConversionError(f"{file} is damaged: {damaged} does not match its checksum; copy it again")
    if names := nonfinite_names(checkpoint.tensors):
        raise ConversionError(nonfinite_message(checkpoint.path, names))
