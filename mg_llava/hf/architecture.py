"""The architecture that a training config stands for, read from the folders it names, without their weights."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mg_llava.compat import dtype_name
from mg_llava.data.config import build_transform, trained_length
from mg_llava.data.text.prompt import PromptPart, build_parts
from mg_llava.data.text.stopping import Stops
from mg_llava.data.text.tokenizer import build_tokenizer
from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.image_processing import MGLLaVAImageProcessor
from mg_llava.hf.processing import MGLLaVAProcessor
from mg_llava.hf.prompts import template_of, template_to_dict
from mg_llava.models.counting import build_empty
from mg_llava.models.interfaces import Encoder
from mg_llava.models.parts import kind_of
from mg_llava.models.positions import take_positions
from mg_llava.registry import MODELS, TRANSFORMS


def describe_model(config: Mapping[str, Any], dtype: torch.dtype) -> MGLLaVAConfig:
    """The Hugging Face config of what a training config builds.

    Args:
        config: A training config, of which ``model``, ``picture_processor`` and ``prompt_template`` are read, and the
            length of the rows that it trains with.
        dtype: Dtype that the weights are stored in.

    Raises:
        FileNotFoundError: A folder or a file of it is absent.
        ValueError: The LLM brings code of its own, or a part is of a kind that cannot be described.
    """
    model = config["model"]
    parts = {
        part.config: _part(part.config, model[part.config])
        for part in kind_of(model).parts
        if part.role != "llm" and model.get(part.config) is not None
    }
    build_empty(model, with_llm=False)  # whether they go together
    named: dict[str, Any] = {dtype_name(): dtype}
    llm = _llm_config(model["llm"])
    take_positions(llm, trained_length(config))
    return MGLLaVAConfig(
        text_config=llm,
        system=kind_of(model).__name__,
        parts=parts,
        picture_config=build_transform(config["picture_processor"]).to_dict(),
        template_config=template_to_dict(config["prompt_template"]),
        **named,
        architectures=["MGLLaVAForConditionalGeneration"],
    )


def describe_generation(config: Mapping[str, Any], tokenizer: Any) -> GenerationConfig:
    """Greedy, with the ends of an answer that the predictor knows."""
    path = config["model"]["llm"]["path"]
    try:
        ends = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        ends = AutoConfig.from_pretrained(path).eos_token_id
    stops = Stops(tokenizer, template_of(config["prompt_template"]), [ends] if isinstance(ends, int) else ends or [])
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops.ids,
        pad_token_id=stops.ids[0] if pad is None and stops.ids else pad,
        max_new_tokens=100,  # as the predictor has it
        do_sample=False,
    )


def build_processor(config: Mapping[str, Any]) -> MGLLaVAProcessor:
    """The processor that gives a model what it was trained on.

    Raises:
        TokenizerError: The tokenizer's files are absent.
    """
    tokenizer = build_tokenizer(config["tokenizer"])
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # the latter is what is saved
    image_processor = MGLLaVAImageProcessor(**build_transform(config["picture_processor"]).to_dict())
    asks = kind_of(config["model"]).reads_question
    parts = [describe_prompt_part(part) for part in build_parts(config.get("prompt_parts") or ())]
    return MGLLaVAProcessor(
        image_processor, tokenizer, template=config["prompt_template"], reads_question=asks, parts=parts
    )


def describe_prompt_part(part: PromptPart) -> dict[str, Any]:
    """A prompt part as plain values for JSON.

    Raises:
        ValueError: It is no dataclass that is registered.
    """
    kind = type(part)
    if not is_dataclass(part) or TRANSFORMS.find(kind.__name__) is not kind:
        raise ValueError(
            f"prompt part {part!r} cannot be described in a folder; make it a dataclass, registered in TRANSFORMS"
        )
    return {"type": kind.__name__, **_plain(asdict(part))}


def _llm_config(spec: Mapping[str, Any]) -> PretrainedConfig:
    path = spec["path"]
    config = AutoConfig.from_pretrained(path, trust_remote_code=bool(spec.get("trust_remote_code", False)))
    if config.model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"the LLM {path} is a {config.model_type!r}, which brings code of its own; a Hugging Face folder of the "
            "whole model can hold architectures that transformers knows; convert to separate parts instead"
        )
    for name in ("quantization_config", "auto_map"):
        if hasattr(config, name):
            delattr(config, name)
    return config


def _part(name: str, config: Any) -> dict[str, Any]:
    """The spec of an encoder, or the config of another part with the plain name of its type.

    Raises:
        ValueError: The part is no config, or of a kind that is not registered.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"{name} is given as {type(config).__name__}; give its config, a dict with type")
    try:
        kind = kind_of(config)
    except KeyError as error:
        raise ValueError(f"{name}: {error.args[0]}") from None
    if MODELS.find(kind.__name__) is not kind:
        raise ValueError(f"{name} is a {kind.__name__}, which is not registered in MODELS, so no folder can name it")
    if issubclass(kind, Encoder):
        spec = asdict(kind.describe(config))
        del spec["source"]  # a path of this machine
        return _plain(spec)
    own = kind.portable(config) if hasattr(kind, "portable") else config
    return {"type": kind.__name__} | {key: _plain(value) for key, value in own.items() if key != "type"}


def _plain(value: Any) -> Any:
    """Values for JSON: tuples and the configs' own dicts and lists as plain ones."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
