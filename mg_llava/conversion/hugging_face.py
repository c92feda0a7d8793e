"""The Hugging Face folder of the whole model: its weights; everything else of it is made by ``mg_llava.hf``."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mg_llava.conversion.expected import parts_of
from mg_llava.conversion.files import ConversionError
from mg_llava.conversion.folder_writing import copy_small_files, finish, main_dtype, stage, without_ties, write_shards
from mg_llava.conversion.types import Options, Source
from mg_llava.conversion.writers import Progress
from mg_llava.models.parts import kind_of
from mg_llava.models.weights.folders import read_config
from mg_llava.models.weights.report import Expected, check_keys, summarize
from mg_llava.models.weights.stored import TensorMap
from mg_llava.work.atomic import write_json


def write_hugging_face(source: Source, target: Path, options: Options, progress: Progress | None) -> None:
    """Write the folder; see :func:`mg_llava.conversion.convert`.

    Raises:
        ConversionError: There is no config, or the weights are not those of the model that it describes.
    """
    from mg_llava.hf.export import folder_files
    from mg_llava.hf.keys import hf_key

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
            write_json(staged.path / "config.json", read_config(checkpoint.path) | {"torch_dtype": dtype}, indent=2)
        else:
            folder_files(config, staged.path, dtype, options.standalone)
        _check_model(staged.path, weights, [hf_key(f"llm.{name}") for name in source.tied])
    except (ValueError, OSError):
        staged.abandon()
        raise
    write_shards(staged, weights, options, progress)
    finish(staged, source, "hf")


def _config(source: Source) -> dict[str, Any]:
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


def _check_model(folder: Path, weights: TensorMap, aliases: list[str]) -> None:
    """Compare names and shapes with the model that the folder's configuration describes, built without memory.

    Raises:
        ConversionError: Naming the first weights that are missing, left over or of another shape.
    """
    import mg_llava.hf

    with torch.device("meta"):
        model = mg_llava.hf.MGLLaVAForConditionalGeneration(mg_llava.hf.MGLLaVAConfig.from_pretrained(folder))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    report = check_keys(weights, Expected(shapes, optional=aliases))
    if problems := report.misfits:
        raise ConversionError(
            f"the weights are not those of the model that the config describes: {'; '.join(problems)}"
        )
