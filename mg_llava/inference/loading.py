"""Models to ask, from whatever holds one: a training config with a checkpoint, a Hugging Face folder, a hub id."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mg_llava.compat import dtype_name
from mg_llava.data.config import load_config, trained_length
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.models.llm import keep_word_embeddings
from mg_llava.models.parts import for_any_machine
from mg_llava.models.positions import take_positions
from mg_llava.models.weights.folders import find_folder, is_model
from mg_llava.registry import MODELS
from mg_llava.work.devices import pick_device

CONFIG_KEYS = ("model", "tokenizer", "prompt_template", "picture_processor")
"""What a config must have to predict with."""


class LoadedModel(NamedTuple):
    """A model, and what it is asked with: arguments of a ``Predictor``."""

    model: Any
    tokenizer: Any
    template: Any
    picture_processor: Any
    parts: Sequence[Any] = ()


def load_model(
    source: str | Path | Config,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    pictures: Mapping[str, Any] | None = None,
    layers: bool = True,
) -> LoadedModel:
    """Load a model; arguments and errors as for ``Predictor.from_pretrained``."""
    target, found = pick_device(device), open_source(source)
    if isinstance(found, Config):
        loaded = _from_config(found, checkpoint, pictures or {})
    elif checkpoint is not None:
        raise ValueError(f"{source} is a folder or hub id, which has its weights; a checkpoint needs a config (.py)")
    else:
        loaded = _from_folder(found, pictures or {})
    if not layers:
        keep_word_embeddings(loaded.model.llm)
    return loaded._replace(model=loaded.model.to(target))


def open_source(source: str | Path | Config) -> Config | Path:
    """A training config, or the folder of a model; what a hub id names is downloaded.

    Raises:
        FileNotFoundError: Config or folder do not exist, or the hub cannot be reached.
        ValueError: The config cannot be read or lacks a part, or the folder holds no model.
    """
    if isinstance(source, Config) or not is_model(source):
        return _load_config(source)
    folder = find_folder(source)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{source} has no config.json; give a Hugging Face folder of ours, or a config and a checkpoint"
        )
    return folder


def _from_config(config: Config, checkpoint: str | Path | None, pictures: Mapping[str, Any]) -> LoadedModel:
    if checkpoint is None:
        raise ValueError(
            "a config needs a checkpoint (--checkpoint); `last_checkpoint` in a work_dir names the newest"
        )
    if not Path(checkpoint).exists():
        raise FileNotFoundError(f"checkpoint {checkpoint} does not exist; `last_checkpoint` in a work_dir names it")
    settings = for_any_machine(config.model)
    if (settings.get("llm") or {}).get("tuning") == "full":
        settings["pretrained_pth"] = None  # all of it is in the checkpoint
    model = MODELS.build(settings)
    model.load_pretrained(str(checkpoint), whole=True)
    if model.llm is not None:
        take_positions(model.llm.config, trained_length(config))
    processor, parts = {**config.picture_processor, **pictures}, config.get("prompt_parts", ())
    return LoadedModel(model, config.tokenizer, config.prompt_template, processor, parts)


def _from_folder(folder: Path, pictures: Mapping[str, Any]) -> LoadedModel:
    """A model in transformers' form, by the code of this package; a folder's own is not run."""
    from mg_llava.hf import MGLLaVAForConditionalGeneration, MGLLaVAProcessor
    from mg_llava.hf.prompts import template_of

    processor = MGLLaVAProcessor.from_pretrained(folder)
    outer = MGLLaVAForConditionalGeneration.from_pretrained(folder, **{dtype_name(): "auto"})
    outer.model.llm.generation_config = outer.generation_config  # it knows the ends of answers
    settings = {**processor.image_processor.picture_processor.to_dict(), **pictures}
    template, pictures_of = template_of(processor.template), PictureProcessor(**settings)
    return LoadedModel(outer.model, processor.tokenizer, template, pictures_of, processor.parts)


def _load_config(config: str | Path | Config) -> Config:
    if not isinstance(config, Config):
        if not Path(config).is_file():
            raise FileNotFoundError(
                f"config {config} does not exist; give the .py file that the model was trained with, a Hugging Face "
                "folder of ours, or a hub id"
            )
        config = load_config(config)
    missing = [key for key in CONFIG_KEYS if config.get(key) is None]
    if missing:
        raise ValueError(f"config lacks {', '.join(missing)}; a training config of this project has them all")
    return config
