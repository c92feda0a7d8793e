"""Brings a checkpoint of any kind into the state in which it can be written: complete, merged, checked key by key."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mg_llava.conversion.adapters import merge_adapter
from mg_llava.conversion.expected import expect, expected_parts
from mg_llava.conversion.files import ConversionError
from mg_llava.conversion.inputs import open_checkpoint, verify
from mg_llava.conversion.published import vote_llm
from mg_llava.conversion.settings import config_settings
from mg_llava.conversion.types import Checkpoint, ConversionOptions, SourceCheckpoint
from mg_llava.models.weights.folders import find_folder, map_folder
from mg_llava.models.weights.report import Expected, KeyReport, check_keys, summarize
from mg_llava.models.weights.stored import StoredTensor, TensorMap


def inspect(source: str | Path, options: ConversionOptions | None = None) -> tuple[Checkpoint, KeyReport]:
    """The checkpoint at ``source`` and the report on its keys; arguments as for :func:`prepare`."""
    options = options or ConversionOptions()
    checkpoint = _open([source], options)[0]
    adapters = checkpoint.adapter.named() if checkpoint.adapter is not None else {}
    folder = _llm_folder(checkpoint, options, needed=False)
    report, _ = _check(checkpoint, checkpoint.tensors | adapters, folder, checkpoint.adapter is not None)
    report.parts.update(summarize(checkpoint.encoders))
    return checkpoint, report


def _open(paths: Sequence[str | Path], options: ConversionOptions) -> list[Checkpoint]:
    """Open checkpoints; what the first one says of its training counts for all."""
    settings = None if options.config is None else config_settings(options.config)
    opened = [open_checkpoint(paths[0], options.lora, settings)]
    opened += [open_checkpoint(path, settings=opened[0].settings) for path in paths[1:]]
    for checkpoint in opened if options.verify else ():
        verify(checkpoint)
    return opened


def prepare(source: str | Path, options: ConversionOptions, whole: bool) -> SourceCheckpoint:
    """Open, complete and check a checkpoint.

    Args:
        source: Checkpoint of any kind.
        options: How.
        whole: Whether the LLM must be in it, with adapters merged.

    Raises:
        FileNotFoundError: Nothing is at a path.
        ConversionError: The source is incomplete, or its parts do not fit together.
        CheckpointError: A source is damaged or of another kind.
    """
    opened = _open([source, *options.add], options)
    files = [file for checkpoint in opened for file in checkpoint.files]
    return replace(complete(_join(opened), options, whole), files=files)


def _join(opened: Sequence[Checkpoint]) -> Checkpoint:
    """Join checkpoints; the first one that has a part gives all of it."""
    first = opened[0]
    for other in opened[1:]:
        parts = {key.split(".", 1)[0] for key in first.tensors}
        extra = {key: tensor for key, tensor in other.tensors.items() if key.split(".", 1)[0] not in parts}
        if not extra and (other.adapter is None or first.adapter is not None):
            raise ConversionError(f"{other} has no part that {first.path} lacks")
        first = replace(
            first,
            tensors={**first.tensors, **extra},
            adapter=first.adapter or other.adapter,
            llm_folder=first.llm_folder or other.llm_folder,
            encoders=first.encoders or other.encoders,
        )
    return first


def complete(checkpoint: Checkpoint, options: ConversionOptions, whole: bool) -> SourceCheckpoint:
    """Complete and check a checkpoint that is open; arguments and errors as for :func:`prepare`."""
    adapter, tensors, dtype = checkpoint.adapter, checkpoint.tensors, options.torch_dtype
    merging = adapter is not None and (whole or options.merge)
    folder = _llm_folder(checkpoint, options, needed=whole or merging)
    if whole and options.llm is None:
        _refuse_base_llm(checkpoint)
    if folder is not None and (merging or (whole and not checkpoint.has_llm)):
        # what was trained beside the adapters wins
        tensors = {f"llm.{key}": tensor for key, tensor in map_folder(folder).items()} | tensors
    tensors = _in_order(_cast(tensors, dtype), expected_parts(checkpoint.model))
    if adapter is not None and merging:
        tensors = merge_adapter(tensors, adapter)
    elif adapter is not None:
        tensors = adapter.name_saved(tensors) | _cast(adapter.named(), dtype)
    report, tied = _check(checkpoint, tensors, folder, adapter is not None and not merging)
    if report.problems:
        hint = ". Without a config the reference's parts are expected; give --config for a model with others"
        problems = "; ".join(report.problems) + (hint if checkpoint.settings is None else "")
        raise ConversionError(f"{checkpoint} cannot be converted: {problems}")
    return SourceCheckpoint(checkpoint, _tie(checkpoint, tensors, tied, folder), folder, report, tied)


def _llm_folder(checkpoint: Checkpoint, options: ConversionOptions, needed: bool) -> Path | None:
    """Folder with the LLM's configuration, and its weights where the checkpoint has none."""
    settings, adapter = checkpoint.settings, checkpoint.adapter
    path = options.llm or checkpoint.llm_folder or (settings.llm.get("path") if settings else None)
    if path is None and adapter is not None:
        path = adapter.settings.get("base_model_name_or_path") or None
    if needed and path is None:
        raise ConversionError(
            f"{checkpoint} does not say which LLM it belongs to; give the training config with --config, or the LLM's "
            "folder with --llm"
        )
    if needed and path is not None:
        return find_folder(path, weights=adapter is not None or not checkpoint.has_llm)
    # without it the keys are checked among themselves
    return Path(path) if path is not None and Path(path).is_dir() else None


def _refuse_base_llm(checkpoint: Checkpoint) -> None:
    """Stop where the LLM of a folder would be written in place of the one that was tuned."""
    tuning = checkpoint.settings.llm.get("tuning", "frozen") if checkpoint.settings else "frozen"
    if tuning != "frozen" and checkpoint.adapter is None and not checkpoint.has_llm:
        raise ConversionError(
            f"{checkpoint} has no LLM, but the config says tuning={tuning!r}: the LLM of the config's folder is not "
            "the one that was tuned. Give the checkpoint that holds it with --add or, if the untouched LLM is meant, "
            "its folder with --llm"
        )


def _cast(tensors: TensorMap, dtype: torch.dtype | None) -> TensorMap:
    """Convert, so that tied weights stay tied."""
    done: dict[int, StoredTensor] = {}
    return {name: done.setdefault(id(tensor), tensor.to(dtype)) for name, tensor in tensors.items()}


def _in_order(tensors: TensorMap, parts: Sequence[str]) -> TensorMap:
    order = {key: number for number, key in enumerate(parts)}
    return dict(sorted(tensors.items(), key=lambda item: order.get(item[0].split(".", 1)[0], len(order))))


def _check(
    checkpoint: Checkpoint, tensors: TensorMap, folder: Path | None, adapters_apart: bool
) -> tuple[KeyReport, Mapping[str, str]]:
    """Check all keys: those of adapters among themselves, all others against what is expected."""
    expected, tied = expect(checkpoint.settings, tensors, folder, adapters_apart)
    report = check_keys(tensors, expected, checkpoint.unknown, checkpoint.ignored)
    adapter = checkpoint.adapter
    if adapter is not None and not adapters_apart and not adapter.chosen_layers:
        pairs = adapter.named()
        among = check_keys(pairs, Expected(vote_llm(pairs, None), "after the others", open_parts=("llm",)))
        report.missing += among.missing
        report.misshapen += among.misshapen
    return report, tied


def _tie(checkpoint: Checkpoint, tensors: TensorMap, tied: Mapping[str, str], folder: Path | None) -> TensorMap:
    """Leave out further names of tied weights that the LLM's folder has; of trained ones the second must be equal."""
    adapted = {f"llm.{module}.weight" for module in (checkpoint.adapter.pairs if checkpoint.adapter else ())}
    tensors = dict(tensors)
    for alias, name in tied.items():
        first, second = f"llm.{name}", f"llm.{alias}"
        if second not in checkpoint.tensors and second not in adapted:
            tensors.pop(second, None)
            apart = first in adapted
        else:
            apart = first in tensors and not _same(tensors[first], tensors[second])
        if apart:
            raise ConversionError(
                f"{checkpoint}: {alias} and {name} were trained apart, but the config.json of {folder} says that they "
                "are one matrix (tie_word_embeddings). Give a copy of that folder in which it says false with --llm"
            )
    return tensors


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    return one is other or torch.equal(one.read(), other.read())
