"""Opens a checkpoint of any kind and brings its tensors under the reference's names."""

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mg_llava.conversion.adapters import Adapter, split_adapters
from mg_llava.conversion.files import ConversionError, check_files, read_manifest
from mg_llava.models.weights.archive import CheckpointError
from mg_llava.models.weights.checkpoint import newest_checkpoint, open_training_checkpoint
from mg_llava.models.weights.deepspeed import MODEL_STATES
from mg_llava.models.weights.folders import map_folder, read_config
from mg_llava.models.weights.parts import ENCODERS, PARTS
from mg_llava.models.weights.stored import TensorMap, map_weights, nonfinite_message, nonfinite_names

VISION_FILE = "vision_part.safetensors"
LLM_FOLDER = "llm"
PROJECT_KEY = "mg_llava"
"""Entry of a file's meta data that says that this project wrote it."""


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint, whatever its kind; nothing of its tensors has been read."""

    path: Path
    kind: str
    """What was found, in words."""
    tensors: TensorMap
    """Fusion, projectors and LLM under the reference's names."""
    adapter: Adapter | None = None
    encoders: TensorMap = field(default_factory=dict)
    """Encoders under the model's names; only in a Hugging Face folder of the whole model."""
    unknown: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    """What mmengine stored of the run: plain values alone."""
    llm_folder: Path | None = None
    """Where the configuration and tokenizer of the LLM lie, if they come with the checkpoint."""

    @property
    def files(self) -> list[Path]:
        """All files that it consists of."""
        return [self.path] if self.path.is_file() else sorted(file for file in self.path.rglob("*") if file.is_file())


def open_checkpoint(path: str | Path, lora: dict[str, Any] | None = None) -> Checkpoint:
    """Find out what is at ``path`` and open it.

    Args:
        path: A file or folder of any kind that :mod:`mg_llava.conversion` names, or a run's work directory.
        lora: Arguments of ``peft.LoraConfig`` for adapters that do not bring theirs.

    Raises:
        FileNotFoundError: If nothing is there.
        CheckpointError: If it is damaged or of another kind.
        ConversionError: If its adapters cannot be used.
    """
    path = newest_checkpoint(Path(path))
    if path.is_dir() and not any(path.glob(MODEL_STATES)):
        if (path / "adapter_config.json").is_file():
            return _open_adapter(path)
        if read_manifest(path).get("layout") == "parts":
            return _open_parts(path)
        config = read_config(path)
        if config.get("model_type") == "mg_llava":
            return _open_whole(path)
        if any("CausalLM" in name for name in config.get("architectures") or ()):
            return sort_tensors(
                path, "LLM folder", {f"llm.{key}": t for key, t in map_folder(path).items()}, llm_folder=path
            )
    found = open_training_checkpoint(path)
    meta = _plain_meta(found.extra.get("meta"))
    kind = found.kind
    if kind in ("mmengine .pth", "state dict") and path.suffix == ".pth":
        kind = "mmengine .pth" if PROJECT_KEY in meta or PROJECT_KEY in str(meta.get("cfg", "")) else "reference .pth"
    return sort_tensors(path, kind, found.tensors, lora=lora, meta=meta)


def sort_tensors(
    path: Path, kind: str, tensors: TensorMap, lora: dict[str, Any] | None = None, **rest: Any
) -> Checkpoint:
    """A checkpoint from tensors under any of the known names.

    Args:
        path: Where they come from, for messages.
        kind: What that is, in words.
        tensors: All of them.
        lora: Arguments of ``peft.LoraConfig``.
        **rest: Further fields of :class:`Checkpoint`.

    Raises:
        CheckpointError: If none of them belongs to a model of this kind.
        ConversionError: If adapters among them cannot be used.
    """
    kept: TensorMap = {}
    unknown, ignored = [], []
    for key, tensor in tensors.items():
        name = key.removeprefix("module.")
        part = name.split(".", 1)[0]
        if name.endswith("rotary_emb.inv_freq") or part in ENCODERS:
            ignored.append(name)
        elif part not in PARTS:
            unknown.append(name)
        else:
            kept[name] = tensor
    kept, adapter = split_adapters(kept, lora or {}, str(path))
    if not kept and adapter is None:
        raise CheckpointError(
            f"{path} has no key of {', '.join(PARTS)}; its keys are {', '.join(list(tensors)[:4])}. It is a "
            "checkpoint of another model"
        )
    return Checkpoint(path, kind, kept, adapter, unknown=unknown, ignored=ignored, **rest)


def _plain_meta(meta: Any) -> dict[str, Any]:
    values = meta.items() if isinstance(meta, dict) else ()
    return {key: value for key, value in values if isinstance(key, str) and isinstance(value, str | int | float)}


def _open_adapter(folder: Path) -> Checkpoint:
    file = folder / "adapter_config.json"
    try:
        settings = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if settings.get("peft_type", "LORA") != "LORA":
        raise ConversionError(f"{folder} holds {settings['peft_type']} adapters; only LoRA can be merged")
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            tensors = {f"llm.{key}": tensor for key, tensor in map_weights(folder / name)[0].items()}
            return sort_tensors(folder, "PEFT adapter folder", tensors, lora=settings)
    raise CheckpointError(f"{folder} has adapter_config.json but no adapter_model.safetensors or .bin; copy it again")


def _open_parts(folder: Path) -> Checkpoint:
    check_files(folder)
    tensors, _ = map_weights(folder / VISION_FILE)
    llm = folder / LLM_FOLDER
    tensors |= {f"llm.{key}": tensor for key, tensor in map_folder(llm).items()}
    return sort_tensors(folder, "LLM folder with vision part", tensors, llm_folder=llm)


def _open_whole(folder: Path) -> Checkpoint:
    from mg_llava.conversion.hugging_face import from_hugging_face

    check_files(folder)
    tensors = from_hugging_face(folder, map_folder(folder))
    encoders = {key: tensor for key, tensor in tensors.items() if key.split(".", 1)[0] in ENCODERS}
    rest = {key: tensor for key, tensor in tensors.items() if key not in encoders}
    opened = sort_tensors(folder, "Hugging Face folder", rest)
    return Checkpoint(folder, opened.kind, opened.tensors, opened.adapter, encoders, opened.unknown, llm_folder=folder)


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
