"""Brings a checkpoint of any kind into the state in which it can be written: complete, merged, checked key by key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mg_llava.conversion.adapters import merge_adapter
from mg_llava.conversion.encoders import encoder_sizes
from mg_llava.conversion.files import ConversionError
from mg_llava.conversion.folders import expected_weights
from mg_llava.conversion.inputs import Checkpoint, open_checkpoint, verify
from mg_llava.conversion.layout import Expected, KeyReport, check_layout, summarize
from mg_llava.conversion.settings import Settings, read_settings
from mg_llava.models.weights.folders import find_folder, map_folder, read_config
from mg_llava.models.weights.loading import resolve_dtype
from mg_llava.models.weights.parts import PARTS
from mg_llava.models.weights.stored import StoredTensor, TensorMap


@dataclass(frozen=True)
class Options:
    """How to convert.

    Args:
        config: Training config; without it the one stored in the checkpoint is taken.
        add: Further checkpoints with parts that the first lacks, e.g. a PEFT folder.
        llm: Folder of the LLM; by default the config's.
        lora: Arguments of ``peft.LoraConfig`` that differ from the config's, e.g. ``lora_alpha``.
        dtype: Dtype of all weights; None keeps each tensor's own.
        max_shard_size: Largest file of weights in folders.
        merge: Merge adapters also into ``.pth`` files; folders have them merged in any case.
        standalone: Put the source files the model needs into the Hugging Face folder.
        overwrite: Replace what an earlier conversion left at the target.
        verify: Compare all checksums of the source first.
    """

    config: str | Path | None = None
    add: Sequence[str | Path] = ()
    llm: str | Path | None = None
    lora: Mapping[str, Any] | None = None
    dtype: str | None = None
    max_shard_size: str | int = "4GB"
    merge: bool = False
    standalone: bool = False
    overwrite: bool = False
    verify: bool = False

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype, None to keep each tensor's own."""
        return None if self.dtype in (None, "keep") else resolve_dtype(str(self.dtype))


@dataclass(frozen=True)
class Source:
    """A checkpoint, completed and checked, as it is going to be written."""

    checkpoint: Checkpoint
    tensors: TensorMap
    """Parts under the reference's names."""
    settings: Settings | None
    llm_folder: Path | None
    report: KeyReport
    tied: Mapping[str, str]
    """Further names of tied weights of the LLM, with the names that they stand for; without ``llm.``."""
    files: Sequence[Path] = ()
    """What it was read from."""


def inspect(source: str | Path, options: Options | None = None) -> tuple[Checkpoint, KeyReport]:
    """What is at ``source``: its kind and the report on its keys; arguments as for :func:`prepare`."""
    options = options or Options()
    checkpoint, settings = _open(source, options)
    if options.verify:
        verify(checkpoint)
    tensors = dict(checkpoint.tensors)
    if checkpoint.adapter is not None:
        tensors |= _adapter_tensors(checkpoint)
    folder = _llm_folder(checkpoint, settings, options, needed=False)
    report, _ = _check(checkpoint, tensors, settings, folder, checkpoint.adapter is not None)
    report.parts.update(summarize(checkpoint.encoders))
    return checkpoint, report


def _open(source: str | Path, options: Options) -> tuple[Checkpoint, Settings | None]:
    if options.config is not None:
        settings = read_settings(options.config, None, str(source))
        assert settings is not None
        return open_checkpoint(source, settings.lora | dict(options.lora or {})), settings
    checkpoint = open_checkpoint(source, dict(options.lora or {}))
    settings = read_settings(None, str(checkpoint.meta.get("cfg", "")), str(source))
    if settings is not None and checkpoint.adapter is not None:
        known = settings.lora | dict(options.lora or {})
        checkpoint = replace(checkpoint, adapter=replace(checkpoint.adapter, settings=known))
    return checkpoint, settings


def prepare(source: str | Path, options: Options, whole: bool) -> Source:
    """Open, complete and check a checkpoint.

    Args:
        source: Checkpoint of any kind.
        options: How.
        whole: Whether the LLM must be in it, with adapters merged.

    Raises:
        FileNotFoundError: If nothing is at a path.
        ConversionError: If the source is incomplete, or its parts do not fit together.
        CheckpointError: If a source is damaged or of another kind.
    """
    checkpoint, settings = _open(source, options)
    opened = [checkpoint, *(open_checkpoint(path, settings.lora if settings else {}) for path in options.add)]
    if options.verify:
        for item in opened:
            verify(item)
    files = [file for item in opened for file in item.files]
    return replace(complete(_add(opened), settings, options, whole), files=files)


def complete(checkpoint: Checkpoint, settings: Settings | None, options: Options, whole: bool) -> Source:
    """Complete and check a checkpoint that is open; arguments and errors as for :func:`prepare`."""
    merging = checkpoint.adapter is not None and (whole or options.merge)
    folder = _llm_folder(checkpoint, settings, options, needed=whole or merging)
    tensors = dict(checkpoint.tensors)
    dtype = options.torch_dtype
    if folder is not None and (merging or (whole and not any(key.startswith("llm.") for key in tensors))):
        # what was trained beside the adapters wins
        tensors = {f"llm.{key}": tensor for key, tensor in map_folder(folder).items()} | tensors
    tensors = _in_order(_cast(tensors, dtype))
    if checkpoint.adapter is not None:
        if merging:
            tensors = merge_adapter(tensors, checkpoint.adapter)
        else:
            tensors |= _cast(_adapter_tensors(checkpoint), dtype)
    report, tied = _check(checkpoint, tensors, settings, folder, checkpoint.adapter is not None and not merging)
    if report.problems:
        problems = "; ".join(report.problems) + _hint(settings)
        raise ConversionError(f"{checkpoint.path} ({checkpoint.kind}) cannot be converted: {problems}")
    return Source(checkpoint, tensors, settings, folder, report, tied)


def _hint(settings: Settings | None) -> str:
    if settings is not None:
        return ""
    return ". Without a config the reference's parts are expected; give --config for a model with others"


def _add(opened: Sequence[Checkpoint]) -> Checkpoint:
    """Join checkpoints; the first one that has a part gives all of it."""
    first = opened[0]
    for other in opened[1:]:
        parts = {key.split(".", 1)[0] for key in first.tensors}
        extra = {key: tensor for key, tensor in other.tensors.items() if key.split(".", 1)[0] not in parts}
        if not extra and (other.adapter is None or first.adapter is not None):
            raise ConversionError(f"{other.path} ({other.kind}) has no part that {first.path} lacks")
        first = replace(
            first,
            tensors={**first.tensors, **extra},
            adapter=first.adapter or other.adapter,
            llm_folder=first.llm_folder or other.llm_folder,
            encoders=first.encoders or other.encoders,
        )
    return first


def _llm_folder(checkpoint: Checkpoint, settings: Settings | None, options: Options, needed: bool) -> Path | None:
    """Folder with the LLM's configuration, and its weights where the checkpoint has none."""
    path = options.llm or checkpoint.llm_folder or (settings.llm.get("path") if settings else None)
    if path is None:
        base = (checkpoint.adapter.settings if checkpoint.adapter else {}).get("base_model_name_or_path")
        path = base or None
    if path is None and not needed:
        return None
    if path is None:
        raise ConversionError(
            f"{checkpoint.path} ({checkpoint.kind}) does not say which LLM it belongs to; give the training config "
            "with --config, or the LLM's folder with --llm"
        )
    if needed:
        has_llm = checkpoint.adapter is None and any(key.startswith("llm.") for key in checkpoint.tensors)
        return find_folder(path, weights=not has_llm)
    return Path(path) if Path(path).is_dir() else None  # without it the keys are checked among themselves


def _adapter_tensors(checkpoint: Checkpoint) -> TensorMap:
    """The adapters under the names they have in a checkpoint of this project."""
    adapter = checkpoint.adapter
    assert adapter is not None
    tensors: TensorMap = {}
    for module, pair in adapter.pairs.items():
        for letter, tensor in zip("AB", pair, strict=True):
            is_embedding = module in adapter.embeddings
            leaf = f"lora_embedding_{letter}.default" if is_embedding else f"lora_{letter}.default.weight"
            tensors[f"llm.base_model.model.{module}.{leaf}"] = tensor
    return tensors


def _cast(tensors: TensorMap, dtype: torch.dtype | None) -> TensorMap:
    """Convert, so that tied weights stay tied."""
    done: dict[int, StoredTensor] = {}
    return {name: done.setdefault(id(tensor), tensor.to(dtype)) for name, tensor in tensors.items()}


def _in_order(tensors: TensorMap) -> TensorMap:
    order = {part: number for number, part in enumerate(PARTS)}
    return dict(sorted(tensors.items(), key=lambda item: order.get(item[0].split(".", 1)[0], len(order))))


def _check(
    checkpoint: Checkpoint,
    tensors: TensorMap,
    settings: Settings | None,
    folder: Path | None,
    adapters_apart: bool,
) -> tuple[KeyReport, Mapping[str, str]]:
    """Check all keys: those of adapters among themselves, those of an LLM against its configuration if it is there."""
    expected = replace(settings.expected(), sizes=encoder_sizes(settings.model)) if settings else Expected()
    has_llm = any(key.startswith("llm.") for key in tensors)
    if has_llm and not adapters_apart and folder is not None and read_config(folder):
        trust = bool(settings and settings.llm.get("trust_remote_code"))
        shapes, tied = expected_weights(folder, trust)
        expected = replace(expected, llm=shapes, tied=tied)
    report = check_layout(tensors, expected, checkpoint.unknown, checkpoint.ignored)
    if checkpoint.adapter is not None and not adapters_apart and not checkpoint.adapter.chosen_layers:
        adapters = check_layout(_adapter_tensors(checkpoint), Expected(frozenset()))
        report.missing += adapters.missing
        report.misshapen += adapters.misshapen
    return report, expected.tied
