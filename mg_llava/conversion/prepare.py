"""Brings a checkpoint of any kind into the state in which it can be written: complete, merged, checked key by key."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mg_llava.conversion.adapters import Adapter, merge_adapter
from mg_llava.conversion.expected import llm_shapes, own_shapes, published_depths, saved_parts, width_of
from mg_llava.conversion.files import ConversionError
from mg_llava.conversion.inputs import open_checkpoint, verify
from mg_llava.conversion.published import vote_llm, vote_shapes
from mg_llava.conversion.report import Expected, KeyReport, check_keys, summarize
from mg_llava.conversion.settings import config_settings
from mg_llava.conversion.types import Checkpoint, Options, Source
from mg_llava.models.adapters.lora import WRAPPED
from mg_llava.models.weights.folders import find_folder, map_folder, read_config
from mg_llava.models.weights.stored import StoredTensor, TensorMap


def inspect(source: str | Path, options: Options | None = None) -> tuple[Checkpoint, KeyReport]:
    """What is at ``source``: its kind and the report on its keys; arguments as for :func:`prepare`."""
    options = options or Options()
    checkpoint = _open(source, options)
    tensors = dict(checkpoint.tensors)
    if checkpoint.adapter is not None:
        tensors |= _adapter_tensors(checkpoint)
    folder = _llm_folder(checkpoint, options, needed=False)
    report, _ = _check(checkpoint, tensors, folder, checkpoint.adapter is not None)
    report.parts.update(summarize(checkpoint.encoders))
    return checkpoint, report


def _open(source: str | Path, options: Options) -> Checkpoint:
    settings = None if options.config is None else config_settings(options.config)
    checkpoint = open_checkpoint(source, options.lora, settings)
    if options.verify:
        verify(checkpoint)
    return checkpoint


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
    checkpoint = _open(source, options)
    opened = [checkpoint, *(open_checkpoint(path, settings=checkpoint.settings) for path in options.add)]
    if options.verify:
        for item in opened[1:]:
            verify(item)
    files = [file for item in opened for file in item.files]
    return replace(complete(_add(opened), options, whole), files=files)


def complete(checkpoint: Checkpoint, options: Options, whole: bool) -> Source:
    """Complete and check a checkpoint that is open; arguments and errors as for :func:`prepare`."""
    merging = checkpoint.adapter is not None and (whole or options.merge)
    folder = _llm_folder(checkpoint, options, needed=whole or merging)
    tensors = dict(checkpoint.tensors)
    dtype = options.torch_dtype
    if whole and options.llm is None:
        _refuse_base_llm(checkpoint)
    if folder is not None and (merging or (whole and not any(key.startswith("llm.") for key in tensors))):
        # what was trained beside the adapters wins
        tensors = {f"llm.{key}": tensor for key, tensor in map_folder(folder).items()} | tensors
    tensors = _in_order(_cast(tensors, dtype), checkpoint)
    if checkpoint.adapter is not None:
        if merging:
            tensors = merge_adapter(tensors, checkpoint.adapter)
        else:
            tensors = _as_trained(tensors, checkpoint.adapter) | _cast(_adapter_tensors(checkpoint), dtype)
    report, tied = _check(checkpoint, tensors, folder, checkpoint.adapter is not None and not merging)
    if report.problems:
        problems = "; ".join(report.problems) + _hint(checkpoint)
        raise ConversionError(f"{checkpoint.path} ({checkpoint.kind}) cannot be converted: {problems}")
    return Source(checkpoint, _tie(checkpoint, tensors, tied, folder), folder, report, tied)


def _refuse_base_llm(checkpoint: Checkpoint) -> None:
    """Stop where the LLM of a folder would be written in place of the one that was tuned."""
    tuning = checkpoint.settings.llm.get("tuning", "frozen") if checkpoint.settings else "frozen"
    has_llm = checkpoint.adapter is not None or any(key.startswith("llm.") for key in checkpoint.tensors)
    if tuning != "frozen" and not has_llm:
        raise ConversionError(
            f"{checkpoint.path} ({checkpoint.kind}) has no LLM, but the config says tuning={tuning!r}: the LLM of the "
            "config's folder is not the one that was tuned. Give the checkpoint that holds it with --add or, if the "
            "untouched LLM is meant, its folder with --llm"
        )


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
                f"{checkpoint.path} ({checkpoint.kind}): {alias} and {name} were trained apart, but the config.json "
                f"of {folder} says that they are one matrix (tie_word_embeddings). Give a copy of that folder in "
                "which it says false with --llm"
            )
    return tensors


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    return one is other or torch.equal(one.read(), other.read())


def _hint(checkpoint: Checkpoint) -> str:
    if checkpoint.settings is not None:
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


def _llm_folder(checkpoint: Checkpoint, options: Options, needed: bool) -> Path | None:
    """Folder with the LLM's configuration, and its weights where the checkpoint has none."""
    settings = checkpoint.settings
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
            tensors[f"llm.{WRAPPED}{module}.{leaf}"] = tensor
    return tensors


def _as_trained(tensors: TensorMap, adapter: Adapter) -> TensorMap:
    """Weights that were trained whole beside adapters under the names that a model with adapters has for them."""
    names = {}
    for name in adapter.saved:
        module, leaf = name.rsplit(".", 1)
        names[f"llm.{name}"] = f"llm.{WRAPPED}{module}.modules_to_save.default.{leaf}"
    return {names.get(key, key): tensor for key, tensor in tensors.items()}


def _cast(tensors: TensorMap, dtype: torch.dtype | None) -> TensorMap:
    """Convert, so that tied weights stay tied."""
    done: dict[int, StoredTensor] = {}
    return {name: done.setdefault(id(tensor), tensor.to(dtype)) for name, tensor in tensors.items()}


def _in_order(tensors: TensorMap, checkpoint: Checkpoint) -> TensorMap:
    saved = saved_parts(checkpoint.settings.model if checkpoint.settings else None)
    order = {key: number for number, key in enumerate(saved)}
    return dict(sorted(tensors.items(), key=lambda item: order.get(item[0].split(".", 1)[0], len(order))))


def _check(
    checkpoint: Checkpoint, tensors: TensorMap, folder: Path | None, adapters_apart: bool
) -> tuple[KeyReport, Mapping[str, str]]:
    """Check all keys: those of adapters among themselves, all others against the model that the config describes."""
    expected = _expect_connectors(checkpoint, tensors, folder)
    if any(key.startswith("llm.") for key in tensors):
        if not adapters_apart and folder is not None and read_config(folder):
            settings = checkpoint.settings
            shapes, tied = llm_shapes(folder, bool(settings and settings.llm.get("trust_remote_code")))
            expected = replace(expected, llm=shapes, tied=tied)
        else:  # what else the LLM has cannot be judged
            voted = vote_llm(tensors, width_of(tensors, None))
            expected = replace(expected, llm=voted, open_parts=(*expected.open_parts, "llm"))
    report = check_keys(tensors, expected, checkpoint.unknown, checkpoint.ignored)
    adapter = checkpoint.adapter
    if adapter is not None and not adapters_apart and not adapter.chosen_layers:
        pairs = _adapter_tensors(checkpoint)
        among = check_keys(pairs, Expected({}, "after the others", vote_llm(pairs, None), open_parts=("llm",)))
        report.missing += among.missing
        report.misshapen += among.misshapen
    return report, expected.tied


def _expect_connectors(checkpoint: Checkpoint, tensors: TensorMap, folder: Path | None) -> Expected:
    """Those of the config's model; voted on where there is no config, or nothing says how large its encoders are."""
    settings = checkpoint.settings
    if settings is None:
        return Expected(vote_shapes(tensors), "after the others")
    try:
        return Expected(own_shapes(settings.model, width_of(tensors, folder)))
    except FileNotFoundError:
        depths, others = published_depths(settings.model)
        return Expected(vote_shapes(tensors, depths), "after the others", open_parts=others)
