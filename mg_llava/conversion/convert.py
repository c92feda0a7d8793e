"""From any checkpoint to any layout, tensor by tensor.

Whatever is given is first brought under the reference's names, completed (LLM and encoders from their own folders,
adapters merged), checked key by key, and only then written; nothing is left at the target when something fails.
"""

import copy
from collections.abc import Mapping
from glob import escape
from pathlib import Path
from typing import Any, Literal

import torch

from mg_llava import __version__
from mg_llava.compat import stored_names
from mg_llava.conversion.expected import parts_of
from mg_llava.conversion.files import ConversionError, check_room
from mg_llava.conversion.folder_writing import copy_small_files, finish, main_dtype, stage, without_ties, write_shards
from mg_llava.conversion.inputs import LLM_FOLDER, PROJECT_KEY, VISION_FILE
from mg_llava.conversion.prepare import prepare
from mg_llava.conversion.types import ConversionOptions, SourceCheckpoint
from mg_llava.conversion.writers import TensorProgress, write_pth, write_safetensors
from mg_llava.data.config import trained_length
from mg_llava.models.parts import kind_of
from mg_llava.models.positions import take_positions
from mg_llava.models.weights.folders import read_folder_config
from mg_llava.models.weights.report import Expected, KeyReport, check_keys, summarize
from mg_llava.models.weights.stored import TensorMap
from mg_llava.work.atomic import naming_full_disks, write_json

Target = Literal["hf", "parts", "reference", "mmengine"]
TARGETS: dict[str, str] = {
    "hf": "Hugging Face folder of the whole model: safetensors, config, processor",
    "parts": f"folder with the merged LLM in {LLM_FOLDER}/ and {VISION_FILE}",
    "reference": "one .pth file in the layout of the published weights",
    "mmengine": "one .pth file as `xtuner train` writes it, without optimizer",
}
_OF_THE_WHOLE = ("config.json", "chat_template.json", "processor_config.json", "preprocessor_config.json", ".py")
"""Files of a folder of the whole model that are not its LLM's."""


def convert(
    source: str | Path,
    target: str | Path,
    to: Target,
    options: ConversionOptions | None = None,
    progress: TensorProgress | None = None,
) -> KeyReport:
    """Convert a checkpoint.

    Args:
        source: Checkpoint of any kind.
        target: File or folder to write.
        to: One of :data:`TARGETS`.
        options: How.
        progress: Called after each tensor with its name and size.

    Returns:
        The report on the keys, which has no problems.

    Raises:
        FileNotFoundError: Nothing is at a path.
        ConversionError: The source is incomplete, its parts do not fit together, or the target cannot be written;
            what was at the target is unchanged.
        CheckpointError: A source is damaged or of another kind.
        NoRoomError: The disk is full; what was at the target is unchanged.
    """
    options = options or ConversionOptions()
    if to not in TARGETS:
        raise ConversionError(f"unknown target {to!r}; known: {', '.join(TARGETS)}")
    name = Path(target).resolve().name
    if to == "hf" and options.standalone and "." in name:
        raise ConversionError(
            f"{target}: transformers cannot import code from a folder with a dot in its name; write to "
            f"{name.replace('.', '_')!r}, or leave out --standalone"
        )
    prepared = prepare(source, options, whole=to in ("hf", "parts"))
    with naming_full_disks(Path(target)):  # libraries write some of the files
        write(prepared, Path(target), to, options, progress)
    return prepared.report


def write(
    prepared: SourceCheckpoint,
    target: Path,
    to: Target,
    options: ConversionOptions,
    progress: TensorProgress | None = None,
) -> None:
    """Write what is complete and checked; arguments and errors as for :func:`convert`."""
    if to == "parts":
        _write_parts(prepared, target, options, progress)
    elif to == "hf":
        _write_hugging_face(prepared, target, options, progress)
    else:
        _write_pth(prepared, target, to, options, progress)


def _write_pth(
    source: SourceCheckpoint, target: Path, to: str, options: ConversionOptions, progress: TensorProgress | None
) -> None:
    if target.is_dir():
        raise ConversionError(f"{target} is a folder; give the name of a .pth file")
    if target.exists() and not options.overwrite:
        raise ConversionError(f"{target} exists; give another name, or --overwrite")
    tensors = dict(source.tensors)
    for alias, name in source.tied.items():  # a Hugging Face folder stores tied weights once
        if f"llm.{name}" in tensors:
            tensors.setdefault(f"llm.{alias}", tensors[f"llm.{name}"])
    check_room(target.parent, sum({id(tensor): tensor.nbytes for tensor in tensors.values()}.values()))
    for unfinished in target.parent.glob(f".{escape(target.name)}.*.part"):  # of a killed run
        unfinished.unlink()
    extra: dict[str, Any] = {}
    if to == "mmengine":
        meta = {"epoch": 0, "iter": 0} | source.checkpoint.meta | {PROJECT_KEY: __version__}
        extra = {"meta": meta | {"converted_from": source.checkpoint.kind}}
    write_pth(target, tensors, extra, progress)


def _write_parts(
    source: SourceCheckpoint, target: Path, options: ConversionOptions, progress: TensorProgress | None
) -> None:
    from mg_llava.hf.portable import portable_config

    assert source.llm_folder is not None
    vision, llm = source.split()
    llm = without_ties(llm, source.tied)
    staged = stage(source, target, "parts", options, {**vision, **llm})
    metadata = {"layout": "mg_llava vision part"}
    staged.write(VISION_FILE, lambda path: write_safetensors(path, vision, metadata, progress))
    write_shards(staged, llm, options, progress, folder=f"{LLM_FOLDER}/")
    config, folder = read_folder_config(source.llm_folder), staged.path / LLM_FOLDER
    is_whole = config.get("model_type") == "mg_llava"
    copy_small_files(source.llm_folder, folder, (".md", *(_OF_THE_WHOLE if is_whole else ())))
    config = portable_config(config["text_config"] if is_whole else config) | {"torch_dtype": main_dtype(llm)}
    write_json(folder / "config.json", config | _trained_positions(source, config), indent=2)
    finish(staged, source, "parts")


def _trained_positions(source: SourceCheckpoint, config: Mapping[str, Any]) -> dict[str, int]:
    """What an LLM's configuration lacks of the positions that it was trained with; empty where it lacks none."""
    from transformers import CONFIG_MAPPING, AutoConfig

    settings, kind = source.checkpoint.settings, config.get("model_type")
    if settings is None or kind not in CONFIG_MAPPING:
        return {}
    llm = AutoConfig.for_model(**config)
    is_changed = take_positions(llm, trained_length(settings.values))
    return {"max_position_embeddings": llm.max_position_embeddings} if is_changed else {}


def _write_hugging_face(
    source: SourceCheckpoint, target: Path, options: ConversionOptions, progress: TensorProgress | None
) -> None:
    from mg_llava.hf.export import folder_files
    from mg_llava.hf.keys import hf_key
    from mg_llava.hf.portable import portable_config

    checkpoint, config = source.checkpoint, None if source.checkpoint.settings is None else _config(source)
    if config is None and (not checkpoint.encoders or options.standalone):
        raise ConversionError(
            f"{checkpoint.path} ({checkpoint.kind}) does not say what the model is made of; give the training config "
            "with --config"
        )
    encoders = checkpoint.encoders or _encoders(config["model"] if config else {})
    vision, llm = source.split()
    own = {
        **{f"llm.{name}": tensor for name, tensor in without_ties(llm, source.tied).items()},
        **{name: tensor.to(options.torch_dtype) for name, tensor in encoders.items()},
        **vision,  # after the encoders' own: those that were trained
    }
    source.report.parts.update(summarize({name: own[name] for name in encoders}))
    staged = stage(source, target, "hf", options, own)
    dtype, weights = main_dtype(llm), {hf_key(name): tensor for name, tensor in own.items()}
    try:
        if config is None:
            copy_small_files(checkpoint.path, staged.path)
            values = portable_config(read_folder_config(checkpoint.path)) | {"torch_dtype": dtype}
            write_json(staged.path / "config.json", values, indent=2)
        else:
            folder_files(config, staged.path, dtype, options.standalone)
        weights = _checked(staged.path, weights, [hf_key(f"llm.{name}") for name in source.tied])
    except (ValueError, OSError):
        staged.abandon()
        raise
    write_shards(staged, weights, options, progress)
    finish(staged, source, "hf")


def _config(source: SourceCheckpoint) -> dict[str, Any]:
    """The training config, with the LLM's folder that was found."""
    assert source.checkpoint.settings is not None
    config = copy.deepcopy(dict(source.checkpoint.settings.values))
    folder = source.llm_folder
    if folder is not None and folder != source.checkpoint.path:
        before, config["model"]["llm"]["path"] = config["model"]["llm"].get("path"), str(folder)
        tokenizer = config.get("tokenizer") or {}
        if isinstance(tokenizer, Mapping) and tokenizer.get("pretrained_model_name_or_path") == before:
            config["tokenizer"] = {**tokenizer, "pretrained_model_name_or_path": str(folder)}
    return config


def _encoders(model: Mapping[str, Any]) -> TensorMap:
    """Weights of the encoders, unread where their files allow it."""
    return {
        f"{part.key}.{name}": tensor
        for part in parts_of(model)
        if part.role == "encoder" and model.get(part.config) is not None
        for name, tensor in kind_of(model[part.config]).map_weights(model[part.config]).items()
    }


def _checked(folder: Path, weights: TensorMap, aliases: list[str]) -> TensorMap:
    """The weights under the names that folders have, if the folder's configuration describes a model of their shapes.

    Raises:
        ConversionError: Naming the first weights that are missing, left over or of another shape.
    """
    import mg_llava.hf

    with torch.device("meta"):
        model = mg_llava.hf.MGLLaVAForConditionalGeneration(mg_llava.hf.MGLLaVAConfig.from_pretrained(folder))
    stored = stored_names(model)
    weights = {stored.get(name, name): tensor for name, tensor in weights.items()}
    shapes = {stored[name]: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    report = check_keys(weights, Expected(shapes, optional=aliases))
    if problems := report.misfits:
        raise ConversionError(
            f"the weights are not those of the model that the config describes: {'; '.join(problems)}"
        )
    return weights
