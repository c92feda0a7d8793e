"""The Hugging Face folder of the whole model: its weights; everything else of it is made by ``mg_llava.hf``."""

import copy
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mg_llava.conversion.expected import parts_of
from mg_llava.conversion.files import MANIFEST, ConversionError, write_json
from mg_llava.conversion.folder_writing import SMALL_FILES, manifest, stage, without_ties, write_shards
from mg_llava.conversion.report import summarize
from mg_llava.conversion.types import Options, Source
from mg_llava.conversion.writers import Progress
from mg_llava.models.parts import kind_of
from mg_llava.models.weights.stored import TensorMap


def write_hugging_face(source: Source, target: Path, options: Options, progress: Progress | None) -> None:
    """Write the folder; see :func:`mg_llava.conversion.convert`.

    Raises:
        ConversionError: If there is no config, or the weights are not those of the model that it describes.
    """
    config = None if source.settings is None else _config(source)
    given = source.checkpoint.encoders
    if config is None and (not given or options.standalone):
        raise ConversionError(
            f"{source.checkpoint.path} ({source.checkpoint.kind}) does not say what the model is made of; give the "
            "training config with --config"
        )
    encoders = given or _encoders(config["model"] if config else {})
    dtype = options.torch_dtype
    llm = {name.removeprefix("llm."): tensor for name, tensor in source.tensors.items() if name.startswith("llm.")}
    own = {
        **{f"llm.{name}": tensor for name, tensor in without_ties(llm, source.tied).items()},
        **{name: tensor.to(dtype) for name, tensor in encoders.items()},
        # after the encoders' own: those that were trained
        **{name: tensor for name, tensor in source.tensors.items() if not name.startswith("llm.")},
    }
    source.report.parts.update(summarize({name: own[name] for name in encoders}))
    staged = stage(source, target, "hf", options, own)
    weights = _named(own)
    try:
        if config is None:
            _copy_files(source.checkpoint.path, staged.path, _main_dtype(own))
        else:
            from mg_llava.hf.export import folder_files

            folder_files(config, staged.path, _main_dtype(own), options.standalone)
        _check_model(staged.path, weights, source.tied)
    except (ValueError, OSError):
        staged.abandon()
        raise
    write_shards(staged, weights, options, progress)
    staged.finish(manifest(source, "hf"))


def _config(source: Source) -> dict[str, Any]:
    """The training config, with the LLM's folder that was found."""
    assert source.settings is not None
    config = copy.deepcopy(dict(source.settings.values))
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


def _main_dtype(tensors: TensorMap) -> torch.dtype:
    """Dtype of most of the LLM, in which ``torch_dtype="auto"`` loads all weights."""
    sizes: Counter[torch.dtype] = Counter()
    for name, tensor in tensors.items():
        if name.startswith("llm.") and tensor.dtype.is_floating_point:
            sizes[tensor.dtype] += tensor.nbytes
    return sizes.most_common(1)[0][0]


def _named(tensors: TensorMap) -> TensorMap:
    from mg_llava.hf.keys import hf_key

    return {hf_key(name): tensor for name, tensor in tensors.items()}


def _check_model(folder: Path, weights: TensorMap, tied: Mapping[str, str]) -> None:
    """Compare names and shapes with the model that the folder's configuration describes, built without memory.

    Raises:
        ConversionError: Naming the first weights that are missing, left over or of another shape.
    """
    import mg_llava.hf

    with torch.device("meta"):
        model = mg_llava.hf.MGLLaVAForConditionalGeneration(mg_llava.hf.MGLLaVAConfig.from_pretrained(folder))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    aliases = {mg_llava.hf.hf_key(f"llm.{name}") for name in tied}
    missing = [name for name in shapes if name not in weights and name not in aliases]
    extra = [name for name in weights if name not in shapes]
    wrong = [
        f"{name} {weights[name].shape} here, {shape} in the model"
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    problems = [
        f"{len(names)} weights {what}, e.g. {names[0]}"
        for what, names in (("are missing", missing), ("are unknown to it", extra), ("have another shape", wrong))
        if names
    ]
    if problems:
        raise ConversionError(
            f"the weights are not those of the model that the config describes: {'; '.join(problems)}"
        )


def _copy_files(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Take over everything but the weights from another folder of the whole model."""
    for file in (file for pattern in (*SMALL_FILES, "*.md") for file in source.glob(pattern)):
        if file.is_file() and not file.name.endswith(".index.json") and file.name != MANIFEST:
            shutil.copyfile(file, target / file.name)
    config = json.loads((target / "config.json").read_text())
    write_json(target / "config.json", config | {"torch_dtype": str(dtype).removeprefix("torch.")})
